"""The first weight rises on a ready, steady canary beside a stable version that answers, as later ones do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.observation import MirrorStatus
from controller.rollout.plan import MirrorPlan
from controller.rollout.state import Phase
from evaluation.report import Verdict
from tests.fakes.driven import NEW, OLD, PLAN, Driven, evidence

MIRROR = replace(PLAN, mirror=MirrorPlan(2000, 200, 3600.0))


def mirrored(pairs: int) -> Driven:
    driven = Driven(MIRROR)
    while driven.state.phase is not Phase.MIRRORING:
        driven.seen = replace(evidence(Verdict.UNDECIDED), mirror=MirrorStatus(1, 0, 0))
        driven.tick()
    driven.ticks(20)
    driven.seen = replace(evidence(Verdict.UNDECIDED), mirror=MirrorStatus(pairs, 0, 0))
    return driven


def in_smoke() -> Driven:
    driven = Driven(PLAN)
    reach(driven, Phase.SMOKE)
    return driven


def reach(driven: Driven, phase: Phase) -> None:
    while driven.state.phase is not phase:
        driven.tick()


@pytest.mark.parametrize("lost", [OLD, NEW, "fleet"])
@pytest.mark.parametrize("phase", [Phase.SMOKE, Phase.MIRRORING])
def test_the_first_weight_waits_for_both_arms_and_a_fleet_that_is_read(phase: Phase, lost: str) -> None:
    driven = in_smoke() if phase is Phase.SMOKE else mirrored(300)
    driven.ready = {} if lost == "fleet" else {lost: 0}
    driven.fleet_readable = lost != "fleet"

    assert (driven.ticks(20).phase, driven.state.weight_bp) == (phase, 0)

    driven.ready, driven.fleet_readable = {OLD: 1, NEW: 1}, True
    assert driven.ticks(15).phase is Phase.STAGE


def test_the_first_weight_waits_until_a_replica_that_came_back_is_steady() -> None:
    driven = mirrored(100)
    driven.ready = {NEW: 0}
    driven.ticks(3)
    driven.ready = {NEW: 1}
    driven.seen = replace(evidence(Verdict.UNDECIDED), mirror=MirrorStatus(300, 0, 0))

    assert driven.ticks(int(PLAN.steady_s)).phase is Phase.MIRRORING
    assert driven.ticks(3).phase is Phase.STAGE


def test_a_canary_is_not_rolled_back_because_stable_is_away_before_its_first_weight() -> None:
    driven = in_smoke()
    driven.ready = {OLD: 0}

    assert driven.ticks(int(PLAN.smoke_s) * 3).phase is Phase.SMOKE
    assert "v-new waits for its first requests: v-old has no ready replica" in driven.lines


@pytest.mark.slow
def test_the_wait_for_stable_before_the_first_weight_pages_each_hour() -> None:
    """It was one line of the log, while nobody was answered and the canary held its memory."""
    driven, told = in_smoke(), dict[str, float]()
    driven.ready = {OLD: 0}
    for _ in range(800):
        driven.tick(10.0 if told else 1.0)
        told |= {page: driven.plane.now_s for page in driven.pages if page not in told}

    first, second, third = told
    assert driven.state.phase is Phase.SMOKE
    assert [round((told[later] - told[first]) / 600) for later in (second, third)] == [6, 12]
    assert first.endswith(
        "v-old has no ready replica after 30 s, so nobody is answered; see its engine's log"
    )


@pytest.mark.slow
def test_a_second_outage_before_the_first_weight_is_logged_and_paged_as_the_first() -> None:
    """What was told of the first one kept the second one, of an hour, from being told."""
    driven = Driven(MIRROR)
    driven.seen = replace(evidence(Verdict.UNDECIDED), mirror=MirrorStatus(1, 0, 0))
    reach(driven, Phase.SMOKE)
    driven.ready = {OLD: 0}
    driven.ticks(200)
    first = len(driven.pages)
    driven.ready = {OLD: 1, NEW: 1}
    reach(driven, Phase.MIRRORING)
    driven.ticks(30)
    is_forgotten = not any(key.startswith("first-wait") for key in driven.state.alarmed)
    driven.seen = replace(evidence(Verdict.UNDECIDED), mirror=MirrorStatus(300, 0, 0))
    driven.ready = {OLD: 0, NEW: 1}
    lines = len(driven.lines)
    driven.ticks(200)

    assert (first, is_forgotten, len(driven.pages)) == (1, True, 2)
    assert "v-new waits for its first requests: v-old has no ready replica" in driven.lines[lines:]


def test_a_stable_version_that_flaps_is_logged_once_a_minute() -> None:
    driven = in_smoke()
    for _ in range(20):
        driven.ready = {OLD: 0}
        driven.ticks(2)
        driven.ready = {OLD: 1}
        driven.tick()

    assert sum("waits for its first requests" in line for line in driven.lines) <= 2


def test_a_canary_that_stays_short_of_replicas_before_its_first_weight_is_rolled_back() -> None:
    stages = (replace(PLAN.stages[0], replicas=2),)
    driven = Driven(replace(PLAN, stages=stages), replicas=2)
    while driven.state.phase is not Phase.SMOKE:
        driven.tick()
    driven.ready = {NEW: 1}

    assert driven.ticks(int(PLAN.smoke_s) + 20).phase is Phase.ROLLED_BACK
