"""`canaryctl backtest` on files: the decision, the picture, and one line for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from benchmarks.gate_traffic import Behaviour, Case, simulate
from controller.cli.backtest import register
from controller.cli.evidence_plot import draw_trace
from controller.cli.observed import moment_s
from controller.errors import BadInput
from evaluation.offline.backtest import run
from evaluation.offline.trace import trace
from evaluation.report import Verdict

HARM = Case("backtest harm", "rollback", Behaviour(error=0.2), canary_requests=300)
FINE = Case("backtest fine", "no_harm", canary_requests=600)


def columns(case: Case) -> dict[str, np.ndarray]:
    return {name: np.asarray(column) for name, column in simulate(case, 0).columns.items()}


def written(case: Case, path: Path) -> Path:
    got = columns(case)
    rows = zip(*(column.tolist() for column in got.values()), strict=True)
    path.write_text("".join(json.dumps(dict(zip(got, row, strict=True))) + "\n" for row in rows))
    return path


def ask(*arguments: str) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    app(args=["backtest", *arguments], standalone_mode=False)


def test_the_json_says_what_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(str(written(HARM, tmp_path / "e.jsonl")), "-o", "json")
    got = json.loads(capsys.readouterr().out)
    expected = run(columns(HARM))

    assert (got["decision"], got["metric"]) == ("rollback", "error")
    assert got["canary_requests"] == expected.canary_requests
    assert got["log_e"] == dict(expected.log_e)


def test_the_table_begins_with_the_decision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(str(written(HARM, tmp_path / "e.jsonl")))

    assert capsys.readouterr().out.startswith("ROLLBACK by error after ")


def test_a_policy_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(str(written(FINE, tmp_path / "e.jsonl")), "-o", "json", "--policy", "strict")

    assert json.loads(capsys.readouterr().out)["policy"] == "strict"


@pytest.mark.parametrize(("name", "starts"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_the_picture_is_written_in_the_format_of_its_name(tmp_path: Path, name: str, starts: bytes) -> None:
    got = columns(HARM)
    draw_trace(trace(got), run(got), tmp_path / name)

    assert (tmp_path / name).read_bytes().startswith(starts)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"t_s": 1, "unit": "a", "arm": 0, "w": 1.5, "assigned_by": "request", "error": 0}\n',
            "w 1.5 in row 0",
        ),
        ('{"t_s": 1, "unit": "a", "arm": 0, "w": 0.5, "assigned_by": "request"}\n', "no column is gated"),
        (
            '{"t_s": 1, "unit": "a", "arm": 0, "w": 0.5, "assigned_by": "request", "latency_ms": -1}\n',
            "latency_ms -1",
        ),
    ],
)
def test_what_cannot_be_evidence_is_bad_input_with_its_file(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(content)

    with pytest.raises(BadInput, match=rf"e\.jsonl: .*{said}"):
        ask(str(path))


def test_a_picture_of_another_format_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"p\.gif ends in \.gif; give a \.png or \.svg"):
        ask(str(tmp_path / "nowhere.jsonl"), "--plot", str(tmp_path / "p.gif"))


def test_the_trace_crosses_its_limit_where_the_gate_decided() -> None:
    got = columns(HARM)
    drawn = trace(got, points=400)
    decided = {
        r.gate: r.decided_at_s for r in run(got).gates if r.side == "rollback" and r.verdict is Verdict.FAIL
    }

    for gate, at_s in decided.items():
        first = int(np.argmax(drawn.log_e[gate] >= drawn.limit[gate]))
        assert at_s is not None
        assert drawn.t_s[first - 2] <= at_s <= drawn.t_s[first]


def test_a_trace_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="points 1 is below 2"):
        trace(columns(FINE), points=1)


LONG = Case("backtest range", "no_harm", canary_requests=400, metrics=("latency",))


def ranged(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    ask(str(written(LONG, tmp_path / "e.jsonl")), "-o", "json", "--range", "latency_ms", *arguments)
    answer = json.loads(capsys.readouterr().out)["observed_range"]
    return [one["verdict"] for one in answer["percentiles"]]


def test_a_canary_inside_the_observed_range_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ranged(tmp_path, capsys, "--window", "60s") == ["PASS", "PASS", "PASS"]


def test_a_range_of_too_few_windows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="--range latency_ms: 1 windows of 36000 s hold 50 answers, needed 3"):
        ranged(tmp_path, capsys, "--window", "10h")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--since", "yesterday"], "--since 'yesterday' is no time"), (["--window", "wide"], "--window 'wide'")],
)
def test_dates_that_are_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        ranged(tmp_path, capsys, *arguments)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1777593600", 1777593600.0), ("2026-05-01", 1777593600.0), ("2026-05-01T02:00+02:00", 1777593600.0)],
)
def test_dates_are_read_as_utc_unless_they_say_otherwise(text: str, seconds: float) -> None:
    assert moment_s("--since", text) == seconds


def test_a_range_of_what_is_no_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--range error is not a column of values; the file has latency_ms"):
        ask(str(written(FINE, tmp_path / "e.jsonl")), "--range", "error")


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(Text))


def pictured(got: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure that was saved."""
    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: seen.append(figure))
    draw_trace(trace(got), run(got), tmp_path / "p.png")
    return seen[0]


def vertical(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]


@pytest.mark.parametrize("case", [HARM, FINE])
def test_a_decision_is_marked_by_what_and_when_in_a_colour_of_its_own(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = columns(case)
    result = run(got)
    figure = pictured(got, tmp_path, monkeypatch)
    said = "rollback by error" if case is HARM else "promote: all proven"

    assert f"{said}\nafter {result.canary_requests} canary requests" in texts(figure)
    for axes in figure.axes:
        [mark] = vertical(axes)
        others = {line.get_color() for line in axes.lines if line is not mark}
        assert mark.get_color() not in others


def test_the_evidence_of_the_proofs_is_drawn_and_reaches_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = columns(FINE)
    proof = pictured(got, tmp_path, monkeypatch).axes[1]
    peaks = {line.get_label(): np.max(line.get_ydata()) for line in proof.lines}

    assert all(peaks[name] >= 1.0 for name in run(got).proofs)


def test_what_is_invalid_has_no_mark_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = columns(FINE)
    got["arm"] = np.zeros_like(got["arm"])
    figure = pictured(got, tmp_path, monkeypatch)

    assert "INVALID, policy default: the canary has no requests" in texts(figure)
    assert not any(vertical(axes) for axes in figure.axes)


def test_what_was_drawn_is_said_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, one, picture = written(FINE, tmp_path / "e.jsonl"), tmp_path / "one.jsonl", str(tmp_path / "p.png")
    one.write_text(whole.read_text().splitlines()[0] + "\n")
    ask(str(one), "--plot", picture)
    ask(str(whole), "--plot", picture)
    said = capsys.readouterr().err.replace("\n", "")

    assert "(1 point of evidence, INVALID: there is no decision to mark)" in said
    assert "points of evidence, promote marked)" in said


def test_the_split_is_not_asked_for_a_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(str(written(FINE, tmp_path / "e.jsonl")))
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("served_share")
    ]

    assert "is it proven?" not in line
