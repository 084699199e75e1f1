"""No departure takes away the only version that answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import CancelVersion, SetSplit, StopVersion
from controller.rollout.observation import CommandKind, GuardStatus
from controller.rollout.plan import Plan
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


@pytest.mark.slow
@pytest.mark.sample(1)
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


@pytest.mark.slow
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


def test_the_old_version_answers_again_when_the_new_one_is_lost_before_it_is_unloaded() -> None:
    """Drained, it is still loaded, and nobody else could answer."""
    driven = Driven()
    driven.until(Phase.UNLOADING)
    driven.tick()
    driven.ready = {NEW: 0}
    driven.wanted.clear()

    driven.ticks(4)
    assert driven.state.phase is Phase.UNLOADING  # a fleet actor that was restarted shows nobody
    driven.ticks(6)
    assert driven.plane.split is not None
    assert driven.state.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
    assert driven.plane.split.stable == OLD

    driven.ticks(60)
    assert (driven.state.phase, driven.state.serving) == (Phase.ROLLED_BACK, OLD)
    assert OLD not in stops(driven)
    assert "v-new has no ready replica, and v-old is still loaded" in driven.lines


def test_an_undo_goes_back_no_sooner_after_its_bake_than_in_it() -> None:
    driven = Driven(Plan("none", (), (), holdback_bp=0, bake_s=60.0, undo=True))
    driven.until(Phase.UNLOADING)
    driven.tick()
    driven.ready = {NEW: 0}
    driven.ticks(int(PLAN.unready_s) - 2)

    assert driven.state.phase is Phase.UNLOADING
    assert driven.ticks(5).phase is Phase.ROLLING_BACK


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("holdback_bp", [0, 500])
def test_a_rollback_out_of_the_bake_ends_alike_whatever_was_held_back(holdback_bp: int) -> None:
    """All traffic on the canary is no promotion: harm ends its traffic, and it never becomes stable."""
    plan = replace(PLAN, holdback_bp=holdback_bp, bake_s=7200.0)
    harmed, ended, late = Driven(plan), Driven(plan), Driven(plan)
    for driven in (harmed, ended, late):
        driven.until(Phase.BAKING)
        driven.ready = {OLD: 0, NEW: 1}
        driven.ticks(5)
        driven.command(CommandKind.ROLLBACK)
        assert driven.ticks(5).weight_bp == plan.promoted_bp

    harmed.seen = evidence(Verdict.FAIL, guards=(GuardStatus("errors", "all"),))
    harmed.ticks(5)
    for _ in range(5):
        assert ended.plane.split is not None
        ended.plane.split = replace(ended.plane.split, tombstoned=("r-1",))
        ended.tick()
    late.ticks(int(PLAN.load_s) + 100)

    assert (harmed.state.weight_bp, ended.state.weight_bp) == (0, 0)
    assert (late.state.phase, late.state.serving, late.state.weight_bp) == (
        Phase.ROLLING_BACK,
        OLD,
        plan.promoted_bp,
    )


def test_a_rollback_out_of_unloading_publishes_the_new_version_alone_over_the_table_of_the_bake() -> None:
    """Decided before the table of the promotion was published, while the old version is lost."""
    driven = Driven(replace(PLAN, bake_s=20.0, holdback_bp=5000))
    driven.until(Phase.BAKING)
    driven.seen = evidence()
    while driven.state.phase is not Phase.UNLOADING:
        driven.tick()
    driven.ready = {OLD: 0, NEW: 1}
    driven.command(CommandKind.ROLLBACK)
    driven.actions = ()
    driven.ticks(10)

    split = driven.plane.split
    assert split is not None
    assert (driven.state.phase, split.stable, split.canary) == (Phase.ROLLING_BACK, NEW, None)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["fleet", "table"])
def test_an_undo_that_users_have_is_not_undone_by_what_cannot_be_read(what: str) -> None:
    driven = Driven(Plan("none", (), (), holdback_bp=0, bake_s=60.0, undo=True))
    driven.until(Phase.BAKING)
    driven.ticks(5)
    for _ in range(400):
        driven.fleet_readable = what != "fleet"
        if what == "table":
            driven.plane.split, driven.actions = None, ()
        driven.tick()
    assert driven.state.phase is Phase.BAKING
    assert "it stays; to go back all the same: canaryctl rollback chat" in driven.lines

    driven.fleet_readable, driven.seen = True, evidence()
    assert (driven.ticks(60).phase, driven.state.serving) == (Phase.SUCCEEDED, NEW)


def test_two_rollbacks_of_one_tick_are_both_in_the_log() -> None:
    driven = Driven()
    driven.until(Phase.PREFLIGHT)
    driven.command(CommandKind.ROLLBACK)
    driven.command(CommandKind.ROLLBACK)
    driven.tick()

    assert driven.state.is_final
    assert driven.lines.count("rollback requested by ann") == 2
    assert driven.state.commands_through == 2
