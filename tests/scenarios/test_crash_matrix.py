"""Crash matrix: a controller that crashes anywhere in a tick, for any time, does not change the outcome."""

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


class Crashed(Exception):
    """The controller process ended; what it had not committed is lost."""


@dataclass
class Survivors:
    """What survives a controller: data plane, store, manual commands."""

    story: Callable[[Survivors, RolloutState], None]
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    notifier: FakeNotifier = field(default_factory=FakeNotifier)
    commands: list[ManualCommand] = field(default_factory=list)
    harmful: bool = False

    def __post_init__(self) -> None:
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock, ack_s=0.6)
        self.fleet.ensure("chat", "v-old", 1, token=1)
        self.clock.advance(9.0)
        self.traffic.set_split("chat", "", SetSplit("v-old", None, 0, 0), token=1)
        refs = VersionRef("v-old"), VersionRef("v-new")
        plan = UNDO if self.story is undone else PLAN
        state = begin("r-1", "chat", stable=refs[0], canary=refs[1], plan=plan, now_s=self.clock.now_s())
        self.stored = Stored(state, 0, ())

    def reload(self) -> None:
        """Convert to JSON and back, as a restart does: nothing may exist only in memory."""
        state = state_from_json(state_to_json(self.stored.state))
        pending = actions_from_json(actions_to_json(self.stored.pending))
        self.stored = Stored(state, self.stored.version, pending)

    def command_once(self, kind: CommandKind) -> None:
        if not self.commands:
            self.commands.append(ManualCommand(1, kind, "ann", "operator", "", self.clock.now_s()))

    def assert_no_traffic(self, version: str) -> None:
        """Rule 3: a drained or stopped version gets no traffic, acknowledged by every router."""
        table = self.traffic.observe("chat")
        assert table is not None
        assert table.applied
        assert version not in (table.stable, table.canary)

    def outcome(self) -> tuple[object, ...]:
        state, table = self.stored.state, self.traffic.observe("chat")
        assert table is not None
        engines = sorted(version for _, version in self.fleet.engines)
        return state.phase, state.serving, table.stable, table.canary, table.weight_bp, engines


@dataclass
class Controller:
    """One controller process. It crashes at its `crash_at`-th checkpoint."""

    survivors: Survivors
    token: int
    crash_at: int | None = None
    checkpoints: int = 0
    has_ticked: bool = False

    def checkpoint(self) -> None:
        self.checkpoints += 1
        if self.checkpoints == self.crash_at:
            raise Crashed

    def tick(self) -> None:
        survivors = self.survivors
        state, pending = survivors.stored.state, survivors.stored.pending
        self.checkpoint()
        probes: list[ProbeStatus] = []
        delivered: set[str] = set()
        for action in pending:
            self.act(state, action, probes, delivered)
            self.checkpoint()
        now_s = survivors.clock.now_s()
        evidence = EvidenceStatus(
            state.stage, Verdict.PASS, HARM if survivors.harmful else None, canary_requests=50
        )
        seen = Observation(
            now_s=now_s,
            split=survivors.traffic.observe("chat"),
            versions=survivors.fleet.observe("chat"),
            evidence=evidence,
            probes=tuple(probes),
            commands=tuple(survivors.commands),
            delivered=frozenset(delivered),
            resumed=not self.has_ticked and state.phase is not Phase.PLANNING,
            away_s=0.0 if self.has_ticked else max(0.0, now_s - state.ticked_at_s - TICK_S),
        )
        self.checkpoint()
        after, actions = step(state, seen)
        self.checkpoint()
        if (after, actions) != (state, pending):
            survivors.stored = Stored(after, survivors.stored.version + 1, actions)
        self.has_ticked = True
        self.checkpoint()

    def act(
        self, state: RolloutState, action: Action, probes: list[ProbeStatus], delivered: set[str]
    ) -> None:
        survivors, token = self.survivors, self.token
        match action:
            case SetSplit():
                survivors.traffic.set_split("chat", "r-1", action, token=token)
            case EnsureVersion(version, replicas):
                survivors.fleet.ensure("chat", version, replicas, token=token)
            case DrainVersion(version):
                survivors.assert_no_traffic(version)
                survivors.fleet.drain("chat", version, token=token)
            case CancelVersion(version):
                survivors.fleet.cancel("chat", version, token=token)
            case StopVersion(version):
                survivors.assert_no_traffic(version)
                survivors.fleet.stop("chat", version, token=token)
            case RunProbe():
                probes.append(FakeProbes().start_or_check(state, action))
            case Notify(key, severity, text):
                survivors.notifier.send(key, severity, text)
                delivered.add(key)


# --- stories of a canary


def nothing(survivors: Survivors, state: RolloutState) -> None:
    pass


def harm(survivors: Survivors, state: RolloutState) -> None:
    survivors.harmful = state.phase is Phase.STAGE and state.stage == 1 and state.acked_at_s is not None


def switched_back(survivors: Survivors, state: RolloutState) -> None:
    if state.phase is Phase.BAKING:
        survivors.command_once(CommandKind.ROLLBACK)


def restored(survivors: Survivors, state: RolloutState) -> None:
    if (
        state.phase is Phase.UNLOADING
        and state.departure is not None
        and state.departure.drain_ms is not None
    ):
        survivors.command_once(CommandKind.ROLLBACK)


def stuck_streams(survivors: Survivors, state: RolloutState) -> None:
    """Requests that end only by takeover."""
    if state.phase is Phase.STAGE and state.stage == 1:
        survivors.fleet.engines["chat", "v-new"].in_flight = 3
        survivors.command_once(CommandKind.ROLLBACK)


def undone(survivors: Survivors, state: RolloutState) -> None:
    """The canary is a version that served before: no stages, no proof."""


UNDO = Plan("none", (), (), holdback_bp=0, bake_s=3.0, drain_s=3.0, cancel_s=2.0, undo=True)


def run(
    story: Callable[[Survivors, RolloutState], None], crash_at: int | None, down_s: float
) -> tuple[Survivors, int]:
    survivors = Survivors(story)
    controller = Controller(survivors, 2, crash_at)
    for _ in range(TICKS):
        story(survivors, survivors.stored.state)
        try:
            controller.tick()
        except Crashed:
            survivors.clock.advance(down_s)
            survivors.reload()
            controller = Controller(survivors, controller.token + 1)
        if survivors.stored.state.is_final and not survivors.stored.pending:
            survivors.clock.advance(9.0)
            survivors.fleet.observe("chat")
            return survivors, controller.checkpoints
        survivors.clock.advance(TICK_S)
    raise AssertionError(f"not finished: {survivors.stored.state.phase}, {survivors.stored.state.reason}")


@pytest.mark.integration
@pytest.mark.parametrize("down_s", [0.0, 5000.0])
@pytest.mark.parametrize("story", [nothing, harm, switched_back, restored, stuck_streams, undone])
def test_a_crash_at_any_checkpoint_has_the_same_outcome(
    story: Callable[[Survivors, RolloutState], None], down_s: float
) -> None:
    undisturbed, checkpoints = run(story, None, 0.0)
    assert checkpoints > 90

    crashed = {at: run(story, at, down_s)[0] for at in range(1, checkpoints)}

    expected = undisturbed.outcome()
    assert {at: run.outcome() for at, run in crashed.items() if run.outcome() != expected} == {}
    assert {frozenset(run.notifier.sent) for run in crashed.values()} == {
        frozenset(undisturbed.notifier.sent)
    }


def test_each_story_has_its_expected_outcome() -> None:
    new = (Phase.SUCCEEDED, "v-new", "v-new", None, 0, ["v-new"])
    old = (Phase.ROLLED_BACK, "v-old", "v-old", None, 0, ["v-old"])
    stories = [nothing, harm, switched_back, restored, stuck_streams, undone]

    assert [run(story, None, 0.0)[0].outcome() for story in stories] == [new, old, old, old, old, new]


def test_a_deposed_controller_changes_nothing() -> None:
    survivors, _ = run(nothing, None, 0.0)
    before = survivors.outcome()
    late = Controller(survivors, 1)
    survivors.stored = replace(survivors.stored, pending=(SetSplit("v-old", "v-new", 9500, 2),))

    with pytest.raises(Exception, match="older than"):
        late.tick()

    assert survivors.outcome() == before
