"""Replicas that come and go: a crash loop is rolled back, and no weight rises on a replica of a moment."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from controller.rollout.observation import Observation, VersionPhase, VersionStatus
from controller.rollout.readiness import CRASH_WINDOW_S, CRASHES, crash_loop, note_ready
from controller.rollout.serialization import state_from_json, state_to_json
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
    driven = Driven(replace(PLAN, stages=(replace(PLAN.stages[0], replicas=replicas),)), replicas=replicas)
    driven.until(Phase.STAGE)
    return driven


def test_a_canary_in_a_crash_loop_is_rolled_back() -> None:
    driven = in_stage()

    assert loop(driven, 120) is Phase.ROLLING_BACK
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.ENGINE
    text = "crash loop: v-new lost a replica soon after it became ready, 3 times within 30 min"
    assert driven.state.cause.text == text


@pytest.mark.slow
def test_one_of_two_replicas_in_a_crash_loop_is_rolled_back() -> None:
    driven = in_stage(replicas=2)

    assert loop(driven, 1800, up=2, down=1, up_s=60, gone_s=300) is Phase.ROLLING_BACK


def test_a_crash_loop_in_the_bake_is_rolled_back() -> None:
    driven = Driven(replace(PLAN, bake_s=7200.0))
    driven.until(Phase.BAKING)

    assert loop(driven, 300) is Phase.ROLLING_BACK


def test_replicas_that_go_one_after_the_other_are_one_loss() -> None:
    driven = in_stage(replicas=4)
    driven.ready[NEW] = 3
    first_s = driven.tick().ticked_at_s
    for count in (2, 1, 3, 4):
        driven.ready[NEW] = count
        driven.ticks(5)

    assert driven.state.canary_ready.last_lost_at_s == first_s

    for count in (3, 2, 1):
        driven.ready[NEW] = count
        driven.ticks(5)

    assert len(driven.state.canary_ready.early_losses_at_s) == 1


@pytest.mark.slow
def test_losses_far_apart_are_no_loop() -> None:
    driven = in_stage()
    for _ in range(2 * CRASHES):
        driven.ready[NEW] = 0
        driven.tick()
        driven.ready[NEW] = 1
        driven.ticks(int(CRASH_WINDOW_S / (CRASHES - 1) / 10) + 1, after_s=10.0)

    assert driven.state.phase is Phase.STAGE


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)], ids=["stable first", "canary first"])
@pytest.mark.parametrize("quiet_s", [30, 120])
def test_an_outage_of_both_arms_that_is_seen_a_tick_apart_is_never_a_crash_loop(
    order: tuple[str, str], quiet_s: int
) -> None:
    """Three times, then until every loss is older than the window."""
    driven = in_stage()
    for _ in range(3):
        for version in order:
            driven.ready[version] = 0
            driven.tick()
        driven.ticks(5)
        driven.ready = {NEW: 1, OLD: 1}
        driven.ticks(quiet_s)

    assert driven.ticks(int(CRASH_WINDOW_S / 10), after_s=10.0).phase is Phase.STAGE


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("order", [(NEW, OLD), (OLD, NEW)], ids=["canary first", "stable first"])
def test_nodes_drained_one_after_the_other_are_no_crash_loop(order: tuple[str, str]) -> None:
    """Replicas that had been ready for long: each is back after a minute."""
    driven = in_stage(replicas=3)
    for version in order:
        for _ in range(3):
            driven.ready[version] = 2
            driven.ticks(60)
            driven.ready[version] = 3
            driven.ticks(120)

    assert driven.ticks(int(CRASH_WINDOW_S / 10), after_s=10.0).phase is Phase.STAGE


def rolling_restart(driven: Driven, *, are_drained: bool, replicas: int = 4) -> Phase:
    """The canary's replicas, one after the other, each replaced 20 s later."""
    for number in range(replicas):
        driven.ready[NEW] = replicas - 1
        if are_drained:
            driven.drained[NEW] = number + 1
        driven.ticks(20)
        driven.ready[NEW] = replicas
        driven.ticks(2)
    return driven.state.phase


def test_a_fast_rolling_restart_of_the_canary_alone_is_no_crash_loop() -> None:
    drained, lost = in_stage(replicas=4), in_stage(replicas=4)

    assert rolling_restart(drained, are_drained=True) is Phase.STAGE
    assert drained.state.canary_ready.last_lost_at_s is None
    assert rolling_restart(lost, are_drained=False) is Phase.ROLLED_BACK


def test_a_replica_that_dies_beside_drained_ones_is_lost() -> None:
    driven = in_stage(replicas=4)
    driven.ready[NEW], driven.drained[NEW] = 3, 1
    driven.ticks(5)
    driven.ready[NEW] = 2
    second_s = driven.tick().ticked_at_s
    driven.ticks(5)
    assert driven.state.canary_ready.last_lost_at_s == second_s

    driven.ready[NEW] = 4
    driven.ticks(5)
    driven.ready[NEW], driven.drained[NEW] = 2, 2  # one of the two
    third_s = driven.tick().ticked_at_s
    driven.ticks(5)
    assert driven.state.canary_ready.last_lost_at_s == third_s


def test_losses_are_seen_after_the_fleet_began_to_count_anew() -> None:
    driven = in_stage(replicas=2)
    driven.drained[NEW] = 5
    driven.tick()
    driven.drained[NEW] = 0
    driven.tick()
    driven.ready[NEW] = 1
    lost_s = driven.tick().ticked_at_s
    driven.ticks(5)

    assert driven.state.canary_ready.last_lost_at_s == lost_s


@pytest.mark.slow
def test_drains_do_not_delay_the_end_of_the_bake() -> None:
    driven = Driven(replace(PLAN, bake_s=600.0), replicas=4)
    driven.until(Phase.BAKING)
    driven.seen = evidence()
    driven.ticks(580)
    rolling_restart(driven, are_drained=True)

    assert driven.ticks(30).phase is not Phase.BAKING


def losses_by_chance(seed: int, *, per_hour: float, hours: int) -> bool:
    """True: a crash loop is found where both arms of ten lose replicas at one rate, each for a minute."""
    rng, every_s = random.Random(seed), 5.0
    state = Driven(replicas=10).state
    back_s: dict[str, list[float]] = {OLD: [], NEW: []}
    for tick in range(int(hours * 3600 / every_s)):
        now_s = tick * every_s
        seen = []
        for version, gone in back_s.items():
            gone[:] = [at_s for at_s in gone if at_s > now_s]
            if rng.random() < per_hour * every_s / 3600:
                gone.append(now_s + 60.0)
            seen.append(VersionStatus(version, VersionPhase.READY, 10 - len(gone), 0))
        observation = Observation(now_s, None, tuple(seen), None)
        state = note_ready(state, observation, now_s)
        if crash_loop(state, observation) is not None:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("per_hour", [1.0, 4.0])
def test_replicas_lost_by_chance_at_one_rate_are_no_crash_loop(per_hour: float) -> None:
    assert not any(losses_by_chance(seed, per_hour=per_hour, hours=12) for seed in range(8))


@pytest.mark.slow
def test_a_canary_that_answers_while_stable_does_not_is_not_taken_out_for_a_crash_loop() -> None:
    driven = Driven(replace(PLAN, bake_s=7200.0), replicas=4)
    driven.until(Phase.BAKING)
    driven.ready[OLD] = 0
    driven.ticks(300)

    assert loop(driven, 300, up=4, down=3) is Phase.BAKING

    driven.ready[OLD] = 4
    driven.ticks(5)

    assert loop(driven, 300, up=4, down=3) is Phase.ROLLING_BACK


@pytest.mark.slow
def test_a_canary_that_has_recovered_is_not_rolled_back_when_stable_returns() -> None:
    driven = Driven(replace(PLAN, bake_s=7200.0), replicas=4)
    driven.until(Phase.BAKING)
    driven.ready[OLD] = 0
    driven.ticks(300)
    loop(driven, 120, up=4, down=3)
    driven.ready[NEW] = 4
    driven.ticks(300)
    driven.ready[OLD] = 4

    assert driven.ticks(60).phase is Phase.BAKING


def test_a_loss_of_stable_before_does_not_hide_a_crash_loop() -> None:
    driven = in_stage()
    driven.ready[OLD] = 0
    driven.tick()
    driven.ready[OLD] = 1
    driven.ticks(120)

    assert loop(driven, 150) is Phase.ROLLING_BACK


def test_the_readiness_of_an_older_release_is_read() -> None:
    driven = in_stage()
    document = json.loads(state_to_json(driven.state))
    document["rollout"]["canary_ready"] = {
        "count": 1,
        "changed_at_s": 5.0,
        "is_falling": False,
        "lost_at_s": [1.0, 2.0, 3.0],
    }
    for key in ("lacking_since_s", "missing_since_s"):
        document["rollout"].pop(key)
    driven.state = state_from_json(json.dumps(document))

    assert driven.ticks(60).phase is Phase.STAGE
    assert loop(driven, 150) is Phase.ROLLING_BACK


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

    assert driven.state.canary_ready.last_lost_at_s is None


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
    driven.ticks(6)
    driven.ready[NEW] = 1

    assert driven.ticks(int(PLAN.bake_s) - 10).phase is Phase.BAKING
    assert driven.ticks(7).phase is Phase.UNLOADING


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("apart_s", [0, 1])
def test_losses_that_both_arms_share_do_not_hold_the_end_of_the_bake(apart_s: int) -> None:
    """Both arms of ten lose one each nine minutes, in one tick or the next."""
    driven = Driven(replace(PLAN, bake_s=600.0), replicas=10)
    driven.until(Phase.BAKING)
    driven.seen = evidence()
    for second in range(700):
        driven.ready[NEW] = 9 if second % 541 < 5 else 10
        driven.ready[OLD] = 9 if (second - apart_s) % 541 < 5 else 10
        driven.tick()

    assert driven.state.phase in (Phase.UNLOADING, Phase.SUCCEEDED)


@pytest.mark.slow
@pytest.mark.parametrize(("every_s", "gone_s"), [(541, 5), (90, 20)])
def test_a_canary_that_alone_goes_on_losing_replicas_never_becomes_stable(every_s: int, gone_s: int) -> None:
    """At 90 s each engine dies 70 s after it was loaded: too late for a crash loop."""
    driven = Driven(replace(PLAN, bake_s=600.0), replicas=10)
    driven.until(Phase.BAKING)
    driven.seen = evidence()
    pages = set()
    for second in range(3600):
        driven.ready[NEW] = 9 if second % every_s < gone_s else 10
        driven.tick()
        pages |= set(driven.pages)

    assert driven.state.phase is Phase.BAKING
    assert len(pages) == 1
    assert "v-new goes on losing replicas, and v-old does not" in pages.pop()

    driven.ready[NEW] = 10
    assert driven.ticks(700).phase is not Phase.BAKING


@pytest.mark.slow
def test_replicas_that_are_too_busy_to_report_are_no_losses() -> None:
    """A long prefill: one of two is missing for a moment, again and again, and no process dies."""
    driven = in_stage(replicas=2)
    for second in range(1800):
        driven.ready[NEW] = 1 if second % 45 < 4 else 2
        driven.tick()

    assert driven.state.phase is Phase.STAGE
    assert driven.state.canary_ready.last_lost_at_s is None


def test_a_replica_that_comes_back_in_part_is_one_loss() -> None:
    driven = in_stage(replicas=4)
    driven.ticks(80)
    fell_s = None
    for count in (1, 2, 1, 2, 2, 2, 4, 4):
        driven.ready[NEW] = count
        now_s = driven.tick().ticked_at_s
        fell_s = now_s if fell_s is None else fell_s

    assert driven.state.canary_ready.last_lost_at_s == fell_s
    assert driven.state.canary_ready.early_losses_at_s == ()


@pytest.mark.slow
@pytest.mark.sample(1)
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
