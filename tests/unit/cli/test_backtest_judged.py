"""What a backtest judged and what it did not: misspelt columns, gates without a column, stages of a ramp."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.main import app, run
from controller.errors import BadInput
from tests.fakes.evidence_maker import requests, sticky

Columns = dict[str, Any]
RAMP = """\
gates: {rejected: null, quality: null, hallucination: null, ttft_shape: null, latency_p99: null}
stages:
  - {weight: 5%, min_canary: 50, margins: {error: 5.0, latency_shape: 1.5}, floor: 0.05}
  - {weight: 20%, min_canary: 200, margins: {error: 5.0, latency_shape: 1.5}, floor: 0.05}
"""


def write(path: Path, columns: Columns) -> Path:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(values).tolist() for values in columns.values()), strict=True))
    return path


def harmless(rows: int = 4000) -> Columns:
    return with_rejected(requests(rows))


def with_rejected(columns: Columns) -> Columns:
    """The columns, with one that says that no request was rejected."""
    return {**columns, "rejected": np.zeros(len(columns["arm"]))}


def backtest(path: Path, *arguments: str) -> None:
    app(args=["backtest", str(path), *arguments], standalone_mode=False)


def decided(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    backtest(path, "-o", "json", *arguments)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """It was "error:  ends in nothing"."""
    with pytest.raises(BadInput, match=r" is a folder; give one file in it"):
        backtest(tmp_path)


def test_a_format_that_a_command_does_not_have_is_refused_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", "x.csv", "-o", "yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_the_ramp_of_a_router_by_itself_has_a_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/router.md raises through weights of which no policy of the docs had any but the last."""
    rows = [4000, 3000, 3000, 4000]
    w = np.repeat([0.01, 0.05, 0.2, 0.5], rows)
    policy = Path(__file__).parents[3] / "examples" / "router-policy.yaml"
    path = write(tmp_path / "e.csv", with_rejected(requests(len(w), w=w)))
    answer = decided(capsys, path, "--policy", str(policy))

    assert [stage["weight"] for stage in answer["stages"]] == [0.01, 0.05, 0.2, 0.5]
    assert answer["decision"] == "promote"


# --- a misspelt column never promotes


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("latency_ms", "latency"),
        ("hallucinated", "hallucination"),
        ("latency_ms", "latncy_ms"),
        ("error", "errors"),
        ("quality", "score"),
        ("latency_ms", "Duration"),
    ],
)
def test_a_misspelt_column_is_refused_with_the_name_it_is_close_to(
    tmp_path: Path, right: str, wrong: str
) -> None:
    columns = {wrong if name == right else name: values for name, values in harmless(400).items()}

    with pytest.raises(
        BadInput, match=f"column '{wrong}' is unknown and close to {right}; give --map {right}="
    ):
        backtest(write(tmp_path / "e.csv", columns))


@pytest.mark.slow
def test_harm_under_misspelt_names_is_not_promoted_even_when_they_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = with_rejected(requests(4000, slower=3.0))
    columns["hallucination"] = np.where(columns["arm"] == 1, 1.0, columns.pop("hallucinated"))
    columns["latency"] = columns.pop("latency_ms")
    path = write(tmp_path / "e.csv", columns)
    answer = decided(capsys, path, "--ignore", "latency", "--ignore", "hallucination")

    assert answer["decision"] == "undecided"
    assert answer["not_judged"] == ["latency_p99", "latency_shape", "hallucination"]


@pytest.mark.slow
def test_a_map_reads_the_column_under_its_other_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = with_rejected(requests(4000, slower=3.0))
    columns["latency"] = columns.pop("latency_ms")
    answer = decided(capsys, write(tmp_path / "e.csv", columns), "--map", "latency_ms=latency")

    assert (answer["decision"], answer["metric"]) == ("rollback", "latency_ms")


@pytest.mark.slow
def test_names_may_be_in_capitals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {name.upper().replace("_", " "): values for name, values in harmless(4000).items()}

    assert decided(capsys, write(tmp_path / "e.csv", columns))["decision"] == "promote"


# --- gates without a column


def without(columns: Columns, *names: str) -> Columns:
    return {name: values for name, values in columns.items() if name not in names}


@pytest.mark.slow
def test_a_presets_gate_without_a_column_blocks_until_it_is_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "e.csv", without(harmless(), "quality"))
    before = decided(capsys, path)
    after = decided(capsys, path, "--allow-unjudged", "no judge yet")

    assert (before["decision"], before["reasons"]) == ("undecided", ["quality: NOT JUDGED, it has no column"])
    assert (after["decision"], after["not_judged"], after["allow_unjudged"]) == (
        "promote",
        ["quality"],
        "no judge yet",
    )


@pytest.mark.slow
def test_the_next_step_names_all_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Doing what it said was UNDECIDED again: a proof was missing as well."""
    backtest(write(tmp_path / "e.csv", without(harmless(400), "quality")))

    assert capsys.readouterr().err.splitlines()[-1] == (
        "next: add quality, or accept that it is unknown: --allow-unjudged REASON; and record more canary "
        "requests, for what is not proven yet"
    )


@pytest.mark.slow
def test_a_single_stage_has_the_weight_of_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was 0.5, whatever w the file has."""
    answer = decided(capsys, write(tmp_path / "e.csv", with_rejected(requests(200, w=0.1))))

    assert [stage["weight"] for stage in answer["stages"]] == [0.1]


@pytest.mark.slow
def test_the_output_names_what_was_not_judged_below_the_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "e.csv", without(harmless(), "quality"))
    backtest(path)
    out, err = capsys.readouterr()
    backtest(path, "--allow-unjudged", "no judge yet")
    allowed = capsys.readouterr().out.splitlines()

    assert out.splitlines()[1].strip() == "NOT JUDGED: quality (no column quality)"
    assert err.splitlines()[-1] == (
        "next: add quality, or accept that it is unknown: --allow-unjudged REASON"
    )
    assert allowed[0].startswith("PROMOTE: error, rejected, latency_shape, hallucination proven after ")
    assert allowed[1].strip() == "NOT JUDGED: quality (no column quality); allowed: no judge yet"


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "policy",
    [
        "gates: {quality: {threshold: 0.1}}\n",
        "stages: [{weight: 20%, margins: {error: 5.0, quality: 0.1}, floor: 0.05}]\n",
        "observed_ranges: {tokens_range: {metric: tokens, ranges: {p50: [1, 9]}}}\n"
        "gates: {error: {alpha_share: 0.2}}\n",
    ],
)
def test_a_gate_that_the_policy_names_blocks_whatever_is_acknowledged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    rules = tmp_path / "policy.yaml"
    rules.write_text(policy)
    path = write(tmp_path / "e.csv", without(harmless(), "quality"))
    answer = decided(capsys, path, "--policy", str(rules), "--allow-unjudged", "no judge yet")

    assert answer["decision"] == "undecided"
    assert "NOT JUDGED, it has no column" in answer["reasons"][0]


@pytest.mark.slow
def test_an_empty_column_is_no_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = harmless()
    columns["quality"] = [""] * len(columns["quality"])

    assert decided(capsys, write(tmp_path / "e.csv", columns))["not_judged"] == ["quality"]


@pytest.mark.slow
def test_streaming_times_are_not_asked_for_where_nothing_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decided(capsys, write(tmp_path / "e.csv", harmless()))["decision"] == "promote"


def test_an_acknowledgement_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--allow-unjudged needs a reason"):
        backtest(write(tmp_path / "e.csv", harmless(50)), "--allow-unjudged", " ")


# --- a ramp


def ramp(rows: int = 8000, *, late_error: float = 0.02) -> Columns:
    weight = np.where(np.arange(rows) < rows // 2, 0.05, 0.2)
    columns: Columns = {**requests(rows, w=weight)}
    later = (columns["arm"] == 1) & (weight == 0.2)
    events = np.random.default_rng(5).random(rows) < late_error
    columns["error"] = np.where(later, events, columns["error"]).astype(float)
    columns["stage"] = (weight == 0.2).astype(int)
    return without(columns, "quality", "hallucinated")


@pytest.fixture
def rules(tmp_path: Path) -> str:
    path = tmp_path / "ramp.yaml"
    path.write_text(RAMP)
    return str(path)


@pytest.mark.slow
def test_a_ramp_is_promoted_when_each_stage_proved_its_own_margins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    answer = decided(capsys, write(tmp_path / "e.csv", ramp()), "--policy", rules)

    assert answer["decision"] == "promote"
    assert [(stage["stage"], stage["weight"], stage["verdict"]) for stage in answer["stages"]] == [
        (0, 0.05, "PASS"),
        (1, 0.2, "PASS"),
    ]


@pytest.mark.slow
def test_stages_are_found_by_their_weight_without_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    with_column = decided(capsys, write(tmp_path / "a.csv", ramp()), "--policy", rules)
    by_weight = decided(capsys, write(tmp_path / "b.csv", without(ramp(), "stage")), "--policy", rules)

    assert by_weight == with_column


@pytest.mark.slow
def test_a_stage_that_was_left_unproven_is_not_promoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    columns = ramp()
    early = np.arange(8000) >= 3600  # 20 canary requests of the first stage remain
    part = {name: np.asarray(values)[early] for name, values in columns.items()}
    answer = decided(capsys, write(tmp_path / "e.csv", part), "--policy", rules)

    assert answer["decision"] == "undecided"
    assert answer["stages"][0]["verdict"] == "UNDECIDED"
    assert answer["reasons"][0].startswith("stage 1 (5 %): ")


@pytest.mark.slow
def test_harm_that_begins_in_a_later_stage_rolls_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    answer = decided(capsys, write(tmp_path / "e.csv", ramp(late_error=0.3)), "--policy", rules)

    assert (answer["decision"], answer["metric"]) == ("rollback", "error")


@pytest.mark.slow
def test_a_ramp_that_ends_early_names_the_stages_without_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    part = {name: np.asarray(values)[:4000] for name, values in ramp().items()}
    answer = decided(capsys, write(tmp_path / "e.csv", part), "--policy", rules)

    assert (answer["decision"], answer["reasons"]) == ("undecided", ["no rows of stage 2"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": 7}, r"line 2: stage 7 does not exist; the policy has 2 stages from 0 on"),
        (
            {"stage": None, "w": 0.07},
            r"line 2: w 0\.07 is the weight of no stage of the policy \(5 %, 20 %\)",
        ),
    ],
)
def test_a_stage_that_the_policy_lacks_is_refused_with_its_line(
    tmp_path: Path, rules: str, change: dict[str, float | None], message: str
) -> None:
    columns = ramp(400)
    for name, value in change.items():
        if value is None:
            del columns[name]
        else:
            columns[name] = [value, *np.asarray(columns[name]).tolist()[1:]]

    with pytest.raises(BadInput, match=message):
        backtest(write(tmp_path / "e.csv", columns), "--policy", rules)


@pytest.mark.slow
def test_a_stage_column_alone_makes_a_ramp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = decided(capsys, write(tmp_path / "e.csv", ramp()), "--allow-unjudged", "errors alone")

    assert [stage["weight"] for stage in answer["stages"]] == [0.05, 0.2]


def test_columns_are_listed_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", "--columns"]) == 0

    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in ("t_s", "arm", "w", "latency_ms", "hallucinated"))


def test_messages_name_the_line_of_the_file_after_sorting(tmp_path: Path) -> None:
    columns: Columns = {**sticky(200, people=40)}
    columns["quality"] = [3.0, *columns["quality"].tolist()[1:]]
    reversed_file = {name: np.asarray(values)[::-1] for name, values in columns.items()}

    with pytest.raises(BadInput, match=r"e\.csv: quality 3\.0 in line 201 cannot be evidence"):
        backtest(write(tmp_path / "e.csv", reversed_file))
