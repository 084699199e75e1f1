"""Replicas that come and go: a crash loop is rolled back, and no weight rises on a replica of a moment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.readiness import CRASH_WINDOW_S, CRASHES
from controller.rollout.state import CauseKind, Phase
from evaluation.report import Verdict
from tests.fakes.driven import NEW, OLD, PLAN, Driven, evidence


def loop(
    driven: Driven, seconds: int, *, up: int = 1, down: int = 0, up_s: int = 5, gone_s: int = 25
) -> Phase:
    """Ready for `up_s`, then gone for `gone_s`, again and again."""
    for second in range(seconds):
        is_up = second % (up_s + gone_s) < up_s
        driven.ready[NEW] = up if is_up else down
        if driven.tick().phase is Phase.ROLLING_BACK:
            break
    return driven.state.phase


def in_stage(replicas: int = 1) -> Driven:
    driven = Driven(replicas=replicas)
    driven.until(Phase.STAGE)
    return driven


def test_a_canary_in_a_crash_loop_is_rolled_back() -> None:
    driven = in_stage()

    assert loop(driven, 120) is Phase.ROLLING_BACK
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.ENGINE
    assert driven.state.cause.text == "crash loop: v-new lost a ready replica 3 times within 30 min"


def test_one_of_two_replicas_in_a_crash_loop_is_rolled_back() -> None:
    driven = in_stage(replicas=2)

    assert loop(driven, 1800, up=2, down=1, up_s=60, gone_s=300) is Phase.ROLLING_BACK


def test_a_crash_loop_in_the_bake_is_rolled_back() -> None:
    driven = Driven(replace(PLAN, bake_s=7200.0))
    driven.until(Phase.BAKING)

    assert loop(driven, 300) is Phase.ROLLING_BACK


def test_replicas_that_go_one_after_the_other_are_one_loss() -> None:
    driven = in_stage(replicas=4)
    for count in (4, 3, 2, 1, 3, 4):
        driven.ready[NEW] = count
        driven.ticks(5)

    assert len(driven.state.canary_ready.lost_at_s) == 1


def test_losses_far_apart_are_no_loop() -> None:
    driven = in_stage()
    for _ in range(2 * CRASHES):
        driven.ready[NEW] = 0
        driven.tick()
        driven.ready[NEW] = 1
        driven.ticks(int(CRASH_WINDOW_S / (CRASHES - 1) / 10) + 1, after_s=10.0)

    assert driven.state.phase is Phase.STAGE


def test_what_takes_replicas_from_both_arms_is_not_the_canarys_crash_loop() -> None:
    """Such as a fleet that restarts: every replica is unknown until it reports again."""
    driven = in_stage()
    for _ in range(6):
        driven.ready = {NEW: 0, OLD: 0}
        driven.tick()
        driven.ready = {NEW: 1, OLD: 1}
        driven.ticks(20)

    assert driven.state.phase is Phase.STAGE


def test_a_fleet_that_cannot_be_read_loses_nothing() -> None:
    driven = in_stage()
    for _ in range(6):
        driven.fleet_readable = False
        driven.tick()
        driven.fleet_readable = True
        driven.ticks(5)

    assert driven.state.canary_ready.lost_at_s == ()


def test_no_weight_rises_on_a_replica_of_a_moment() -> None:
    driven = in_stage()
    driven.ticks(60)
    driven.ready[NEW] = 0
    driven.tick()
    driven.ready[NEW] = 1
    driven.seen = evidence()

    assert driven.ticks(10).phase is Phase.STAGE
    assert driven.ticks(2).phase is Phase.PROMOTING


def test_the_last_rise_waits_for_steady_capacity() -> None:
    driven = in_stage()
    driven.until(Phase.PROMOTING)
    driven.seen = evidence()
    driven.ready[NEW] = 0
    driven.tick()
    driven.ready[NEW] = 1

    assert driven.ticks(10).weight_bp == 5000
    assert driven.ticks(2).weight_bp == 9500


def test_a_bake_does_not_end_soon_after_a_lost_replica() -> None:
    driven = Driven()
    driven.until(Phase.BAKING)
    driven.seen = evidence()
    driven.ticks(int(PLAN.bake_s) - 10)
    driven.ready[NEW] = 0
    driven.tick()
    driven.ready[NEW] = 1

    assert driven.ticks(int(PLAN.bake_s) - 5).phase is Phase.BAKING
    assert driven.ticks(7).phase is Phase.UNLOADING


@pytest.mark.parametrize("every_s", [600, 60])
def test_a_canary_that_never_loads_is_given_up_however_often_the_controller_restarts(every_s: int) -> None:
    """What ticks saw counts, over all restarts: twice the limit at most."""
    driven = Driven()
    driven.ready[NEW] = 0
    driven.until(Phase.LOADING)
    seen_s = 0
    while driven.state.phase is Phase.LOADING and seen_s < 5 * PLAN.load_s:
        driven.tick(100.0 + 10.0, resumed=seen_s % every_s == 0, away_s=100.0)
        seen_s += 10

    assert driven.state.phase is Phase.ROLLING_BACK
    assert PLAN.load_s <= seen_s <= 2 * PLAN.load_s + 10
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.DEADLINE


def test_a_host_that_restarts_gives_the_load_its_whole_time_again() -> None:
    driven = Driven()
    driven.ready[NEW] = 0
    driven.until(Phase.LOADING)
    driven.ticks(80, after_s=10.0)
    driven.tick(3600.0, resumed=True, away_s=3599.0)

    assert driven.ticks(80, after_s=10.0).phase is Phase.LOADING


def test_a_stage_is_held_though_the_controller_restarts_before_every_extension_ends() -> None:
    driven = in_stage()
    driven.seen = evidence(Verdict.UNDECIDED)
    for _ in range(40):
        driven.ticks(4, after_s=10.0)
        driven.tick(60.0, resumed=True, away_s=59.0)

    assert driven.state.holds
