"""No departure takes away the only version that answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import CancelVersion, SetSplit, StopVersion
from controller.rollout.observation import CommandKind, GuardStatus
from controller.rollout.state import DepartureStep, Phase
from evaluation.report import GateReport, Verdict
from tests.fakes.driven import NEW, OLD, PLAN, Driven, evidence

SLOW = GateReport("latency_shape", "latency_ms", "rollback", Verdict.FAIL, 7.0, 5.8, "slower", 80, 900)
WRONG = replace(SLOW, gate="error", metric="error", reason="14 % against 3 %")


def stops(driven: Driven) -> list[str]:
    return [one.version for one in driven.wanted if isinstance(one, StopVersion | CancelVersion)]


def at_half() -> Driven:
    driven = Driven()
    driven.until(Phase.STAGE)
    driven.ticks(5)
    driven.ready = {OLD: 0, NEW: 1}
    driven.wanted.clear()
    return driven


def test_a_slow_canary_keeps_its_weight_while_stable_has_no_replica() -> None:
    driven = at_half()
    driven.seen = evidence(Verdict.FAIL, rollback=SLOW)

    driven.ticks(120)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.ROLLING_BACK, 5000)
    assert not [one for one in driven.wanted if isinstance(one, SetSplit)]
    assert stops(driven) == []
    assert [page for page in driven.pages if "v-old has no ready replica" in page and "--direct" in page]

    driven.ready = {OLD: 1, NEW: 1}
    driven.ticks(20)

    assert (driven.state.phase, driven.state.serving) == (Phase.ROLLED_BACK, OLD)
    assert driven.plane.split is not None
    assert (driven.plane.split.stable, driven.plane.split.weight_bp) == (OLD, 0)


@pytest.mark.parametrize("phase", [Phase.STAGE, Phase.BAKING])
def test_a_persons_rollback_waits_for_stable_too(phase: Phase) -> None:
    driven = Driven()
    driven.until(phase)
    driven.ticks(3)
    weight_bp = driven.state.weight_bp
    driven.ready = {OLD: 0}
    driven.command(CommandKind.ROLLBACK)
    driven.wanted.clear()

    driven.ticks(2000)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.ROLLING_BACK, weight_bp)
    assert stops(driven) == []
    assert "canaryctl rollback chat --direct" in driven.lines
    assert "still has no ready replica after" in driven.lines  # paged again at the limit, and still kept


def test_harm_in_the_answers_leaves_at_once_and_stays_loaded() -> None:
    """Nobody can say that wrong answers are better than none; but what is under way may end."""
    driven = at_half()
    driven.seen = evidence(Verdict.FAIL, rollback=WRONG)

    driven.ticks(60)

    assert driven.state.weight_bp == 0
    assert driven.plane.split is not None
    assert driven.plane.split.canary is None
    assert stops(driven) == []
    assert len([page for page in driven.pages if "no version answers" in page]) == 1

    driven.ready = {OLD: 1}
    driven.ticks(20)

    assert driven.state.phase is Phase.ROLLED_BACK


def test_it_stays_loaded_for_a_load_time_only() -> None:
    """It serves nobody, and stable may need its memory."""
    driven = at_half()
    driven.seen = evidence(Verdict.FAIL, rollback=WRONG)

    driven.ticks(int(PLAN.load_s) + 60)

    assert driven.state.phase is Phase.ROLLED_BACK
    assert stops(driven)[-1] == NEW


def test_a_waiting_canary_that_does_harm_in_its_answers_leaves() -> None:
    driven = at_half()
    driven.seen = evidence(Verdict.FAIL, rollback=SLOW)
    driven.ticks(5)
    driven.seen = evidence(Verdict.FAIL, rollback=SLOW, guards=(GuardStatus("errors", "12 of 20"),))

    driven.tick()

    assert driven.state.weight_bp == 0


def test_a_waiting_canary_leaves_by_a_direct_rollback() -> None:
    driven = at_half()
    driven.command(CommandKind.ROLLBACK)
    driven.ticks(5)
    assert driven.state.weight_bp == 5000
    assert driven.plane.split is not None
    driven.plane.split = replace(driven.plane.split, canary=None, weight_bp=0, tombstoned=("r-1",))

    driven.tick()

    assert driven.state.weight_bp == 0


@pytest.mark.parametrize("known", [False, True])
def test_what_is_unknown_or_answers_neither_waits_for_nothing(known: bool) -> None:
    driven = at_half()
    if known:
        driven.ready = {OLD: 0, NEW: 0}
        driven.ticks(int(PLAN.unready_s) - 1)  # a blink decides nothing
    else:
        driven.fleet_readable = False
    driven.command(CommandKind.ROLLBACK)

    driven.tick()
    if known:
        driven.tick()

    assert driven.state.weight_bp == 0
    assert driven.state.departure is not None
    assert driven.state.departure.step is DepartureStep.SHIFT


def test_the_old_version_is_not_unloaded_while_the_new_one_has_no_replica() -> None:
    driven = Driven()
    driven.until(Phase.UNLOADING)
    driven.ready = {NEW: 0}
    driven.wanted.clear()

    driven.ticks(2000)

    assert driven.state.phase is Phase.UNLOADING
    assert stops(driven) == []
    assert "canaryctl rollback chat" in driven.lines

    driven.command(CommandKind.ROLLBACK)
    driven.ready = {}
    driven.ticks(20)

    assert (driven.state.phase, driven.state.serving) == (Phase.ROLLED_BACK, OLD)
