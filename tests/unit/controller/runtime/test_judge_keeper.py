"""The engine of a rollout's judge: loaded while it is needed, again when it failed, never left over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import StaleToken, Unreachable
from controller.rollout.judge import needed_engine
from controller.rollout.judge_plan import JudgeEngine, JudgeState
from controller.rollout.observation import VersionPhase
from controller.rollout.state import Departure, DepartureStep, Phase, RolloutState
from controller.runtime.faults import Faults
from controller.runtime.judge_keeper import KEEPING_JUDGE, JudgeKeeper
from controller.runtime.kept_loaded import RETRY_FAILED_S
from tests.fakes.judged import JUDGE, admitted, refused, silent
from tests.fakes.plane import FakeClock, FakeFleet
from tests.fakes.rollouts import a_rollout

ENGINE = JudgeEngine("v-judge", '{"model": "/m/judge"}', 1 << 30)
SERVED = replace(JUDGE, url="", engine=ENGINE)
NAME = "chat_judge"


def rollout(**changes: object) -> RolloutState:
    state = a_rollout("r-1")
    plan = replace(state.plan, judge=SERVED)
    return replace(state, **{"plan": plan, "launched": True, "phase": Phase.LOADING, **changes})  # type: ignore[arg-type]


class Rig:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fleet = FakeFleet(self.clock)
        self.faults = Faults()
        self.keeper = JudgeKeeper(self.fleet, self.clock, self.faults)

    def tick(self, state: RolloutState | None, *, after_s: float = 2.0) -> VersionPhase | None:
        self.kept = self.keeper.tick("chat", state, token=1)
        self.clock.advance(after_s)
        return self.kept.status.phase if self.kept.status is not None else None

    @property
    def engines(self) -> list[str]:
        self.fleet.observe(NAME)
        assert {owner for owner, _ in self.fleet.engines} <= {NAME}
        return [version for _, version in self.fleet.engines]


def test_it_is_loaded_while_a_rollout_needs_it_and_unloaded_afterwards() -> None:
    rig = Rig()
    assert [rig.tick(rollout()) for _ in range(3)] == [None, VersionPhase.READY, VersionPhase.READY]
    assert (rig.kept.is_settled, rig.fleet.loads) == (True, 1)

    rig.tick(replace(rollout(), phase=Phase.SUCCEEDED))
    rig.tick(None)

    assert (rig.engines, rig.kept.is_clear, rig.kept.is_settled) == ([], True, True)


@pytest.mark.parametrize(
    ("changes", "is_needed"),
    [
        ({}, True),
        ({"launched": False}, False),
        ({"judge": JudgeState(1, admitted())}, True),
        ({"judge": JudgeState(1, silent())}, True),
        ({"judge": JudgeState(1, refused())}, False),
        ({"judge": JudgeState(1, admitted(), drift="it changed")}, False),
        ({"departure": Departure("v-2", "v-1", DepartureStep.SHIFT, 1.0, 1.0)}, False),
        ({"phase": Phase.ROLLED_BACK}, False),
    ],
)
def test_it_is_needed_as_long_as_it_may_say_something(changes: dict[str, object], is_needed: bool) -> None:
    assert needed_engine(rollout(**changes)) == (ENGINE if is_needed else None)


def test_an_endpoint_needs_no_engine() -> None:
    state = rollout()

    assert needed_engine(replace(state, plan=replace(state.plan, judge=JUDGE))) is None


def test_a_failed_load_is_cleared_and_tried_again_after_a_while() -> None:
    rig = Rig()
    rig.fleet.broken["v-judge"] = "no memory"
    rig.tick(rollout())
    assert rig.tick(rollout()) is VersionPhase.FAILED
    assert rig.kept.status is not None
    assert rig.kept.status.last_error == "no memory"
    rig.tick(rollout(), after_s=RETRY_FAILED_S)
    rig.fleet.broken.clear()
    phases = [rig.tick(rollout()) for _ in range(4)]

    assert (phases[-1], rig.fleet.loads) == (VersionPhase.READY, 2)


def test_one_that_died_is_loaded_again() -> None:
    rig = Rig()
    rig.tick(rollout())
    rig.fleet.engines.clear()
    phases = [rig.tick(rollout()) for _ in range(2)]

    assert phases == [None, VersionPhase.READY]


def test_the_judge_of_an_earlier_rollout_is_unloaded() -> None:
    rig = Rig()
    rig.fleet.ensure(NAME, "v-old", 1, token=1)
    for _ in range(3):
        rig.tick(rollout())

    assert rig.engines == ["v-judge"]


def test_without_a_rollout_the_fleet_is_read_until_it_is_known_that_none_runs() -> None:
    rig = Rig()
    rig.fleet.ensure(NAME, "v-left", 1, token=1)
    for _ in range(3):
        rig.tick(None)
    assert rig.engines == []
    rig.fleet.blind = True

    assert rig.tick(None) is None
    assert rig.kept.is_clear is True


def test_a_fleet_that_cannot_be_read_is_left_alone() -> None:
    rig = Rig()
    rig.fleet.blind = True

    assert rig.tick(rollout()) is None
    assert (rig.kept.is_clear, rig.kept.is_settled, rig.fleet.loads) == (None, False, 0)


def test_what_fails_is_told_and_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def refuse(*_: object, **__: object) -> None:
        raise Unreachable("the cluster's devices are not known yet")

    monkeypatch.setattr(FakeFleet, "ensure", refuse)
    rig.tick(rollout())

    assert rig.faults.failing == {KEEPING_JUDGE: "the cluster's devices are not known yet"}


def test_another_controller_is_obeyed() -> None:
    rig = Rig()
    rig.fleet.fence.check(9)

    with pytest.raises(StaleToken):
        rig.tick(rollout())
