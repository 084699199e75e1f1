"""The last rise and the end of the bake wait for evidence, as a stage does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from controller.rollout.observation import CommandKind, EvidenceStatus, MirrorStatus
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import CauseKind, HoldKind, Phase
from controller.views.waiting import waiting_for
from evaluation.report import Source, Verdict
from tests.fakes.driven import PLAN, Driven, evidence
from tests.fakes.view_maker import GATE

PROVEN = replace(GATE, verdict=Verdict.PASS, last_value_s=60.0)
STOPPED = replace(PROVEN, source=Source.STOPPED)
BLIND: dict[str, Callable[[], EvidenceStatus | None]] = {
    "stopped": lambda: evidence(gates=(STOPPED,)),
    "invalid": lambda: evidence(Verdict.INVALID, missing=("error: 40% of values missing",)),
    "frozen": lambda: evidence(frozen=True),
    "unreadable": lambda: None,
}


def promoting(**plan: object) -> Driven:
    """A rollout that has just entered Promoting, its capacity ready."""
    driven = Driven(replace(PLAN, **plan))  # type: ignore[arg-type]
    driven.until(Phase.PROMOTING)
    return driven


def baking() -> Driven:
    driven = promoting()
    driven.until(Phase.BAKING)
    return driven


@pytest.mark.parametrize("kind", BLIND)
def test_without_evidence_the_last_rise_waits_and_goes_on_with_it(kind: str) -> None:
    driven = promoting()
    driven.seen = BLIND[kind]()

    driven.ticks(60)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.PROMOTING, 5000)
    assert len(waiting_for(driven.state, driven.seen, driven.plane.now_s)) == 2

    driven.seen = evidence(gates=(PROVEN,))
    driven.ticks(3)

    assert driven.state.phase is Phase.BAKING


@pytest.mark.parametrize("kind", BLIND)
def test_without_evidence_the_bake_does_not_end_and_ends_with_it(kind: str) -> None:
    driven = baking()
    driven.seen = BLIND[kind]()

    assert driven.ticks(int(PLAN.bake_s) + 60).phase is Phase.BAKING

    driven.seen = evidence(gates=(PROVEN,))

    assert driven.ticks(2).phase is Phase.UNLOADING


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("start", [promoting, baking])
def test_a_promotion_does_not_wait_for_ever(start: Callable[[], Driven]) -> None:
    driven = start()
    driven.seen = evidence(gates=(STOPPED,))

    driven.ticks(1000)

    assert [hold.kind for hold in driven.state.holds] == [HoldKind.NOT_PROVEN]
    [hold] = driven.state.holds
    assert "quality stopped arriving" in hold.reason
    advice = "rolled back after 3 d of hold, or at once by: canaryctl rollback chat"
    assert f"held (not_proven): {hold.reason}; {advice}" in driven.lines

    driven.ticks(80, after_s=3600.0)

    assert driven.state.cause is not None
    assert (driven.state.phase, driven.state.cause.kind) == (Phase.ROLLED_BACK, CauseKind.NOT_PROVEN)


def test_missing_evidence_rolls_back_where_the_last_stage_says_so() -> None:
    stages = (replace(PLAN.stages[0], on_missing="rollback"),)
    driven = promoting(stages=stages, load_s=100.0)
    driven.seen = BLIND["invalid"]()

    driven.ticks(110)

    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.MISSING


def fleet(driven: Driven) -> None:
    driven.fleet_readable = False
    driven.tick()
    driven.fleet_readable = True


def table(driven: Driven) -> None:
    split, driven.plane.split = driven.plane.split, None
    driven.tick()
    driven.plane.split = split


def replica(driven: Driven) -> None:
    driven.ready["v-new"] = 0
    driven.tick()
    driven.ready["v-new"] = 1


def stable(driven: Driven) -> None:
    driven.ready["v-old"] = 0
    driven.tick()
    driven.ready["v-old"] = 1


def log(driven: Driven) -> None:
    seen, driven.seen = driven.seen, None
    driven.tick()
    driven.seen = seen


BLINKS = [fleet, table, replica, stable, log]


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("blink", BLINKS)
@pytest.mark.parametrize("at_s", [99, 100, 400])
def test_a_promotion_without_evidence_outlasts_a_tick_that_reads_nothing(
    blink: Callable[[Driven], None], at_s: int
) -> None:
    driven = promoting(load_s=100.0)
    driven.seen = BLIND["invalid"]()
    driven.ticks(at_s)
    blink(driven)

    assert driven.ticks(30).phase is Phase.PROMOTING

    driven.seen = evidence()

    assert driven.ticks(3).phase is Phase.BAKING


@pytest.mark.slow
@pytest.mark.sample(6)
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("blink", BLINKS)
@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.WARMING, Phase.SMOKE, Phase.STAGE, Phase.PROMOTING])
def test_a_paused_phase_outlasts_a_tick_that_reads_nothing(
    phase: Phase, blink: Callable[[Driven], None], resumed: bool
) -> None:
    """The person's pause alone keeps it past its deadline."""
    driven = Driven()
    driven.until(phase)
    driven.seen = evidence()
    driven.command(CommandKind.PAUSE)
    driven.ticks(100, after_s=10.0)
    if resumed:
        driven.tick(resumed=True)
        driven.ticks(100, after_s=10.0)
    blink(driven)

    assert driven.ticks(30).phase is phase
    assert not driven.pages

    driven.command(CommandKind.RESUME)

    assert driven.ticks(int(PLAN.bake_s) + 30).phase in (Phase.BAKING, Phase.UNLOADING, Phase.SUCCEEDED)


@pytest.mark.parametrize("phase", [Phase.WARMING, Phase.SMOKE])
def test_a_paused_probe_outlasts_a_tick_in_which_it_cannot_be_asked(phase: Phase) -> None:
    driven = Driven()
    driven.until(phase)
    driven.command(CommandKind.PAUSE)
    driven.ticks(100, after_s=10.0)
    passed, driven.plane.probes, driven.actions = driven.plane.probes, (), ()
    driven.tick()
    driven.plane.probes = passed

    assert driven.ticks(30).phase is phase


def test_paused_mirroring_outlasts_a_tick_without_evidence() -> None:
    driven = Driven(replace(PLAN, mirror=MirrorPlan(1000, 10, 100.0)))
    mirrored = evidence(mirror=MirrorStatus(pairs=20))
    driven.seen = mirrored
    for _ in range(60):
        driven.tick()
        if driven.state.phase is Phase.MIRRORING:
            break
    driven.command(CommandKind.PAUSE)
    driven.ticks(100, after_s=10.0)
    log(driven)

    assert driven.ticks(30).phase is Phase.MIRRORING


@pytest.mark.slow
def test_a_hold_at_its_limit_that_only_a_pause_keeps_outlasts_a_tick_that_reads_nothing() -> None:
    for blink in BLINKS:
        driven = Driven(replace(PLAN, hold_limit_s=2000.0))
        driven.until(Phase.STAGE)
        driven.ticks(400)
        driven.command(CommandKind.PAUSE)
        driven.seen = evidence()
        driven.ticks(150, after_s=20.0)
        blink(driven)

        assert driven.ticks(30).phase is Phase.STAGE, blink.__name__


@pytest.mark.parametrize("phase", [Phase.STAGE, Phase.PROMOTING, Phase.BAKING])
def test_evidence_that_misses_for_one_tick_is_not_missing_at_the_deadline(phase: Phase) -> None:
    """Where the last stage asks for a rollback when it is missing."""
    driven = Driven(replace(PLAN, stages=(replace(PLAN.stages[0], on_missing="rollback"),)))
    driven.until(phase)
    driven.command(CommandKind.PAUSE)
    driven.seen = evidence()
    driven.ticks(100, after_s=10.0)
    log(driven)

    assert driven.ticks(30).phase is phase

    driven.seen = None
    driven.ticks(70)

    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.MISSING


@pytest.mark.slow
def test_capacity_that_is_lost_and_not_regained_within_the_limit_is_rolled_back() -> None:
    driven = Driven(replace(PLAN, load_s=100.0), replicas=2)
    driven.until(Phase.PROMOTING)
    driven.seen = BLIND["invalid"]()
    driven.ticks(400, after_s=10.0)
    driven.ready["v-new"] = 1

    assert driven.ticks(90).phase is Phase.PROMOTING
    assert driven.ticks(20).phase is not Phase.PROMOTING
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.DEADLINE


def test_capacity_that_never_comes_is_still_rolled_back_at_its_limit() -> None:
    driven = promoting(load_s=100.0)
    driven.ready = {"v-new": 0}
    driven.seen = evidence(gates=(PROVEN,))

    driven.ticks(110)

    assert driven.state.phase is not Phase.PROMOTING


def test_unequal_load_alone_holds_no_promotion() -> None:
    """At 95 % the arms' replicas are loaded unequally by construction: latency is not compared."""
    driven = promoting()
    driven.seen = evidence(Verdict.INVALID, only_load=True)

    driven.ticks(int(PLAN.bake_s) + 10)

    assert driven.state.phase in (Phase.UNLOADING, Phase.SUCCEEDED)


def test_proofs_that_a_person_waived_are_not_asked_for_here_either() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    driven.seen = BLIND["invalid"]()
    driven.command(CommandKind.PROMOTE_FULL)

    driven.ticks(int(PLAN.bake_s) + 10)

    assert driven.state.phase in (Phase.UNLOADING, Phase.SUCCEEDED)


@pytest.mark.parametrize("kind", BLIND)
def test_an_undo_asks_for_no_evidence(kind: str) -> None:
    driven = Driven(replace(PLAN, stages=(), undo=True, holdback_bp=0))
    driven.seen = BLIND[kind]()

    driven.ticks(int(PLAN.bake_s) + 20)

    assert driven.state.phase in (Phase.UNLOADING, Phase.SUCCEEDED)


def test_a_hold_names_what_blocks_and_only_commands_that_exist() -> None:
    """Stable is dead and the canary proven: nothing to prove is left, and no command promotes."""
    driven = Driven()
    driven.until(Phase.STAGE)
    driven.seen = evidence()
    driven.ready = {"v-old": 0}

    driven.ticks(400)

    [hold] = driven.state.holds
    assert hold.reason == (
        "v-old has no ready replica, so no traffic could return to it; see its engine's log"
    )
    assert "promote" not in driven.lines.split("held (not_proven)")[1]
    assert "canaryctl rollback chat" in driven.lines


def test_a_hold_counts_the_replicas_that_are_missing() -> None:
    stages = (replace(PLAN.stages[0], weight_bp=1000), replace(PLAN.stages[0], replicas=2))
    driven = Driven(replace(PLAN, stages=stages), replicas=2)
    driven.until(Phase.STAGE)
    driven.seen = evidence()
    driven.ready = {"v-new": 1}

    driven.ticks(400)

    assert [hold.reason for hold in driven.state.holds] == ["1 of 2 replicas of v-new are ready"]
