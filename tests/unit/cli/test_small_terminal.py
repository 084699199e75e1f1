"""`watch` in a small terminal: what decides stays visible, what is undecided is folded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from controller.cli.live_frame import fitted, frame
from controller.cli.render import service_detail, stages_line
from controller.rollout.observation import EvidenceStatus, SplitStatus, VersionPhase, VersionStatus
from controller.rollout.state import Cause, CauseKind, Phase, RolloutState
from controller.views.models import ServiceView
from controller.views.rollout import rollout_view, service_view
from evaluation.report import GateReport, Source, Verdict
from tests.fakes.rollouts import with_log_line
from tests.fakes.view_maker import GATE, in_stage

NAMES = (
    "error", "rejected", "truncated", "empty", "latency_shape", "ttft_shape", "tokens_alarm", "quality",
    "hallucination",
)  # fmt: skip
LOST = "connection to the controller lost; retrying"


def gates(**verdicts: Verdict) -> tuple[GateReport, ...]:
    """A rollback side of each, and a promotion side of three."""
    found = []
    for name in NAMES:
        statistic = "p50" if "shape" in name else "mean"
        shown = replace(
            GATE,
            gate=name,
            side="rollback",
            statistic=statistic,
            verdict=verdicts.get(name, Verdict.UNDECIDED),
        )
        found.append(shown)
        if name in ("error", "quality", "hallucination"):
            found.append(replace(shown, side="promotion", verdict=Verdict.UNDECIDED))
    return tuple(found)


def state() -> RolloutState:
    found = in_stage()
    for number in range(9):
        text = f"event {number} " + "and what is to be said of it, which is more than a line holds " * 2
        found = with_log_line(found, text, 100.0 + number)
    return found


def service() -> ServiceView:
    versions = (
        VersionStatus("v-old", VersionPhase.READY, 1, 0),
        VersionStatus("v-new", VersionPhase.READY, 1, 0),
    )
    split = SplitStatus(1, 1, "v-old", "v-new", 1000, True)
    return service_view(
        "chat", url="http://test/chat/v1", stable="v-old", split=split, versions=versions, rollout=None
    )


def drawn(width: int, height: int, *, notice: str | None = None, **verdicts: Verdict) -> list[str]:
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=gates(**verdicts), canary_requests=29)
    view = rollout_view(state(), evidence)
    console = Console(width=width, height=height, highlight=False, color_system=None, legacy_windows=False)
    with console.capture() as printed:
        console.print(frame(view, service(), console=console, notice=notice))
    return printed.get().splitlines()


def test_stable_stands_beside_a_canary_that_is_dead() -> None:
    """Its row was left out where the frame is small."""
    found = service()
    assert found.versions is not None
    dead = found.versions[1].model_copy(update={"phase": "loading", "ready_replicas": 0})
    found = found.model_copy(update={"versions": (found.versions[0], dead)})
    view = rollout_view(state(), EvidenceStatus(0, Verdict.UNDECIDED, gates=gates(), canary_requests=29))
    console = Console(width=80, height=18, highlight=False, color_system=None)
    with console.capture() as printed:
        console.print(frame(view, found, console=console, notice=None))

    lines = printed.get().splitlines()
    assert len(lines) <= 18
    assert [line.split()[1] for line in lines if " ready " in line or " loading " in line] == [
        "v-old",
        "v-new",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (80, 18), (60, 20), (200, 60)])
def test_the_frame_fits_and_keeps_what_decides(width: int, height: int) -> None:
    """It ended after six gates with `...`: no reason, no event, no notice."""
    lines = drawn(width, height, notice=LOST, error=Verdict.FAIL)
    text = "\n".join(lines)

    assert len(lines) <= height
    for needed in (LOST, "waiting for", "event 8", "stage 1 of 2", "FAIL"):
        assert needed in text, needed
    assert text.index(LOST) < text.index("stage 1 of 2")


@pytest.mark.slow
def test_undecided_gates_are_named_in_a_line_where_their_rows_do_not_fit() -> None:
    text = " ".join(" ".join(line.strip("│ ") for line in drawn(80, 24)).split())

    assert "undecided: rejected, truncated, empty, latency_shape, ttft_shape, tokens_alarm" in text
    assert "UNDECIDED" not in " ".join(line for line in drawn(80, 18) if "rejected" in line)


@pytest.mark.slow
def test_no_row_of_the_gates_takes_two_lines_at_80_columns() -> None:
    lines = drawn(80, 60)

    for name in NAMES:
        rows = [line for line in lines if line.startswith(f"│ {name} ") and "UNDECIDED" in line]
        assert ["400/40" in row for row in rows] == [True]
    assert not any(line.strip("│ ").startswith("UNDECIDED") for line in lines)


@pytest.mark.slow
def test_everything_is_shown_where_it_fits() -> None:
    text = "\n".join(drawn(100, 60))

    assert "undecided:" not in text
    assert all(name in text for name in (*NAMES, "canary 10 %", "v-old", "ready", "event 0"))


def test_an_invalid_or_silent_gate_is_never_folded() -> None:
    evidence = EvidenceStatus(
        0,
        Verdict.INVALID,
        gates=tuple(
            replace(one, source=Source.STOPPED) if one.gate == "empty" else one
            for one in gates(truncated=Verdict.INVALID)
        ),
    )
    console = Console(width=80, height=24, color_system=None)
    with console.capture() as printed:
        console.print(frame(rollout_view(state(), evidence), service(), console=console, notice=None))
    text = printed.get()

    assert "INVALID" in text
    assert "NOT JUDGED" in text


def test_status_keeps_a_line_for_each_gate_at_80_columns_too() -> None:
    view = service().model_copy(
        update={"rollout": rollout_view(state(), EvidenceStatus(0, Verdict.UNDECIDED, gates=gates()))}
    )
    console = Console(width=80, color_system=None)
    with console.capture() as printed:
        console.print(service_detail(view, is_wide=False, columns=80))

    assert not any(line.strip().startswith("UNDECIDED") for line in printed.get().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(("is_terminal", "height"), [(True, 24), (True, 80), (False, 24)])
def test_status_keeps_who_serves_in_sight_on_a_low_terminal(is_terminal: bool, height: int) -> None:
    view = rollout_view(state(), EvidenceStatus(0, Verdict.UNDECIDED, gates=gates(), canary_requests=29))
    shown = service().model_copy(update={"rollout": view})
    console = Console(width=80, height=height, force_terminal=is_terminal, color_system=None)
    with console.capture() as printed:
        console.print(fitted(shown, console=console, is_wide=False))
    lines = printed.get().splitlines()

    assert any(line.startswith("chat  serving v-old") for line in lines)
    is_short = is_terminal and height == 24
    assert (len(lines) <= 22, "all of it: canaryctl status chat | cat" in lines[-1]) == (is_short, is_short)


def test_an_ended_rollout_says_why_above_its_gates_and_gives_open_ones_no_row() -> None:
    """At 3 a.m. twenty rows of undecided alarms stood above the one line that says why."""
    cause = Cause(CauseKind.GATE, "error above 1.25x shown", "gate")
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=gates(error=Verdict.FAIL), canary_requests=29)
    view = rollout_view(in_stage(phase=Phase.ROLLED_BACK, cause=cause), evidence)
    shown = service().model_copy(update={"rollout": view})
    console = Console(width=200, color_system=None)
    with console.capture() as printed:
        console.print(service_detail(shown, is_wide=False, columns=200))
    lines = printed.get().splitlines()

    cause_at = next(n for n, line in enumerate(lines) if line.startswith("rolled back by gate: error above"))
    table_at = next(n for n, line in enumerate(lines) if line.startswith("GATE"))
    assert cause_at < table_at
    assert not any(line.startswith("truncated") for line in lines)
    assert any(line.startswith("undecided: rejected, truncated") for line in lines)


def test_stages_that_never_come_are_not_shown_as_ahead() -> None:
    view = rollout_view(state(), EvidenceStatus(0, Verdict.UNDECIDED, gates=(), canary_requests=29))
    ended = view.model_copy(update={"phase": "rolled_back", "is_final": True})

    assert "○ 100 %" in stages_line(view).plain
    assert "○" not in stages_line(ended).plain
    assert stages_line(ended).plain.endswith("– 100 %")
