"""Who has the traffic, and what stays loaded, while a version leaves and replicas come and go."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from controller.rollout.actions import StopVersion
from controller.rollout.observation import CommandKind, GuardStatus, VersionPhase
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import DepartureStep, Phase
from evaluation.report import Verdict
from tests.fakes.driven import NEW, OLD, PLAN, Driven, evidence

LONG_BAKE = replace(PLAN, bake_s=7200.0)


def waiting(replicas: int = 1) -> Driven:
    """A rollback at 95 % that waits for a stable version without a ready replica."""
    driven = Driven(LONG_BAKE, replicas=replicas)
    driven.until(Phase.BAKING)
    driven.ready = {OLD: 0, NEW: replicas}
    driven.ticks(5)
    driven.command(CommandKind.ROLLBACK)
    driven.ticks(5)
    assert driven.state.weight_bp == 9500
    return driven


def step_of(driven: Driven) -> DepartureStep:
    assert driven.state.departure is not None
    return driven.state.departure.step


def stopped(driven: Driven) -> list[str]:
    return [one.version for one in driven.wanted if isinstance(one, StopVersion)]


@pytest.mark.slow
def test_a_stable_version_that_flaps_does_not_get_the_traffic() -> None:
    driven = waiting()

    for second in range(600):
        driven.ready[OLD] = 1 if second % 30 < 3 else 0
        driven.tick()

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.ROLLING_BACK, 9500)
    assert stopped(driven) == []


@pytest.mark.slow
def test_one_of_ten_replicas_is_not_enough_beside_a_canary_that_has_ten() -> None:
    driven = waiting(replicas=10)
    driven.ready[OLD] = 1

    driven.ticks(60)
    assert driven.state.weight_bp == 9500

    driven.ticks(int(PLAN.load_s))
    assert driven.state.weight_bp == 0  # it will not get more: the canary leaves for what there is


@pytest.mark.slow
def test_a_blink_of_the_canary_decides_nothing() -> None:
    driven = waiting()
    driven.ready[NEW] = 0
    driven.ticks(3)
    driven.ready[NEW] = 1

    driven.ticks(1200)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.ROLLING_BACK, 9500)


def test_a_canary_that_comes_back_while_stable_is_gone_has_its_weight_again() -> None:
    driven = waiting()
    driven.ready[NEW] = 0
    driven.plane.lag = 1000  # the routers do not acknowledge, so it stays in the shift
    driven.ticks(35)
    assert (driven.state.weight_bp, step_of(driven)) == (0, DepartureStep.SHIFT)
    driven.ready[NEW] = 1

    driven.ticks(2)

    assert (driven.state.weight_bp, step_of(driven)) == (9500, DepartureStep.RESTORE)


def test_stable_lost_again_before_the_stop_gives_the_canary_its_weight_again() -> None:
    driven = waiting()
    driven.ready[OLD] = 1
    while step_of(driven) is not DepartureStep.DRAIN:
        driven.tick()
    driven.ready = {OLD: 0}
    driven.tick()
    driven.plane.versions[NEW] = replace(
        driven.plane.versions[NEW], phase=VersionPhase.DRAINING, in_flight=1, ready_replicas=0
    )

    driven.ticks(60)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.ROLLING_BACK, 9500)
    assert driven.plane.versions[NEW].phase is VersionPhase.READY  # its drain has ended
    assert driven.plane.split is not None
    assert (driven.plane.split.canary, driven.plane.split.weight_bp) == (NEW, 9500)
    assert stopped(driven) == []

    driven.ready = {OLD: 1}
    driven.ticks(30)
    assert driven.state.phase is Phase.ROLLED_BACK


def test_a_crash_loop_says_nothing_against_the_answers() -> None:
    driven = Driven(LONG_BAKE, replicas=4)
    driven.until(Phase.BAKING)
    driven.ready = {OLD: 0, NEW: 4}
    driven.ticks(5)
    driven.seen = None
    for _ in range(4):
        driven.ready[NEW] = 3
        driven.ticks(20)
        driven.ready[NEW] = 4
        driven.ticks(20)

    assert driven.state.weight_bp == 9500
    assert stopped(driven) == []


@pytest.mark.slow
def test_a_rollback_that_waits_keeps_who_was_last_seen_to_answer_while_the_table_works() -> None:
    driven = waiting()
    driven.fleet_readable = False
    pages = 0
    for _ in range(24 * 60):
        driven.tick(after_s=60.0)
        pages += sum("cannot be read" in page and "not known" in page for page in driven.pages)
        driven.state = replace(driven.state, outbox=())

    assert driven.state.weight_bp == 9500
    assert 23 <= pages <= 25
    assert stopped(driven) == []


def test_a_rollback_that_waits_does_not_wait_for_a_data_plane_that_cannot_be_read_at_all() -> None:
    driven = waiting()
    driven.fleet_readable = False
    for second in range(70):
        driven.plane.split, driven.actions = None, ()
        driven.tick()
        assert (driven.state.weight_bp == 9500) is (second < 60)

    assert stopped(driven) == []  # it is not known whether stable answers
    assert [page for page in driven.pages if "cannot be read" in page and "not known" in page]


def test_a_wait_is_paged_again_each_hour() -> None:
    driven = waiting()
    texts = []
    for _ in range(3 * 60):
        driven.tick(after_s=60.0)
        driven.state = replace(driven.state, outbox=())
    texts = [line.text for line in driven.state.log if "still has no ready replica" in line.text]

    assert len(texts) == 3


def test_after_harm_in_the_answers_the_weight_never_returns() -> None:
    driven = waiting()
    driven.seen = evidence(Verdict.UNDECIDED, guards=(GuardStatus("errors", "12 of 20"),))
    driven.tick()
    driven.seen = evidence(Verdict.UNDECIDED)

    driven.ticks(60)

    assert driven.state.weight_bp == 0
    assert stopped(driven) == []


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("restart_each_s", [None, 300])
def test_restarts_do_not_renew_the_time_of_a_harmful_canary(restart_each_s: int | None) -> None:
    driven = Driven(LONG_BAKE)
    driven.until(Phase.BAKING)
    driven.ready = {OLD: 0}
    driven.ticks(3)
    driven.seen = evidence(Verdict.UNDECIDED, guards=(GuardStatus("error", "5 of 9 fail"),))
    for second in range(int(PLAN.load_s) + 400):
        driven.tick(resumed=restart_each_s is not None and second % restart_each_s == 299)
        if NEW in stopped(driven):
            break

    assert NEW in stopped(driven)


@pytest.mark.slow
def test_the_old_version_is_kept_until_the_new_one_is_steady() -> None:
    driven = Driven()
    driven.until(Phase.UNLOADING)
    driven.ready = {NEW: 0}
    driven.ticks(3)

    for second in range(300):
        driven.ready[NEW] = 1 if second % 8 < 5 else 0
        assert driven.tick().phase is Phase.UNLOADING

    assert stopped(driven) == []
    driven.ready[NEW] = 1
    assert driven.ticks(60).phase is Phase.SUCCEEDED


def unanswered(phase: VersionPhase) -> Driven:
    """A rollback out of Unloading: the new version has no replica, the old one two of three."""
    driven = Driven(replace(PLAN, stable_replicas=3), replicas=3)
    driven.until(Phase.UNLOADING)
    driven.ready[NEW] = 0
    driven.until(Phase.ROLLING_BACK)
    return driven


@pytest.mark.parametrize("phase", [VersionPhase.READY, VersionPhase.LOADING])
def test_one_replica_of_the_old_version_is_better_than_none(phase: VersionPhase) -> None:
    driven = unanswered(phase)
    driven.actions = ()
    driven.plane.versions[OLD] = replace(driven.plane.versions[OLD], phase=phase, ready_replicas=2)

    driven.tick()
    assert step_of(driven) is DepartureStep.SHIFT
    driven.tick()

    assert driven.plane.split is not None
    assert (driven.plane.split.stable, driven.plane.split.canary) == (OLD, None)


@pytest.mark.slow
def test_a_rollback_never_fails_for_a_version_that_does_not_answer() -> None:
    driven = Driven(replace(PLAN, stable_replicas=3), replicas=3)
    driven.until(Phase.UNLOADING)
    driven.ready = {NEW: 0, OLD: 0}
    driven.ticks(5)
    driven.command(CommandKind.ROLLBACK)

    assert driven.ticks(1200).phase is Phase.ROLLING_BACK
    assert stopped(driven) == []
    assert "no version answers" in driven.lines

    driven.ready = {NEW: 0, OLD: 2}
    driven.ticks(120)
    assert driven.plane.split is not None
    assert driven.plane.split.stable == OLD
    assert (driven.state.phase, driven.state.serving) == (Phase.ROLLED_BACK, OLD)


def test_a_restored_version_that_is_lost_again_gives_the_traffic_back() -> None:
    driven = Driven()
    driven.until(Phase.UNLOADING)
    driven.ready = {OLD: 0}
    driven.command(CommandKind.ROLLBACK)
    driven.ticks(3)
    driven.ready = {OLD: 1}
    while step_of(driven) is DepartureStep.RESTORE:
        driven.tick()
    driven.ready = {OLD: 0}

    driven.ticks(20)

    assert driven.plane.split is not None
    assert (driven.plane.split.stable, driven.plane.split.canary) == (NEW, None)
    assert driven.plane.versions[NEW].phase is VersionPhase.READY
    assert stopped(driven) == []


@pytest.mark.parametrize("phase", [Phase.STAGE, Phase.BAKING, Phase.UNLOADING])
def test_states_of_older_releases_load(phase: Phase) -> None:
    driven = Driven()
    driven.until(phase)
    driven.ready = {OLD: 0} if phase is not Phase.UNLOADING else {}
    driven.command(CommandKind.ROLLBACK)
    driven.tick()
    document = json.loads(state_to_json(driven.state))
    document["rollout"].pop("answers", None)
    for key in ("kept_bp", "kept_since_s"):
        document["rollout"]["departure"].pop(key, None)
    driven.state = state_from_json(json.dumps(document))

    driven.ticks(10)
    if phase is not Phase.UNLOADING:
        assert driven.state.weight_bp > 0
    driven.ready = {}
    driven.plane.versions[OLD] = replace(
        driven.plane.versions[OLD], phase=VersionPhase.READY, ready_replicas=1
    )
    driven.ticks(40)

    assert (driven.state.phase, driven.state.serving) == (Phase.ROLLED_BACK, OLD)


@pytest.mark.slow
def test_nothing_is_stopped_while_the_fleet_cannot_be_read() -> None:
    driven = Driven(LONG_BAKE)
    driven.until(Phase.BAKING)
    driven.ticks(20)
    driven.fleet_readable = False

    assert driven.ticks(400).phase is Phase.ROLLING_BACK  # unreadable for too long

    assert driven.state.weight_bp == 0
    assert stopped(driven) == []
    driven.fleet_readable = True
    assert driven.ticks(20).phase is Phase.ROLLED_BACK
