"""The gate benchmark: rows of published cases, resumption of an interrupted run, goals, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gate import __main__ as command
from benchmarks.gate import digest
from benchmarks.gate.cases import BOUNDARY, CASES
from benchmarks.gate.growing import Traffic
from benchmarks.gate.published import (
    at_look,
    beside_baseline,
    equal_metrics,
    measure_case,
    prefix,
    proof_time,
    reps_of,
    rollback_time,
    summarise,
)
from benchmarks.gate.records import Item, Records, by_name, measure, recheck, slug
from benchmarks.gate.report import as_json, as_markdown, limit_as_before
from benchmarks.gate.traffic import Behaviour, Case, simulate
from benchmarks.gate.trial_cases import TRIALS
from benchmarks.gate.trials import Row
from evaluation.betting import covariates

HARM = Case("bench harm", "rollback", Behaviour(hallucinated=0.3), canary_requests=300)


@pytest.mark.parametrize(("preset", "part"), [("strict", 0.0), ("default", 0.5)])
def test_each_policy_has_a_quarter_of_one_percent_for_each_metric(preset: str, part: float) -> None:
    policy = equal_metrics(preset)

    assert policy.restart_share == 0.0
    assert [policy.alpha * gate.alpha_share for gate in policy.gates] == pytest.approx([0.0025] * 4)
    assert all(gate.tolerance == gate.threshold * part for gate in policy.gates)


@pytest.mark.parametrize(("drawn", "look"), [(1, 20), (20, 20), (21, 40), (None, None)])
def test_a_decision_is_read_at_the_next_look(drawn: int | None, look: int | None) -> None:
    assert at_look(drawn) == look


def test_a_prefix_ends_with_the_named_canary_request() -> None:
    events = simulate(HARM, 0)

    assert np.asarray(prefix(events, 57)["arm"]).sum() == 57
    assert len(prefix(events, 10**6)["arm"]) == len(events.columns["arm"])


@pytest.mark.slow
def test_harm_is_found_by_both_policies_and_sooner_by_strict() -> None:
    events = [simulate(HARM, rep) for rep in range(6)]
    times = {
        preset: [
            rollback_time(HARM, Traffic(each.columns), equal_metrics(preset)) or 10**6 for each in events
        ]
        for preset in ("strict", "default")
    }

    assert np.median(times["strict"]) <= np.median(times["default"]) < 10**6


def test_a_published_row_has_a_thousand_runs_and_one_with_drift_fewer() -> None:
    assert reps_of(CASES["latency x1.2"], quick=False) == 1000
    assert reps_of(CASES["latency x1.2, drift"], quick=False) == 300
    assert reps_of(CASES["latency x1.2, drift"], quick=True) == reps_of(CASES["latency x1.2"], quick=True)


@pytest.mark.slow
def test_a_proof_waits_for_every_margin() -> None:
    case = replace(CASES["proves all four"], canary_requests=1200)
    alone = replace(case, proofs={"latency_shape": 1.2})
    events = simulate(case, 0)

    assert (proof_time(case, events) or 10**6) >= (proof_time(alone, events) or 0)


def item_of(case: Case, reps: int) -> Item:
    return Item(case.name, slug(case.name), reps, partial(measure_case, case))


@pytest.mark.slow
def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    case = replace(BOUNDARY[0], canary_requests=200)
    measure([item_of(case, 2)], Records(tmp_path), float("inf"))
    with next(tmp_path.iterdir()).open("a") as out:
        out.write('{"rep": 2, "pro')
    measure([item_of(case, 4)], Records(tmp_path), float("inf"))

    rows = Records(tmp_path).read(slug(case.name))
    assert [row["rep"] for row in rows] == [0, 1, 2, 3]
    assert rows[2] == measure_case(case, 2)


@pytest.mark.slow
def test_processes_return_the_rows_of_one(tmp_path: Path) -> None:
    items = [item_of(replace(case, canary_requests=100), 2) for case in BOUNDARY[:2]]
    measure(items, Records(tmp_path / "one"), float("inf"))
    measure(items, Records(tmp_path / "two"), float("inf"), jobs=2)

    for item in items:
        assert Records(tmp_path / "one").read(item.file) == Records(tmp_path / "two").read(item.file)


def test_no_time_left_measures_nothing(tmp_path: Path) -> None:
    measure([item_of(HARM, 3)], Records(tmp_path), 0.0)

    assert Records(tmp_path).read(slug(HARM.name)) == []


def _named(name: str, rep: int) -> Row:
    return {"rep": rep, "name": name}


def test_items_with_a_row_that_a_new_measurement_contradicts_are_named() -> None:
    kept, changed = (Item(name, name, 2, partial(_named, name)) for name in ("kept", "changed"))
    recorded = {item.name: [item.measure(rep) for rep in range(item.reps)] for item in (kept, changed)}
    later = replace(changed, measure=partial(_named, "other"))

    assert recheck([kept, later], recorded) == ["changed"]
    assert recheck([kept, later], {"kept": recorded["kept"]}) == []


def test_two_items_never_share_a_file() -> None:
    with pytest.raises(ValueError, match="rename one"):
        by_name([item_of(HARM, 1), item_of(HARM, 1)])


@pytest.mark.slow
def test_a_part_is_measured_and_kept_with_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ROOT", tmp_path)
    digests = dict.fromkeys([*(case.name for case in CASES.values()), *TRIALS], "abc")
    monkeypatch.setattr(command, "gate_digests", lambda: digests)
    out = ["--json", str(tmp_path / "gate.json"), "--markdown", str(tmp_path / "gate.md")]
    few = ["--quick", "--reps", "1", "--no-speed", "--jobs", "1", *out]
    command.main([*few, "--cases", "^errors = 5x . per request$"])
    command.main([*few, "--cases", "^mirrored pairs, quality 0.75 -> 0.75$"])

    result = json.loads((tmp_path / "gate.json").read_text())
    assert result["cases"]["errors = 5x | per request"]["reps"] == 1
    assert result["trials"]["mirrored pairs, quality 0.75 -> 0.75"]["runs"] == 1
    digests["mirrored pairs, quality 0.75 -> 0.75"] = "other results"
    command.main([*few, "--cases", "^mirrored pairs, quality 0.75 -> 0.85$"])
    after = json.loads((tmp_path / "gate.json").read_text())
    assert after["cases"]["errors = 5x | per request"]["reps"] == 1
    assert after["trials"]["mirrored pairs, quality 0.75 -> 0.75"]["runs"] == 0
    assert after["gate_digest"] != result["gate_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "digest", "later result"])
def test_a_published_line_is_measured_again_only_where_it_no_longer_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    name = "mirrored pairs, quality 0.75 -> 0.75"
    monkeypatch.setattr(command, "ROOT", tmp_path / "first")
    digests = dict.fromkeys([*(case.name for case in CASES.values()), *TRIALS], "abc")
    monkeypatch.setattr(command, "gate_digests", lambda: digests)
    few = ["--quick", "--reps", "2", "--no-speed", "--jobs", "1", "--cases", f"^{name}$"]
    few += ["--json", str(tmp_path / "gate.json"), "--recheck", "1"]
    command.main(few)
    published = json.loads((tmp_path / "gate.json").read_text())
    line = published["trials"][name]
    rows = tmp_path / "second" / "out" / "gate" / "rows"  # of another machine
    monkeypatch.setattr(command, "ROOT", tmp_path / "second")
    if change == "digest":
        digests[name] = "other results"
    elif change == "later result":
        line["first_rows"][0] |= {"word": "another"}
        (tmp_path / "gate.json").write_text(json.dumps(published))

    command.main(few)

    after = json.loads((tmp_path / "gate.json").read_text())["trials"][name]
    assert [len(path.read_text().split("\n")) for path in rows.glob("*.jsonl")] == (
        [] if change == "nothing" else [3]
    )
    assert (after == line) is (change == "nothing")
    assert (after["runs"], after["digest"], len(after["first_rows"])) == (2, digests[name], 2)


@pytest.mark.slow
def test_a_digest_is_of_one_case_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dict(list(CASES.items())[:2])
    monkeypatch.setattr(digest, "CASES", few)
    monkeypatch.setattr(digest, "TRIALS", {})
    before = digest.gate_digests()
    first, second = few.values()
    changed = replace(first, canary=replace(first.canary, hallucinated=0.9))
    monkeypatch.setattr(digest, "CASES", {"first": changed, "second": second})

    after = digest.gate_digests()

    assert after[first.name] != before[first.name]
    assert after[second.name] == before[second.name]
    assert digest.whole_digest(after) != digest.whole_digest(before)


@pytest.mark.slow
def test_the_digest_of_a_trial_of_covariates_is_of_bets_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [trial for name, trial in TRIALS.items() if name.startswith("covariates: quality")]
    plain = TRIALS["errors 5% -> 6.0%, per request"]
    monkeypatch.setattr(digest, "CASES", {})
    monkeypatch.setattr(digest, "TRIALS", {trial.name: trial for trial in (*some, plain)})
    before = digest.gate_digests()
    monkeypatch.setattr(covariates, "REACH", 1.0)

    after = digest.gate_digests()

    assert {name for name in before if after[name] != before[name]} == {trial.name for trial in some}


def test_a_name_that_matches_nothing_is_bad_input() -> None:
    assert command.main(["--cases", "no such case"]) == 2


def result_of(case: Case, rows: list[Row]) -> dict[str, Any]:
    line: dict[str, Any] = as_json({case.name: summarise(case, rows)}, {}, {}, digest="x")["cases"][case.name]
    return line


def rows(n: int, rang: int, **more: int | None) -> list[Row]:
    return [{"rep": i, "strict": 40 if i < rang else None, "default": None, **more} for i in range(n)]


@pytest.mark.parametrize(("rang", "reached"), [(16, True), (17, False)])
def test_sixteen_in_a_thousand_are_allowed(rang: int, reached: bool) -> None:
    assert result_of(CASES["independent"], rows(1000, rang))["reached"] is reached


def test_the_strict_policy_has_no_target_for_a_tolerable_harm() -> None:
    assert result_of(CASES["tolerably worse"], rows(100, 100))["reached"] is True


def test_a_median_above_its_target_is_not_reached() -> None:
    case = CASES["hallucination 3 -> 14 %"]

    assert result_of(case, [{"rep": 0, "strict": 80, "default": 100}])["reached"] is True
    assert result_of(case, [{"rep": 0, "strict": 80, "default": 120}])["reached"] is False
    assert result_of(case, [{"rep": 0, "strict": 80, "default": None}])["reached"] is False


def test_drift_is_measured_against_the_same_case_without() -> None:
    plain, drift = CASES["latency x1.2"], CASES["latency x1.2, drift"]
    lines = {
        plain.name: summarise(plain, [{"rep": 0, "strict": 100, "default": 400}]),
        drift.name: summarise(drift, [{"rep": 0, "strict": 120, "default": 520}]),
    }

    assert as_json(lines, {}, {}, digest="x")["cases"][drift.name]["reached"] is False


def test_without_rows_nothing_is_reached() -> None:
    assert result_of(CASES["independent"], [])["reached"] is None


@pytest.mark.parametrize(
    ("name", "column", "before", "limit"),
    [
        ("errors 1 -> 5 %", "strict", 180, 200),
        ("errors 1 -> 2 %", "default", 4000, 4200),
        ("latency x1.2", "default", 560, 627.2),
        ("latency x1.2, 5 % errors", "strict", 160, 192),
        ("hallucination, sticky 10", "strict", 200, 240),
        ("hallucination, sticky 10", "default", 200, 220),
    ],
)
def test_no_decision_may_come_much_later_than_before(
    name: str, column: str, before: float, limit: float
) -> None:
    assert limit_as_before(name, column, before) == pytest.approx(limit)


@pytest.mark.parametrize(("now", "reached"), [(220, True), (240, False), (None, False)])
def test_later_than_before_is_not_reached(now: int | None, reached: bool) -> None:
    case = replace(CASES["errors 1 -> 5 %"], target={})
    row: Row = {"rep": 0, "strict": 60, "default": 60, "strict_equal": now, "default_equal": 100}
    line = summarise(case, [row]) | beside_baseline({"strict": [200, 999], "default": [100, 999]}, [row])

    assert as_json({case.name: line}, {}, {}, digest="x")["cases"][case.name]["reached"] is reached


def test_published_figures_stand_beside_as_many_runs_of_today() -> None:
    rows: list[Row] = [{"rep": rep, "proven": 100 if rep < 2 else 900} for rep in range(5)]
    got = beside_baseline({"reps": 2, "proven": {"rang": 1.0, "median": 120.0, "p90": 140.0}}, rows)

    assert got["proven_equal"] == {"rang": 1.0, "median": 100.0, "p90": 100.0}
    assert got["proven_7f28581"] == {"rang": 1.0, "median": 120.0, "p90": 140.0}


def test_a_crossing_has_its_own_goal() -> None:
    case = CASES["quality -0.05"]
    row: Row = {"rep": 0, "strict": 220, "default": 900, "strict_equal": 220, "strict_crossing": 206}

    assert result_of(case, [row])["reached"] is False
    assert result_of(case, [row | {"strict_crossing": 205}])["reached"] is True


def test_the_figures_of_the_earlier_commit_belong_to_cases_of_today() -> None:
    baseline = json.loads(command.BASELINE.read_text())["cases"]

    assert set(baseline) == {n for n, c in CASES.items() if c.kind in ("rollback", "promotion")}
    for columns in baseline.values():
        assert columns.get("reps", 0) >= 500 or all(len(times) >= 120 for times in columns.values())


def test_the_tables_hold_every_case_that_was_measured() -> None:
    lines = {
        "independent": summarise(CASES["independent"], rows(10, 0, thresholds=60)),
        HARM.name: summarise(HARM, rows(10, 10)),
        BOUNDARY[0].name: summarise(BOUNDARY[0], [{"rep": 0, "proven": None}]),
        "proves shape": summarise(CASES["proves shape"], [{"rep": 0, "proven": 120}]),
    }
    text = as_markdown(as_json(lines, {}, {"batch_us": 0.4}, digest="x"))

    assert "| independent | 10 | 0.0% | 0.0% |  |  | 100.0% |" in text
    assert "| bench harm | 10 | 40/40 | none |" in text
    assert "| errors = 5x | 0.0% | yes |" in text
    assert "| proves shape | 1 | 120/120 |  |  | 130 | yes |" in text
