"""One tick against fakes: done is what was committed, unreadable is None, one broken port stops no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from controller.auth import Identity, Role
from controller.errors import StaleToken, StaleWrite, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase, RolloutState
from controller.runtime.reconciler import Ports, Reconciler, Ticked
from evaluation.report import Verdict
from tests.fakes.plane import FakeClock, FakeEvidence, FakeFleet, FakeNotifier, FakeProbes, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE, a_rollout
from tests.fakes.store_memory import MemoryStore

OPERATOR = Identity("ada", Role.OPERATOR)
TICKS = 2000


def tick(reconciler: Reconciler, *, token: int = 1) -> Ticked:
    """One tick as the service loop runs it."""
    performed = reconciler.perform("r-00000001", token=token)
    assert performed is not None
    return reconciler.decide(performed, reconciler.read("chat"))


@dataclass(slots=True)
class Environment:
    """The store and the data plane: what survives a controller."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    evidence: FakeEvidence = field(default_factory=FakeEvidence)
    probes: FakeProbes = field(default_factory=FakeProbes)
    notifier: FakeNotifier = field(default_factory=FakeNotifier)
    fleet: FakeFleet = field(init=False)
    traffic: FakeTraffic = field(init=False)

    def __post_init__(self) -> None:
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.fleet.ensure("chat", STABLE, 1, token=1)
        self.clock.advance(60.0)
        self.traffic.set_split("chat", "", SetSplit(STABLE, None, 0, 0), token=1)
        self.store.create_rollout(a_rollout(now_s=self.clock.at_s), request="{}", at_s=self.clock.at_s)

    def ports(self, wrap: Callable[[str, Any], Any] = lambda _, port: port) -> Ports:
        """The ports of a controller; `wrap` may put something between."""
        names = ("store", "fleet", "traffic", "evidence", "probes", "notifier", "clock")
        return Ports(**{name: wrap(name, getattr(self, name)) for name in names})

    def state(self) -> RolloutState:
        stored = self.store.load("r-00000001")
        assert stored is not None
        return stored.state

    def drive(
        self, reconciler: Reconciler, *, until: Callable[[RolloutState], bool], token: int = 1
    ) -> RolloutState:
        """Tick, let time pass as the tick says, until the claim holds."""
        for _ in range(TICKS):
            ticked = tick(reconciler, token=token)
            if until(ticked.state):
                return ticked.state
            self.clock.advance(max(ticked.next_in_s, 0.01))
        raise AssertionError(f"still {self.state().phase}: {self.state().reason}")

    def outcome(self) -> tuple[object, ...]:
        """Where everything stands, for comparing two runs."""
        table = self.traffic.tables["chat"]
        engines = tuple(sorted(version for _, version in self.fleet.engines))
        state = self.state()
        return state.phase, state.serving, table.stable, table.canary, table.weight_bp, engines


def final(state: RolloutState) -> bool:
    return state.is_final


def in_stage(index: int) -> Callable[[RolloutState], bool]:
    return lambda state: state.phase is Phase.STAGE and state.stage == index and state.acked_at_s is not None


def test_a_good_canary_becomes_stable_and_the_old_one_is_unloaded() -> None:
    world = Environment()

    state = world.drive(Reconciler(world.ports()), until=final)
    world.clock.advance(10.0)
    world.fleet.observe("chat")

    assert world.outcome() == (Phase.SUCCEEDED, CANARY, CANARY, None, 0, (CANARY,)), state.reason


def test_the_weight_only_rises_on_the_way_to_promotion() -> None:
    world = Environment()
    world.drive(Reconciler(world.ports()), until=final)

    assert world.traffic.weights == [0, 1000, 5000, 10000, 0]


def test_a_person_who_asks_gets_a_rollback_with_the_memory_freed() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.drive(reconciler, until=in_stage(0))
    world.store.append_command(
        "r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=world.clock.at_s
    )

    state = world.drive(reconciler, until=final)

    assert world.outcome() == (Phase.ROLLED_BACK, STABLE, STABLE, None, 0, (STABLE,))
    assert state.departure is not None
    assert state.departure.total_ms is not None


def test_nothing_is_done_before_it_is_committed() -> None:
    world = Environment()
    done: list[str] = []

    class Watched:
        def __init__(self, port: Any) -> None:
            self.port = port

        def __getattr__(self, name: str) -> Any:
            if name in ("ensure", "set_split", "drain", "stop", "start_or_check", "send"):
                pending = world.store.rows["r-00000001"].pending
                done.append(name)
                assert pending, f"{name} was called with nothing pending"
            return getattr(self.port, name)

    ports = world.ports(lambda name, port: port if name == "store" else Watched(port))
    world.drive(Reconciler(ports), until=final)

    assert {"ensure", "set_split", "drain", "stop", "start_or_check"} <= set(done)


def test_an_idle_tick_commits_nothing() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.evidence.verdict = Verdict.UNDECIDED
    world.drive(reconciler, until=in_stage(0))
    tick(reconciler)
    commits = world.store.commits

    for _ in range(4):
        world.clock.advance(1.0)
        tick(reconciler)

    assert world.store.commits == commits


def test_new_evidence_alone_is_committed_after_some_seconds() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.evidence.verdict = Verdict.UNDECIDED
    world.drive(reconciler, until=in_stage(0))
    tick(reconciler)
    commits = world.store.commits

    world.clock.advance(5.1)
    tick(reconciler)

    assert world.store.commits == commits + 1


def test_an_unreadable_data_plane_is_rolled_back_when_it_answers_again() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.evidence.verdict = Verdict.UNDECIDED
    world.drive(reconciler, until=in_stage(0))
    world.traffic.blind = world.fleet.blind = True

    state = world.drive(reconciler, until=lambda state: state.phase is Phase.ROLLING_BACK)
    world.traffic.blind = world.fleet.blind = False
    world.drive(reconciler, until=final)

    assert state.cause is not None
    assert world.outcome()[0] is Phase.ROLLED_BACK


def test_a_broken_notifier_keeps_no_rollback_from_happening() -> None:
    world = Environment()

    class Broken:
        def send(self, *_: object) -> bool:
            raise RuntimeError("the mail server speaks Klingon")

    reconciler = Reconciler(world.ports(lambda name, port: Broken() if name == "notifier" else port))
    world.drive(reconciler, until=in_stage(0))
    world.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=world.clock.at_s)

    world.drive(reconciler, until=final)

    assert world.outcome() == (Phase.ROLLED_BACK, STABLE, STABLE, None, 0, (STABLE,))


def test_evidence_that_cannot_be_saved_keeps_no_rollback_from_happening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.drive(reconciler, until=in_stage(0))

    def fails(self: FakeEvidence, rollout: str) -> bytes:
        raise RuntimeError("the code was changed under a running controller")

    monkeypatch.setattr(FakeEvidence, "snapshot", fails)
    world.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=world.clock.at_s)

    world.drive(reconciler, until=final)

    assert world.state().phase is Phase.ROLLED_BACK


def test_unreadable_evidence_never_promotes() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.evidence.readable = False
    world.drive(reconciler, until=in_stage(0))

    for _ in range(100):
        tick(reconciler)
        world.clock.advance(10.0)

    assert (world.state().phase, world.state().stage) == (Phase.STAGE, 0)


def test_a_tombstone_ends_the_rollout_before_anything_else() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.drive(reconciler, until=in_stage(0))
    world.traffic.tombstone("r-00000001")

    world.drive(reconciler, until=final)

    assert world.outcome()[:2] == (Phase.ROLLED_BACK, STABLE)


def test_a_stale_token_ends_the_tick_and_commits_nothing() -> None:
    world = Environment()
    reconciler = Reconciler(world.ports())
    world.drive(reconciler, until=lambda state: state.phase is Phase.LOADING)
    world.fleet.fence.check(9)
    before = world.store.load("r-00000001")

    with pytest.raises(StaleToken):
        tick(reconciler)

    assert world.store.load("r-00000001") == before


def test_a_commit_of_another_controller_ends_the_tick() -> None:
    world = Environment()

    class Raced(MemoryStore):
        pass

    def wrap(name: str, port: Any) -> Any:
        if name != "store":
            return port
        raced = Raced(port.rows, port.evidences, port.asked)
        raced.commit = lambda *_, **__: (_ for _ in ()).throw(StaleWrite("read again"))  # type: ignore
        return raced

    with pytest.raises(StaleWrite):
        tick(Reconciler(world.ports(wrap)))


def test_a_store_that_does_not_answer_is_reported_as_such() -> None:
    world = Environment()

    class Gone(MemoryStore):
        def load(self, rollout: str) -> Any:
            raise Unreachable("the database does not answer")

    with pytest.raises(Unreachable):
        tick(Reconciler(world.ports(lambda name, port: Gone() if name == "store" else port)))


def test_an_unknown_rollout_is_none() -> None:
    assert Reconciler(Environment().ports()).perform("r-nowhere0", token=1) is None


class Killed(BaseException):
    """The controller died: nothing of the tick may be caught or finished."""


class Killer:
    """Dies in the nth call of any port, before it is done; only what was stored is left of the controller.

    (To die after a call is to die before the next one.) `sites`: what each call was about, in order.
    """

    def __init__(self, world: Environment, at: int) -> None:
        self.world, self.left = world, at
        self.sites: list[tuple[object, ...]] = []

    def wrap(self, name: str, port: Any) -> Any:
        killer = self

        class Mortal:
            def __getattr__(self, method: str) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    stored = killer.world.store.rows["r-00000001"]
                    state = stored.state
                    killer.sites.append(
                        (name, method, state.phase, state.stage, state.departure, stored.pending)
                    )
                    killer.left -= 1
                    if killer.left == 0:
                        raise Killed
                    return getattr(port, method)(*args, **kwargs)

                return call

        return Mortal()


def good(world: Environment) -> None:
    """Nothing is wrong: the canary is promoted."""


def asked(world: Environment) -> None:
    """A person asks for a rollback in the second stage."""
    if world.state().phase is Phase.STAGE and world.state().stage == 1 and not world.store.asked:
        world.store.append_command(
            "r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=world.clock.at_s
        )


def run_through(
    world: Environment, happens: Callable[[Environment], None], killer: Killer | None
) -> tuple[object, ...]:
    """The outcome of a run whose controller is killed once and started again under the next token."""
    reconciler = Reconciler(world.ports(killer.wrap) if killer else world.ports())
    token = 1
    for _ in range(TICKS):
        happens(world)
        try:
            ticked = tick(reconciler, token=token)
        except Killed:
            token += 1
            reconciler = Reconciler(world.ports())
            continue
        if ticked.state.is_final and not world.store.running():
            break
        world.clock.advance(max(ticked.next_in_s, 0.01))
    world.clock.advance(10.0)
    world.fleet.observe("chat")
    return (*world.outcome(), sorted(world.notifier.sent), world.traffic.weights)


@pytest.mark.parametrize("happens", [good, asked], ids=["promotion", "rollback"])
def test_a_crash_between_any_two_lines_ends_as_if_nothing_had_been(
    happens: Callable[[Environment], None],
) -> None:
    world = Environment()
    survivor = Killer(world, -1)
    undisturbed = run_through(world, happens, survivor)
    # Calls of one kind in one state differ in nothing but the time: the first and the last of them are tried.
    first = {site: at for at, site in reversed(list(enumerate(survivor.sites, 1)))}
    last = {site: at for at, site in enumerate(survivor.sites, 1)}
    tried = sorted({*first.values(), *last.values()})
    assert len(tried) > 100

    outcomes = {}
    for at in tried:
        world = Environment()
        outcomes[at] = run_through(world, happens, Killer(world, at))

    assert {at: outcome for at, outcome in outcomes.items() if outcome != undisturbed} == {}


def test_a_restarted_controller_says_that_it_took_over() -> None:
    world = Environment()
    world.drive(Reconciler(world.ports()), until=in_stage(0))

    tick(Reconciler(world.ports()), token=2)

    assert any("took over" in line.text for line in world.state().log)
