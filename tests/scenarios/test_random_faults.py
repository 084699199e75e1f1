"""Random faults against machine, reconciler and keeper together: what holds in every tick, and at the end.

Engines die, loads fail, fleet and table cannot be read, controllers are killed between any two ticks or stand
still, people give commands, the evidence turns. The seeds are fixed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from controller.auth import Identity, Role
from controller.errors import CanaryctlError
from controller.rollout.actions import SetSplit
from controller.rollout.machine import begin
from controller.rollout.observation import CommandKind, VersionPhase
from controller.rollout.plan import MirrorPlan, Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.store.rows import ServiceRow
from evaluation.report import GateReport, Verdict
from tests.fakes.plane import (
    FakeClock,
    FakeEvidence,
    FakeFleet,
    FakeIngress,
    FakeNotifier,
    FakeProbes,
    FakeTraffic,
)
from tests.fakes.rollouts import CANARY, STABLE
from tests.fakes.store_memory import MemoryStore
from tests.seeds import seeds

ADA = Identity("ada", Role.ADMIN)
ID = "r-00000001"
STAGES = (Stage(1000, 20.0, 10, 200.0, 1), Stage(5000, 20.0, 10, 200.0, 2))
NORMAL = Plan("medium", (), STAGES, 500, 60.0, load_s=150.0, hold_limit_s=600.0)
PLANS = {
    "normal": NORMAL,
    "nothing held back": replace(NORMAL, holdback_bp=0),
    "mirrored": replace(NORMAL, mirror=MirrorPlan(2000, 20, 100.0)),
    "undo": replace(NORMAL, stages=(), holdback_bp=0, undo=True),
    "twin": replace(NORMAL, twin=True),
}
HARM = GateReport("error", "error", "rollback", Verdict.FAIL, 9.0, 5.0, "errors 5x", 99, 99)
UNANSWERED_S = 75.0
RACE_S = 8.0  # what happens in the tick of a decision, or a blink before it, is not seen by it


@dataclass
class World:
    """Everything that outlives a controller, and the rules that are checked."""

    plan: Plan
    seed: int
    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    evidence: FakeEvidence = field(default_factory=FakeEvidence)
    token: int = 1
    broken: list[str] = field(default_factory=list)  # rules
    answered_s: dict[str, float] = field(default_factory=dict)  # by version, boot time

    def __post_init__(self) -> None:
        self.rng, self.silent_since_s = random.Random(self.seed), self.clock.boot_s()
        self.fleet, self.traffic = FakeFleet(self.clock, load_s=3.0), FakeTraffic(self.clock, ack_s=0.5)
        self.fleet.ensure("chat", STABLE, 2, token=1)
        self.clock.advance(60.0)
        self.traffic.set_split("chat", "", SetSplit(STABLE, None, 0, 0), token=1)
        arms = VersionRef(STABLE, 2), VersionRef(CANARY, 2)
        now_s = self.clock.at_s
        state = begin(ID, "chat", stable=arms[0], canary=arms[1], plan=self.plan, now_s=now_s)
        self.store.create_rollout(state, request="{}", at_s=now_s)
        self.start()

    def start(self) -> None:
        """A new controller, which knows what was stored alone."""
        ports = Ports(
            self.store,
            Watched(self),
            self.traffic,
            self.evidence,
            FakeProbes(),
            FakeNotifier(),
            self.clock,
        )
        self.reconciler, self.keep_at_s = Reconciler(ports), 0.0
        ingress = FakeIngress(self.traffic)
        self.keeper = Keeper(ports.fleet, self.traffic, ingress, self, self.clock)

    # the keeper's part of the store

    def service(self, name: str) -> ServiceRow:
        """The row, whose stable version the newest commit has set."""
        return ServiceRow(name, "{}", self.state.serving, "s3cret", 1.0)

    def remove_service(self, name: str, *, at_s: float, token: int) -> None:
        """Never called."""

    @property
    def state(self) -> RolloutState:
        """As committed."""
        return self.store.rows[ID].state

    def ready(self, version: str) -> bool:
        """True: it answers."""
        self.fleet._pass_time()
        engine = self.fleet.engines.get(("chat", version))
        return engine is not None and engine.phase in (VersionPhase.READY, VersionPhase.DRAINING)

    def tick(self) -> None:
        """One tick of the service loop, and a second of the keeper."""
        before = self.state
        for version in (STABLE, CANARY):
            if self.ready(version):
                self.answered_s[version] = self.clock.boot_s()
        pause_s = 1.0
        if ID in self.store.running():
            performed = self.reconciler.perform(ID, token=self.token)
            assert performed is not None
            plane = self.reconciler.read("chat")
            pause_s = self.reconciler.decide(performed, plane).next_in_s
        else:
            plane = self.reconciler.read("chat")
        self.check(before, self.state, is_read=plane.versions is not None)
        self.check_answers()
        if self.clock.boot_s() >= self.keep_at_s:
            self.keep_at_s = self.clock.boot_s() + 1.0
            prepared = self.keeper.prepare("chat", token=self.token)
            running = None if self.state.is_final else self.state
            if prepared is not None:
                self.keeper.tick(prepared, lambda row: 2, running, plane, token=self.token)
        self.clock.advance(max(pause_s, 0.05))

    def check_answers(self) -> None:
        """The table names no dead version for long while the other one of a departure could answer."""
        table, departure = self.traffic.tables["chat"], self.state.departure
        other = CANARY if table.stable == STABLE else STABLE
        is_allowed = departure is not None and (departure.kept_bp > 0 or self.state.phase is Phase.UNLOADING)
        is_alone = not table.weight_bp and not self.ready(str(table.stable)) and self.ready(other)
        is_seen = not self.fleet.blind and not self.traffic.blind and not self.state.is_final
        if not (is_allowed and is_alone and is_seen) or self.plan.twin:
            self.silent_since_s = self.clock.boot_s()
        if self.clock.boot_s() - self.silent_since_s > UNANSWERED_S:
            self.broken.append(f"{table.stable} does not answer, and {other} may not")

    def check(self, before: RolloutState, after: RolloutState, *, is_read: bool) -> None:
        """The rules of one tick."""
        if before.is_final and after.phase is not before.phase:
            self.broken.append("a final phase was left")
        if after.weight_bp <= before.weight_bp or after.departure is not None:
            return
        if after.holds or not is_read or not self.ready(CANARY):
            self.broken.append(f"the weight rises in {after.phase.value}: held, unread, or no canary")
        if not self.plan.undo and not self.ready(STABLE):
            self.broken.append(f"the weight rises in {after.phase.value} without stable")

    def check_stop(self, version: str) -> None:
        """Nobody is stopped who alone could answer."""
        other = STABLE if version == CANARY else CANARY
        state, departure = self.state, self.state.departure
        is_no_promotion = state.phase is Phase.ROLLING_BACK or self.plan.twin
        is_barred = is_no_promotion and departure is not None and not departure.kept_bp
        if not self.ready(version) or self.ready(other) or is_barred or not state.exposed:
            return
        if self.clock.boot_s() - self.answered_s.get(other, 0.0) > RACE_S:
            self.broken.append(f"{version} is stopped in {state.phase.value}, and {other} does not answer")

    def fault(self) -> None:
        """One of what may happen."""
        rng, now_s = self.rng, self.clock.boot_s()
        match rng.choice(
            ["die", "die", "die", "blind", "table", "evidence", "command", "kill", "gap", "load"]
        ):
            case "die":
                engine = self.fleet.engines.get(("chat", rng.choice([STABLE, CANARY])))
                if engine is not None and engine.phase is VersionPhase.READY:
                    engine.phase = VersionPhase.LOADING
                    engine.since_s = now_s + rng.choice([-2.0, 2.0, 30.0, 200.0])
            case "blind":
                self.fleet.blind = not self.fleet.blind
            case "table":
                self.traffic.blind = not self.traffic.blind
            case "evidence":
                self.evidence.verdict = rng.choice([Verdict.PASS, Verdict.PASS, Verdict.UNDECIDED])
                self.evidence.readable = rng.random() < 0.8
                self.evidence.harm = HARM if rng.random() < 0.1 else None
            case "command":
                kind = rng.choice([CommandKind.ROLLBACK, CommandKind.PAUSE, CommandKind.RESUME])
                if not self.state.is_final:
                    self.store.append_command(ID, kind, ADA, reason="because", at_s=self.clock.at_s)
            case "kill":
                self.token += 1
                self.start()
            case "gap":
                self.clock.advance(rng.choice([5.0, 100.0, 3000.0]))
                self.silent_since_s = self.clock.boot_s()
            case _:
                version = rng.choice([STABLE, CANARY])
                if self.fleet.broken.pop(version, None) is None:
                    self.fleet.broken[version] = "out of memory"

    def heal(self) -> None:
        """Everything works again, and nobody holds the rollout."""
        self.fleet.blind = self.traffic.blind = False
        self.fleet.broken.clear()
        self.evidence.readable, self.evidence.harm, self.evidence.verdict = True, None, Verdict.PASS
        for engine in self.fleet.engines.values():
            engine.since_s = min(engine.since_s, self.clock.boot_s())
        if not self.state.is_final:
            self.store.append_command(ID, CommandKind.RESUME, ADA, reason="on", at_s=self.clock.at_s)


class Watched(FakeFleet):
    """The world's fleet; each stop is checked."""

    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        fleet = world.fleet
        super().__init__(fleet.clock, engines=fleet.engines, broken=fleet.broken, fence=fleet.fence)
        self._world = world

    def observe(self, service: str):  # type: ignore[no-untyped-def]
        """As the world's."""
        return self._world.fleet.observe(service)

    def _check(self, token: int) -> None:
        self._world.fleet._check(token)

    def stop(self, service: str, version: str, *, token: int) -> None:
        """See `World.check_stop`."""
        self._check(token)
        engine = self.engines.get((service, version))
        if engine is not None and engine.phase is not VersionPhase.STOPPING:
            self._world.check_stop(version)
        super().stop(service, version, token=token)


@pytest.mark.slow
@pytest.mark.sample(8)
@pytest.mark.parametrize("plan", PLANS)
@seeds(10, quick=4)
def test_no_fault_leaves_users_without_an_answer_that_exists(plan: str, seed: int) -> None:
    world = World(PLANS[plan], seed)
    calm = world.rng.choice([0, 0, 20, 80, 160, 200])
    for number in range(500):
        if number > calm and world.rng.random() < 0.15:
            world.fault()
        try:
            world.tick()
        except CanaryctlError:
            world.clock.advance(1.0)
        if world.broken:
            break
    world.heal()
    for _ in range(6000):
        world.tick()
        if world.state.is_final and not world.store.running():
            break
    for _ in range(200):
        world.tick()

    assert world.broken == []
    assert world.state.is_final
    table, serving = world.traffic.tables["chat"], world.state.serving
    assert (table.stable, table.canary, table.weight_bp) == (serving, None, 0)
    assert {version for _, version in world.fleet.engines} == {serving}
