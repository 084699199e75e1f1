"""The gate benchmark: rows, resumption of an interrupted run, targets, tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gate import (
    Records,
    Row,
    at_look,
    both_policies,
    measure,
    measure_rep,
    prefix,
    proof_times,
    rollback_times,
    summarise,
)
from benchmarks.gate_cases import BOUNDARY, CASES
from benchmarks.gate_report import as_json, as_markdown
from benchmarks.gate_traffic import Behaviour, Case, simulate

HARM = Case("bench harm", "rollback", Behaviour(hallucinated=0.3), canary_requests=300)


def test_each_policy_has_a_quarter_of_one_percent_for_each_metric() -> None:
    policy = both_policies(restart_share=0.0)

    assert [policy.alpha * gate.alpha_share for gate in policy.gates] == pytest.approx([0.0025] * 8)
    assert {g.tolerance for g in policy.gates if g.name.endswith("@strict")} == {0.0}
    assert all(g.tolerance == g.threshold / 2 for g in policy.gates if g.name.endswith("@default"))


@pytest.mark.parametrize(("drawn", "look"), [(1, 20), (20, 20), (21, 40)])
def test_a_decision_is_read_at_the_next_look(drawn: int, look: int) -> None:
    assert at_look(drawn) == look


def test_a_prefix_ends_with_the_named_canary_request() -> None:
    events = simulate(HARM, 0)

    assert np.asarray(prefix(events, 57)["arm"]).sum() == 57
    assert len(prefix(events, 10**6)["arm"]) == len(events.columns["arm"])


def test_harm_is_found_by_both_policies_and_sooner_by_strict() -> None:
    times = [rollback_times(HARM, simulate(HARM, rep), both_policies(restart_share=0.0)) for rep in range(10)]

    assert np.median([t["strict"] or 10**6 for t in times]) <= np.median(
        [t["default"] or 10**6 for t in times]
    )
    assert all(t["default"] is not None for t in times)


def test_a_proof_waits_for_every_margin() -> None:
    case = replace(CASES["proves all four"], canary_requests=1200)
    alone = replace(case, proofs={"latency_shape": 1.2})
    events = simulate(case, 0)

    assert (proof_times(case, events)["proven"] or 10**6) >= (proof_times(alone, events)["proven"] or 0)


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    case = replace(BOUNDARY[0], canary_requests=200)
    measure([case], {"boundary": 2}, Records(tmp_path), float("inf"))
    with next(tmp_path.iterdir()).open("a") as out:
        out.write('{"rep": 2, "pro')
    measure([case], {"boundary": 4}, Records(tmp_path), float("inf"))

    assert [row["rep"] for row in Records(tmp_path).read(case)] == [0, 1, 2, 3]
    assert Records(tmp_path).read(case)[2] == measure_rep(case, 2)


def test_no_time_left_measures_nothing(tmp_path: Path) -> None:
    measure([HARM], {"rollback": 3}, Records(tmp_path), 0.0)

    assert Records(tmp_path).read(HARM) == []


def result_of(case: Case, rows: list[Row]) -> dict[str, Any]:
    line: dict[str, Any] = as_json({case.name: summarise(case, rows)}, {}, digest="x")["cases"][case.name]
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

    assert as_json(lines, {}, digest="x")["cases"][drift.name]["reached"] is False


def test_without_rows_nothing_is_reached() -> None:
    assert result_of(CASES["independent"], [])["reached"] is None


def test_the_tables_hold_every_case_that_was_measured() -> None:
    lines = {
        "independent": summarise(CASES["independent"], rows(10, 0, thresholds=60)),
        HARM.name: summarise(HARM, rows(10, 10)),
        BOUNDARY[0].name: summarise(BOUNDARY[0], [{"rep": 0, "proven": None}]),
        "proves shape": summarise(CASES["proves shape"], [{"rep": 0, "proven": 120}]),
    }
    text = as_markdown(as_json(lines, {"batch_us": 0.4}, digest="x"))

    assert "| independent | 10 | 0.0% | 0.0% |  | 100.0% |" in text
    assert "| bench harm | 10 | 40/40 | none |" in text
    assert "| errors = 5x | 0.0% | yes |" in text
    assert "| proves shape | 1 | 120/120 | 130 | yes |" in text
