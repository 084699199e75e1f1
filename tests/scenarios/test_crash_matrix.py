"""Whatever line of a tick the controller dies in, and however long it is away, the same world comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    Notify,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.machine import begin, step
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    ManualCommand,
    Observation,
    ProbeStatus,
)
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.ports import Stored
from controller.rollout.serialization import (
    actions_from_json,
    actions_to_json,
    state_from_json,
    state_to_json,
)
from controller.rollout.state import Phase, RolloutState
from evaluation.report import GateReport, Verdict
from tests.fakes.plane import FakeClock, FakeFleet, FakeNotifier, FakeProbes, FakeTraffic

HARM = GateReport("error", "error", "rollback", Verdict.FAIL, 7.0, 5.8, "9 % against 1 %", 80, 900)
STAGES = (Stage(1000, 2.0, 10, 600.0, 1), Stage(5000, 2.0, 10, 600.0, 1))
PLAN = Plan("medium", (), STAGES, holdback_bp=500, bake_s=3.0, drain_s=3.0, cancel_s=2.0)
TICK_S = 0.5
TICKS = 3000


class Died(Exception):
    """The controller's process is gone; what it had not committed never was."""


@dataclass
class Environment:
    """What outlives a controller: the data plane, the store, and what people said."""

    story: Callable[[Environment, RolloutState], None]
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    notifier: FakeNotifier = field(default_factory=FakeNotifier)
    asked: list[ManualCommand] = field(default_factory=list)
    harmful: bool = False

    def __post_init__(self) -> None:
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock, ack_s=0.6)
        self.fleet.ensure("chat", "v-old", 1, token=1)
        self.clock.advance(9.0)
        self.traffic.set_split("chat", "", SetSplit("v-old", None, 0, 0), token=1)
        refs = VersionRef("v-old"), VersionRef("v-new")
        state = begin("r-1", "chat", stable=refs[0], canary=refs[1], plan=PLAN, now_s=self.clock.now_s())
        self.stored = Stored(state, 0, ())

    def reread(self) -> None:
        """Through JSON, as a restart does: nothing may live only in memory."""
        kept, pending = self.stored.state, self.stored.pending
        kept, pending = state_from_json(state_to_json(kept)), actions_from_json(actions_to_json(pending))
        self.stored = Stored(kept, self.stored.version, pending)

    def ask_once(self, kind: CommandKind) -> None:
        if not self.asked:
            self.asked.append(ManualCommand(1, kind, "ann", "operator", "", self.clock.now_s()))

    def assert_no_traffic(self, version: str) -> None:
        """Rule 3: what is drained or stopped gets no traffic, and every router knows it."""
        table = self.traffic.observe("chat")
        assert table is not None
        assert table.applied
        assert version not in (table.stable, table.canary)

    def end(self) -> tuple[object, ...]:
        state, table = self.stored.state, self.traffic.observe("chat")
        assert table is not None
        engines = sorted(version for _, version in self.fleet.engines)
        return state.phase, state.serving, table.stable, table.canary, table.weight_bp, engines


@dataclass
class Controller:
    """One process: its probes and its first look are its own. It dies at its `dies_at`th line."""

    world: Environment
    token: int
    dies_at: int | None = None
    lines: int = 0
    has_looked: bool = False

    def line(self) -> None:
        self.lines += 1
        if self.lines == self.dies_at:
            raise Died

    def tick(self) -> None:
        world = self.world
        state, pending = world.stored.state, world.stored.pending
        self.line()
        probes: list[ProbeStatus] = []
        delivered: set[str] = set()
        for action in pending:
            self.act(state, action, probes, delivered)
            self.line()
        now_s = world.clock.now_s()
        evidence = EvidenceStatus(
            state.stage, Verdict.PASS, HARM if world.harmful else None, canary_requests=50
        )
        seen = Observation(
            now_s=now_s,
            split=world.traffic.observe("chat"),
            versions=world.fleet.observe("chat"),
            evidence=evidence,
            probes=tuple(probes),
            commands=tuple(world.asked),
            delivered=frozenset(delivered),
            resumed=not self.has_looked and state.phase is not Phase.PLANNING,
        )
        self.line()
        after, wanted = step(state, seen)
        self.line()
        if (after, wanted) != (state, pending):
            world.stored = Stored(after, world.stored.version + 1, wanted)
        self.has_looked = True
        self.line()

    def act(
        self, state: RolloutState, action: Action, probes: list[ProbeStatus], delivered: set[str]
    ) -> None:
        world, token = self.world, self.token
        match action:
            case SetSplit():
                world.traffic.set_split("chat", "r-1", action, token=token)
            case EnsureVersion(version, replicas):
                world.fleet.ensure("chat", version, replicas, token=token)
            case DrainVersion(version):
                world.assert_no_traffic(version)
                world.fleet.drain("chat", version, token=token)
            case CancelVersion(version):
                world.fleet.cancel("chat", version, token=token)
            case StopVersion(version):
                world.assert_no_traffic(version)
                world.fleet.stop("chat", version, token=token)
            case RunProbe():
                probes.append(FakeProbes().start_or_check(state, action))
            case Notify(key, severity, text):
                world.notifier.send(key, severity, text)
                delivered.add(key)


# --- what happens to the canary


def nothing(world: Environment, state: RolloutState) -> None:
    pass


def harm(world: Environment, state: RolloutState) -> None:
    world.harmful = state.phase is Phase.STAGE and state.stage == 1 and state.acked_at_s is not None


def switched_back(world: Environment, state: RolloutState) -> None:
    if state.phase is Phase.BAKING:
        world.ask_once(CommandKind.ROLLBACK)


def restored(world: Environment, state: RolloutState) -> None:
    if (
        state.phase is Phase.UNLOADING
        and state.departure is not None
        and state.departure.drain_ms is not None
    ):
        world.ask_once(CommandKind.ROLLBACK)


def stuck_streams(world: Environment, state: RolloutState) -> None:
    """Requests that end only when they are taken over."""
    if state.phase is Phase.STAGE and state.stage == 1:
        world.fleet.engines["chat", "v-new"].in_flight = 3
        world.ask_once(CommandKind.ROLLBACK)


def run(
    story: Callable[[Environment, RolloutState], None], dies_at: int | None, away_s: float
) -> tuple[Environment, int]:
    world = Environment(story)
    controller = Controller(world, 2, dies_at)
    for _ in range(TICKS):
        story(world, world.stored.state)
        try:
            controller.tick()
        except Died:
            world.clock.advance(away_s)
            world.reread()
            controller = Controller(world, controller.token + 1)
        if world.stored.state.is_final and not world.stored.pending:
            world.clock.advance(9.0)
            world.fleet.observe("chat")
            return world, controller.lines
        world.clock.advance(TICK_S)
    raise AssertionError(f"no end: {world.stored.state.phase}, {world.stored.state.reason}")


@pytest.mark.parametrize("away_s", [0.0, 5000.0])
@pytest.mark.parametrize("story", [nothing, harm, switched_back, restored, stuck_streams])
def test_dying_at_any_line_ends_in_the_same_world(
    story: Callable[[Environment, RolloutState], None], away_s: float
) -> None:
    whole, lines = run(story, None, 0.0)
    assert lines > 100

    ends = {at: run(story, at, away_s)[0] for at in range(1, lines)}

    assert {at: world.end() for at, world in ends.items() if world.end() != whole.end()} == {}
    assert {frozenset(world.notifier.sent) for world in ends.values()} == {frozenset(whole.notifier.sent)}


def test_the_stories_end_as_they_should() -> None:
    new = (Phase.SUCCEEDED, "v-new", "v-new", None, 0, ["v-new"])
    old = (Phase.ROLLED_BACK, "v-old", "v-old", None, 0, ["v-old"])
    stories = [nothing, harm, switched_back, restored, stuck_streams]

    assert [run(story, None, 0.0)[0].end() for story in stories] == [new, old, old, old, old]


def test_a_deposed_controller_changes_nothing() -> None:
    world, _ = run(nothing, None, 0.0)
    before = world.end()
    late = Controller(world, 1)
    late.world.stored = replace(world.stored, pending=(SetSplit("v-old", "v-new", 9500, 2),))

    with pytest.raises(Exception, match="older than"):
        late.tick()

    assert world.end() == before
