"""`canaryctl observed`: the policy entry from a file of stable's traffic, or one line with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from controller.cli.main import app
from controller.cli.observed_range import round_down
from controller.errors import BadInput
from controller.spec.service import parse_policy
from evaluation.policy.observed_ranges import RangeGate
from tests.fakes.evidence_maker import Columns, requests

MAY_S = 1777593600.0  # 2026-05-01
DAY_S = 86_400.0


def two_days(rows: int = 6000) -> Columns:
    """Stable alone for two days, the second 30 % slower."""
    columns = requests(rows, w=0.0)
    columns["t_s"] = MAY_S + np.sort(np.random.default_rng(5).uniform(0.0, 2 * DAY_S, rows))
    columns["latency_ms"] = columns["latency_ms"] * np.where(columns["t_s"] < MAY_S + DAY_S, 1.0, 1.3)
    return columns


def write(columns: Columns, path: Path) -> Path:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(two_days(), tmp_path_factory.mktemp("observed") / "stable.jsonl")


def canaryctl(*arguments: str) -> None:
    app(args=list(arguments), standalone_mode=False)


def entry(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> RangeGate:
    """The printed policy entry, parsed as by `deploy --policy`."""
    canaryctl("observed", str(file), *arguments)
    policy = parse_policy(yaml.safe_load(capsys.readouterr().out)).gate_policy()
    return policy.observed_ranges[0]


@pytest.mark.slow
def test_the_entry_spans_stables_windows_between_the_dates(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = two_days()
    day = columns["t_s"] < MAY_S + DAY_S
    hour = ((columns["t_s"] - columns["t_s"][0]) // 3600)[day]
    p95 = [np.quantile(columns["latency_ms"][day][hour == h], 0.95) for h in np.unique(hour)]

    gate = entry(file, capsys, "--since", "2026-05-01", "--until", "2026-05-02")

    assert (gate.name, gate.since, gate.until) == ("latency_ms_range", "2026-05-01", "2026-05-02")
    assert gate.ranges[2].low == pytest.approx(min(p95), rel=2e-3)
    assert gate.ranges[2].low <= min(p95) < max(p95) <= gate.ranges[2].high
    assert gate.ranges[2].high == pytest.approx(max(p95), rel=2e-3)


@pytest.mark.slow
def test_without_dates_the_range_covers_the_whole_file(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = entry(file, capsys, "--until", "2026-05-02")
    whole = entry(file, capsys)

    assert whole.ranges[0].high > first.ranges[0].high * 1.1


@pytest.mark.slow
def test_a_start_before_the_file_adds_no_partial_window(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = entry(file, capsys, "--since", "2026-04-30T23:30")

    assert early.ranges == entry(file, capsys).ranges


@pytest.mark.slow
def test_the_entry_holds_the_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = entry(file, capsys, "--name", "slow", "--on-outside", "rollback", "--alpha-share", "0.1")

    assert (gate.name, gate.on_outside, gate.alpha_share) == ("slow", "rollback", 0.1)


@pytest.mark.slow
def test_json_holds_the_same_entry(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = entry(file, capsys)
    canaryctl("observed", str(file), "-o", "json")

    assert json.loads(capsys.readouterr().out)["observed_ranges"] == {gate.name: gate.to_mapping()}


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--since", "2026-06-01", "--until", "2026-06-02"],
            "stable has no latency_ms from 2026-06-01 to 2026-06-02; "
            "the file has it from 2026-05-01 to 2026-05-02T23",
        ),
        (["--since", "2026-05-02", "--until", "2026-05-01"], "--since 2026-05-02 is not before --until"),
        (["--since", "May"], "--since 'May' is not a time"),
        (["--window", "1m"], "windows of 60 s that hold 50 answers: 0, needed 3"),
        (["--window", "wide"], "--window 'wide'"),
        (["--metric", "error"], "--metric error has no range: only times, .*; of these the file has latency"),
        (["--on-outside", "page"], "on_outside 'page' is unknown; use hold or rollback"),
        (["--alpha-share", "0"], r"alpha_share 0.0 is outside \(0, 1\]"),
    ],
)  # fmt: skip
def test_input_without_a_range_is_refused_in_one_line(file: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        canaryctl("observed", str(file), *arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_backtest_holds_a_canary_outside_the_written_entry(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canaryctl("observed", str(file), "--until", "2026-05-02")
    policy = tmp_path / "policy.yaml"
    policy.write_text(capsys.readouterr().out)
    columns = requests(3000, before=200)
    columns["latency_ms"] = columns["latency_ms"] * 1.6
    traffic = write(columns, tmp_path / "rollout.jsonl")

    canaryctl("backtest", str(traffic), "--policy", str(policy))
    table = capsys.readouterr().out

    assert table.startswith("INVALID: latency_ms_range: p50 ")
    assert "between 2026-05-01 and 2026-05-02" in " ".join(table.split())


@pytest.mark.parametrize(
    ("value", "rounded"), [(391.27, 391.2), (0.00123456, 0.001234), (7.0, 7.0), (0.0, 0.0), (-811.13, -811.2)]
)
def test_bounds_are_rounded_outward(value: float, rounded: float) -> None:
    assert round_down(value) == rounded


@pytest.mark.slow
def test_a_file_without_an_arm_says_that_every_row_counts_as_stables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = two_days()
    with_arm = write(columns, tmp_path / "a.jsonl")
    without = write({n: c for n, c in columns.items() if n != "arm"}, tmp_path / "b.jsonl")

    said = []
    for path in (with_arm, without):
        canaryctl("observed", str(path))
        said.append("every row counts as stable's" in "".join(capsys.readouterr()))

    assert said == [False, True]


@pytest.mark.slow
def test_few_windows_are_said_to_say_little(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canaryctl("observed", str(file), "--window", "8h")
    assert "6 windows say little of how latency_ms varies: each end is widened" in capsys.readouterr().err
    canaryctl("observed", str(file), "--window", "2h")
    assert "windows" not in capsys.readouterr().err
