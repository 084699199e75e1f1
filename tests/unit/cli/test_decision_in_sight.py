"""In a terminal of 80x24 the decision stands on the screen when a command ends, and no word is cut."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Group
from rich.text import Text

from controller.ab.results import AbView
from controller.cli import ab_show, output, render, render_decision, render_plan
from controller.cli.main import run
from controller.cli.plain_console import PlainConsole
from controller.errors import BadInput
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import Cause, CauseKind, Phase
from controller.views.models import ForecastView, PlanView, ServiceView, StageView
from controller.views.rollout import rollout_view, service_view
from evaluation.ab.comparison import AbVerdict
from evaluation.report import Verdict
from tests.fakes.rollouts import with_log_line
from tests.fakes.view_maker import GATE, in_stage

WIDTH, HEIGHT = 80, 24


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal of that size."""
    written = io.StringIO()

    def console(*, stderr: bool = False) -> PlainConsole:
        return PlainConsole(
            file=written, width=WIDTH, height=HEIGHT, force_terminal=True, color_system=None, _environ={}
        )

    monkeypatch.setattr(output, "console", console)
    return written


def last_lines(screen: io.StringIO) -> str:
    """What stands above the next step and the prompt, of a screen that has scrolled to its end."""
    return "\n".join(screen.getvalue().splitlines()[-(HEIGHT - output.LINES_AFTER) :])


def test_a_decision_that_scrolled_away_is_shown_again(screen: io.StringIO) -> None:
    """The decision stood in the first line, and the gates took the screen."""
    lines = [Text("ROLLBACK by error"), *(Text(f"row {n}") for n in range(30))]
    output.print_decided(Group(*lines), "ROLLBACK by error")

    assert screen.getvalue().splitlines()[-1].rstrip() == "ROLLBACK by error"


def test_a_decision_that_is_in_sight_is_shown_once(screen: io.StringIO) -> None:
    output.print_decided(Group(Text("ROLLBACK by error"), Text("row")), "ROLLBACK by error")

    assert screen.getvalue().count("ROLLBACK") == 1


def service() -> ServiceView:
    state = in_stage(phase=Phase.ROLLED_BACK, cause=Cause(CauseKind.USER, "error above 1.25x shown", "gate"))
    for number in range(20):
        state = with_log_line(state, f"event {number} " + "and more of it " * 8, 100.0 + number)
    gates = tuple(replace(GATE, gate=f"gate_{n}") for n in range(8))
    view = rollout_view(state, EvidenceStatus(0, Verdict.UNDECIDED, gates=gates))
    shown = service_view(
        "chat", url="http://test/chat/v1", stable="v-old", split=None, versions=(), rollout=None
    )
    return shown.model_copy(update={"rollout": view})


def test_a_long_status_ends_with_how_the_rollout_stands(screen: io.StringIO) -> None:
    view = service()
    output.print_decided(
        render.service_detail(view, is_wide=False, columns=WIDTH), render_decision.service_decision(view)
    )

    assert "chat serving v-old; r-1 rolled back" in last_lines(screen)


def test_a_long_history_ends_with_the_newest_rollout(
    screen: io.StringIO,
) -> None:
    rollout = service().rollout
    assert rollout is not None
    output.print_decided(
        render.history_list([rollout] * 9, is_wide=False),
        f"newest: {render_decision.rollout_decision(rollout)}",
    )

    assert "newest: r-1 rolled back" in last_lines(screen)


def plan() -> PlanView:
    stages = tuple(
        StageView(
            number=n, weight_bp=100 * n, duration_s=60.0, min_canary=100, deadline_s=600.0, replicas=1,
            status="ahead",
        )
        for n in range(1, 9)
    )  # fmt: skip
    forecast = tuple(
        ForecastView(
            number=n, weight_bp=100, proven_ratio=0.9, requests_median=50.0, requests_p90=60.0,
            refusal=None, seconds_median=60.0, seconds_p90=90.0, slowest_gate="error", proven_runs=9, runs=10,
            simulated_requests=None, finds=("error 3x", "quality 0.05"),
        )
        for n in range(1, 9)
    )  # fmt: skip
    return PlanView(
        service="chat", stable="v-old", canary="v-new", risk="high", reasons=("other tensors",),
        warnings=("a warning",), stages=stages, holdback_bp=500, bake_s=60.0, shortest_s=600.0, alpha=0.01,
        gates=(), fits=True, capacity="fits", requests_per_s=5.0, forecast=forecast,
    )  # fmt: skip


def test_a_long_plan_ends_with_what_a_reader_decides_by(screen: io.StringIO) -> None:
    view = plan()
    output.print_decided(render_plan.plan_detail(view, is_wide=False), render_plan.decision(view))

    text = " ".join(last_lines(screen).split())
    assert "chat: risk high, 8 stages, minimum 10 min, expected 8 min before the bake; 1 warning" in text


def test_the_verdict_of_a_test_stands_in_a_line() -> None:
    assert ab_show.headline(ab_view()).plain.startswith("B IS BETTER  quality (higher is better), chat")


def ab_view() -> AbView:
    fields: dict[str, Any] = dict.fromkeys(AbView.model_fields, True)
    return AbView.model_construct(
        **fields
        | {
            "verdict": AbVerdict.B_BETTER.value,
            "metric": "quality",
            "higher_is_better": True,
            "service": "chat",
        }
    )


def recording(path: Path) -> Path:
    rng = np.random.default_rng(3)
    with path.open("w") as file:
        for n in range(1500):
            arm = int(rng.random() < 0.5)
            row = {"t_s": 1e6 + n, "arm": arm, "w": 0.5, "assigned_by": "request"}
            row |= {"error": int(rng.random() < (0.3 if arm else 0.02)), "latency_ms": 100 + n % 50}
            row |= {"quality": 0.5, "ttft_ms": 10 + n % 9, "tokens": 5 + n % 7, "cost": 1.0}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.slow
def test_a_long_backtest_ends_with_its_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: io.StringIO
) -> None:
    monkeypatch.setattr("controller.cli.backtest.console", output.console)
    code = run(["backtest", str(recording(tmp_path / "e.jsonl"))])

    assert code == 5
    assert "ROLLBACK by error after" in last_lines(screen)
    assert max(len(line.rstrip()) for line in screen.getvalue().splitlines()) <= WIDTH


def words_of(lines: Iterable[str]) -> list[str]:
    return [word for line in lines for word in line.split()]


def narrow_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called within a test: `capsys` replaces stderr before."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(os.environ, "COLUMNS", str(WIDTH))
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")


def test_a_note_is_wrapped_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The terminal cut `docs/policy.md` in two."""
    narrow_stderr(monkeypatch)
    text = "next: --plot FILE.png shows when; a harm you accept is a gate's tolerance (docs/policy.md)"
    output.note(text)
    lines = capsys.readouterr().err.splitlines()

    assert max(map(len, lines)) <= WIDTH
    assert words_of(lines) == text.split()


def test_an_error_is_wrapped_between_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow_stderr(monkeypatch)
    text = "policy.stages.0.min_canary 100000 at 5 % within the deadline, 1 min, needs 33333 requests/s"
    output.print_error(BadInput(text), output.Output.TABLE)
    lines = capsys.readouterr().err.splitlines()

    assert max(map(len, lines)) <= WIDTH
    assert words_of(lines) == ["error:", *text.split()]


def test_a_document_for_programs_is_never_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow_stderr(monkeypatch)
    text = "a message that is much longer than a line of a terminal of eighty columns may ever be, in all"
    output.print_error(BadInput(text), output.Output.JSON)

    assert json.loads(capsys.readouterr().err)["detail"] == text


def test_a_note_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("word " * 60)

    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_rollout_waits_for_nothing_else_while_the_controller_can_decide_nothing(
    screen: io.StringIO,
) -> None:
    """On a full disk `waiting for 59 min at 10 %` and a deadline stood under `can decide nothing`."""
    view = stuck("database is full; free disk space")
    output.print_decided(render.service_detail(view, is_wide=False, columns=WIDTH), "")
    text = screen.getvalue()

    assert "the controller can decide nothing: database is full; free disk space" in text
    assert [line.rstrip() for line in text.splitlines() if "waiting for" in line] == [
        "waiting for the controller, which can decide nothing"
    ]
    assert "deadline of the stage" not in text
    output.print_decided(render.service_detail(stuck(None), is_wide=False, columns=WIDTH), "")
    assert "deadline of the stage" in screen.getvalue()


def test_programs_are_told_the_same() -> None:
    rollout = stuck("database is full").rollout

    assert rollout is not None
    assert (rollout.waiting_for, rollout.deadline_at_s) == (
        ("the controller, which can decide nothing",),
        None,
    )


def stuck(problem: str | None) -> ServiceView:
    """A service in its first stage, whose controller has this problem."""
    running = rollout_view(in_stage(deadline_at_s=500.0), None)
    return service_view(
        "chat", url="http://x", stable="v-old", split=None, versions=(), rollout=running, problem=problem
    )
