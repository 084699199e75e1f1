"""`canaryctl backtest` on files: the decision, the plot, and one line for malformed input."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from benchmarks.gate.traffic import Behaviour, Case, simulate
from controller.cli.evidence_plot import plot_trace
from controller.cli.main import app
from controller.cli.main import run as run_line
from controller.cli.observed_range import parse_time
from controller.errors import BadInput
from evaluation.offline.backtest import BacktestResult, run
from evaluation.offline.trace import Trace, trace
from evaluation.report import Verdict

HARMFUL = Case("backtest harm", "rollback", Behaviour(error=0.2), canary_requests=300)
HARMLESS = Case("backtest fine", "no_harm", canary_requests=600)


# Cases hold mappings and cannot be keys of a cache; their names can.
CASES = {case.name: case for case in (HARMFUL, HARMLESS)}


def columns(case: Case) -> dict[str, np.ndarray]:
    data = {name: np.asarray(column) for name, column in simulate(case, 0).columns.items()}
    return {**data, "rejected": np.zeros(len(data["arm"]))}


@cache
def result(name: str) -> BacktestResult:
    """The backtest of a case, which several tests compare with."""
    return run(columns(CASES[name]))


@cache
def traced(name: str) -> Trace:
    """The trace of a case, at as many points as the plot has."""
    return trace(columns(CASES[name]))


def write(case: Case, path: Path) -> Path:
    data = columns(case)
    rows = zip(*(column.tolist() for column in data.values()), strict=True)
    path.write_text("".join(json.dumps(dict(zip(data, row, strict=True))) + "\n" for row in rows))
    return path


def backtest(*arguments: str) -> None:
    app(args=["backtest", *arguments], standalone_mode=False)


@pytest.mark.slow
def test_json_holds_the_result_of_the_backtest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backtest(str(write(HARMFUL, tmp_path / "e.jsonl")), "-o", "json")
    answer = json.loads(capsys.readouterr().out)
    expected = result(HARMFUL.name)

    assert (answer["decision"], answer["metric"]) == ("rollback", "error")
    assert answer["canary_requests"] == expected.canary_requests
    assert answer["log_e"] == dict(expected.log_e)


@pytest.mark.slow
def test_the_exit_code_is_the_decision(tmp_path: Path) -> None:
    """A script branches on it, as on the end of a rollout."""
    few = Case("backtest few", "no_harm", canary_requests=30)
    paths = [write(case, tmp_path / f"{n}.jsonl") for n, case in enumerate((HARMLESS, HARMFUL, few))]

    codes = [run_line(["backtest", str(path)]) for path in paths]

    assert codes == [0, 5, 6]


def test_an_invalid_recording_exits_as_an_undecided_one(tmp_path: Path) -> None:
    rows = [{"t_s": 1000 + n, "arm": 0, "w": 0.5, "assigned_by": "request", "error": 0} for n in range(1500)]
    path = tmp_path / "nobody.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert run_line(["backtest", str(path), "--allow-unjudged", "a test", "-o", "json"]) == 6


@pytest.mark.slow
def test_table_starts_with_the_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backtest(str(write(HARMFUL, tmp_path / "e.jsonl")))

    assert capsys.readouterr().out.startswith("ROLLBACK by error after ")


@pytest.mark.slow
def test_policy_option_accepts_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backtest(str(write(HARMLESS, tmp_path / "e.jsonl")), "-o", "json", "--policy", "strict")

    assert json.loads(capsys.readouterr().out)["policy"] == "strict"


@pytest.mark.parametrize(("name", "starts"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
@pytest.mark.slow
def test_plot_format_follows_the_suffix(tmp_path: Path, name: str, starts: bytes) -> None:
    plot_trace(traced(HARMFUL.name), result(HARMFUL.name), tmp_path / name)

    assert (tmp_path / name).read_bytes().startswith(starts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"t_s": 1, "unit": "a", "arm": 0, "w": 1.5, "assigned_by": "request", "error": 0}\n',
            "w 1.5 in line 1",
        ),
        ('{"t_s": 1, "unit": "a", "arm": 0, "w": 0.5, "assigned_by": "request"}\n', "no column is gated"),
        (
            '{"t_s": 1, "unit": "a", "arm": 0, "w": 0.5, "assigned_by": "request", "latency_ms": -1}\n',
            "latency_ms -1",
        ),
    ],
)
def test_invalid_evidence_is_bad_input_with_the_file_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(content)

    with pytest.raises(BadInput, match=rf"e\.jsonl: .*{message}"):
        backtest(str(path))


def test_an_unknown_plot_format_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"p\.gif ends in \.gif; give a \.png or \.svg"):
        backtest(str(tmp_path / "nowhere.jsonl"), "--plot", str(tmp_path / "p.gif"))


@pytest.mark.slow
def test_trace_crosses_its_limit_where_the_gate_decided() -> None:
    fine = trace(columns(HARMFUL), points=400)
    gates = result(HARMFUL.name).gates
    decided = {r.gate: r.decided_at_s for r in gates if r.side == "rollback" and r.verdict is Verdict.FAIL}

    for gate, at_s in decided.items():
        first = int(np.argmax(fine.log_e[gate] >= fine.limit[gate]))
        assert at_s is not None
        assert fine.t_s[first - 2] <= at_s <= fine.t_s[first]


def test_a_trace_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="points 1 is below 2"):
        trace(columns(HARMLESS), points=1)


WITH_LATENCY = Case("backtest range", "no_harm", canary_requests=400, metrics=("latency",))


def range_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    backtest(
        str(write(WITH_LATENCY, tmp_path / "e.jsonl")), "-o", "json", "--range", "latency_ms", *arguments
    )
    answer = json.loads(capsys.readouterr().out)["observed_range"]
    return [percentile["verdict"] for percentile in answer["percentiles"]]


@pytest.mark.slow
def test_a_canary_inside_the_observed_range_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert range_verdicts(tmp_path, capsys, "--window", "60s") == ["PASS", "PASS", "PASS"]


@pytest.mark.slow
def test_a_range_of_too_few_windows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        BadInput, match="--range latency_ms: windows of 36000 s that hold 50 answers: 1, needed 3"
    ):
        range_verdicts(tmp_path, capsys, "--window", "10h")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--since", "yesterday"], "--since 'yesterday' is not a time"),
        (["--window", "wide"], "--window 'wide'"),
    ],
)
@pytest.mark.slow
def test_malformed_dates_and_windows_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        range_verdicts(tmp_path, capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1777593600", 1777593600.0), ("2026-05-01", 1777593600.0), ("2026-05-01T02:00+02:00", 1777593600.0)],
)
def test_dates_without_a_zone_are_utc(text: str, seconds: float) -> None:
    assert parse_time("--since", text) == seconds


@pytest.mark.slow
def test_a_range_of_a_metric_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match="--range error has no range: only times, tokens and costs do; of these the file has latency_ms",
    ):
        backtest(str(write(HARMLESS, tmp_path / "e.jsonl")), "--range", "error")


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def plotted(shown: Trace, judged: BacktestResult, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The saved figure."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    plot_trace(shown, judged, Path("not_written.png"))
    return saved[0]


def vertical_lines(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]


@pytest.mark.parametrize("case", [HARMFUL, HARMLESS])
@pytest.mark.slow
def test_plot_marks_the_decision_with_its_reason_in_a_distinct_colour(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = result(case.name)
    figure = plotted(traced(case.name), judged, monkeypatch)
    reason = "rollback by error" if case is HARMFUL else "promote: all proven"

    assert f"{reason}\nafter {judged.canary_requests} canary requests" in texts(figure)
    for axes in figure.axes:
        [mark] = vertical_lines(axes)
        others = {line.get_color() for line in axes.lines if line is not mark}
        assert mark.get_color() not in others


@pytest.mark.slow
def test_plot_shows_each_proof_reaching_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = result(HARMLESS.name)
    proof = plotted(traced(HARMLESS.name), judged, monkeypatch).axes[1]
    peaks = {line.get_label(): np.max(line.get_ydata()) for line in proof.lines}

    assert all(peaks[name] >= 1.0 for name in judged.proofs)


@pytest.mark.slow
def test_plot_of_invalid_evidence_has_the_reason_and_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    data = columns(HARMLESS)
    data["arm"] = np.zeros_like(data["arm"])
    figure = plotted(trace(data), run(data), monkeypatch)

    assert "INVALID, policy default: the canary has no requests" in texts(figure)
    assert not any(vertical_lines(axes) for axes in figure.axes)


@pytest.mark.slow
def test_plot_note_counts_the_points_and_names_the_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, one, plot = write(HARMLESS, tmp_path / "e.jsonl"), tmp_path / "one.jsonl", str(tmp_path / "p.png")
    one.write_text(whole.read_text().splitlines()[0] + "\n")
    backtest(str(one), "--plot", plot)
    backtest(str(whole), "--plot", plot)
    printed = capsys.readouterr().err.replace("\n", "")

    assert "(1 point of evidence, invalid: no decision to mark)" in printed
    assert "points of evidence, promote marked)" in printed


@pytest.mark.slow
def test_the_sample_ratio_gate_needs_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backtest(str(write(HARMLESS, tmp_path / "e.jsonl")))
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("served_share")
    ]

    assert "proven:" not in line


@pytest.mark.slow
def test_a_rollback_says_what_is_wrong_with_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Draws of single requests, given as draws of users: their arms contradict the users' own buckets."""
    rng = np.random.default_rng(3)
    arm = rng.random(4000) < 0.2
    rows = [
        {
            "t_s": i,
            "unit": f"u{i % 1500}",
            "arm": int(of),
            "w": 0.2,
            "error": int(rng.random() < (0.3 if of else 0.01)),
        }
        for i, of in enumerate(arm)
    ]
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    code = run_line(["backtest", str(path), "--allow-unjudged", "errors alone"])

    shown = capsys.readouterr().out
    assert code == 5
    assert shown.startswith("ROLLBACK by error")
    assert "but the split is in doubt: " in shown
    assert "sticky draws contradict their own bucket" in shown
