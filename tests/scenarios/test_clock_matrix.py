"""Clock matrix: a wall clock that is set, or a controller that stands still, changes no outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from controller.auth import Identity, Role
from controller.rollout.actions import SetSplit
from controller.rollout.machine import begin
from controller.rollout.observation import CommandKind
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.tick_timer import MAX_TICK_S
from tests.fakes.plane import FakeClock, FakeEvidence, FakeFleet, FakeNotifier, FakeProbes, FakeTraffic
from tests.fakes.store_memory import MemoryStore

OPERATOR = Identity("ada", Role.OPERATOR)
STAGES = (Stage(1000, 3.0, 10, 600.0, 1), Stage(5000, 3.0, 10, 600.0, 1))
PLAN = Plan("medium", (), STAGES, holdback_bp=500, bake_s=4.0, drain_s=10.0, cancel_s=2.0)
TICKS = 1000
HOUR_S = 3600.0
SILENCE_S = 60.0  # after which the routers withdraw the canary


@dataclass
class Rig:
    """Store and data plane; one reconciler, which a disturbance may replace."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    evidence: FakeEvidence = field(default_factory=FakeEvidence)
    notifier: FakeNotifier = field(default_factory=FakeNotifier)

    def __post_init__(self) -> None:
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.fleet.ensure("chat", "v-old", 1, token=1)
        self.clock.advance(60.0)
        self.traffic.set_split("chat", "", SetSplit("v-old", None, 0, 0), token=1)
        refs = VersionRef("v-old"), VersionRef("v-new")
        state = begin("r-1", "chat", stable=refs[0], canary=refs[1], plan=PLAN, now_s=self.clock.now_s())
        self.store.create_rollout(state, request="{}", at_s=self.clock.now_s())
        self.began_s = self.clock.boot_s()
        self.stood_still_s = 0.0
        self.restart()

    def restart(self) -> None:
        ports = Ports(
            self.store, self.fleet, self.traffic, self.evidence, FakeProbes(), self.notifier, self.clock
        )
        self.reconciler = Reconciler(ports)

    def stand_still(self, seconds: float) -> None:
        """The controller stands still; the routers withdraw the canary meanwhile."""
        self.clock.advance(seconds)
        self.stood_still_s += seconds
        if seconds > SILENCE_S:
            self.traffic.withdraw("chat")

    def state(self) -> RolloutState:
        return self.store.rows["r-1"].state

    def command_once(self, kind: CommandKind) -> None:
        if not self.store.queued:
            self.store.append_command("r-1", kind, OPERATOR, reason="bad", at_s=self.clock.now_s())

    def result(self) -> tuple[object, ...]:
        self.clock.advance(10.0)
        table, state = self.traffic.observe("chat"), self.state()
        assert table is not None
        engines = sorted(one.version for one in self.fleet.observe("chat") or ())
        cause = state.cause.kind if state.cause is not None else None
        split = table.stable, table.canary, table.weight_bp
        return state.phase, cause, state.serving, split, engines, frozenset(self.notifier.sent)


def promotion(rig: Rig) -> None:
    """A harmless canary."""


def stuck_rollback(rig: Rig) -> None:
    """A rollback in the second stage, with requests that end only by takeover."""
    if rig.state().phase is Phase.STAGE and rig.state().stage == 1 and rig.state().acked_at_s is not None:
        rig.fleet.engines["chat", "v-new"].in_flight = 3
        rig.command_once(CommandKind.ROLLBACK)


def set_forward(rig: Rig) -> None:
    rig.clock.set_wall(HOUR_S)


def set_back(rig: Rig) -> None:
    rig.clock.set_wall(-HOUR_S)


def suspended(rig: Rig) -> None:
    rig.stand_still(300.0)


def replaced_by_a_slow_clock(rig: Rig) -> None:
    """Another controller takes over, whose clock is an hour behind."""
    rig.clock.set_wall(-HOUR_S)
    rig.restart()


def replaced_by_a_fast_clock(rig: Rig) -> None:
    rig.clock.set_wall(HOUR_S)
    rig.restart()


Disturbance = Callable[[Rig], None]
DISTURBANCES = [set_forward, set_back, suspended, replaced_by_a_slow_clock, replaced_by_a_fast_clock]


def run(story: Callable[[Rig], None], disturb: Disturbance | None, at: int) -> tuple[Rig, int]:
    """The rig at the end, and the number of ticks. `disturb` comes before tick number `at`."""
    rig = Rig()
    for index in range(TICKS):
        story(rig)
        if disturb is not None and index == at:
            disturb(rig)
        performed = rig.reconciler.perform("r-1", token=1)
        assert performed is not None
        ticked = rig.reconciler.decide(performed, rig.reconciler.read("chat"))
        if ticked.state.is_final and not rig.store.running():
            return rig, index
        rig.clock.advance(max(ticked.next_in_s, 0.5))
    raise AssertionError(f"not finished: {rig.state().phase}, {rig.state().reason}")


@pytest.mark.integration
@pytest.mark.parametrize("disturb", DISTURBANCES)
@pytest.mark.parametrize("story", [promotion, stuck_rollback])
def test_a_disturbed_clock_changes_no_outcome_and_no_duration(
    story: Callable[[Rig], None], disturb: Disturbance
) -> None:
    rig, ticks = run(story, None, 0)
    took_s, expected = rig.clock.boot_s() - rig.began_s, rig.result()
    assert ticks > 25

    wrong = {}
    for at in range(ticks):
        disturbed, _ = run(story, disturb, at)
        # A step of the drain may start again; of a standstill, as much counts as a tick may take.
        counted_s = MAX_TICK_S if disturb is suspended else 0.5
        late_s = disturbed.clock.boot_s() - disturbed.began_s - disturbed.stood_still_s - took_s
        if disturbed.result() != expected or not -counted_s <= late_s <= PLAN.drain_s + 1.0:
            wrong[at] = late_s, disturbed.state().reason

    assert wrong == {}


def test_each_story_has_its_expected_outcome() -> None:
    phases = [run(story, None, 0)[0].state().phase for story in (promotion, stuck_rollback)]

    assert phases == [Phase.SUCCEEDED, Phase.ROLLED_BACK]
