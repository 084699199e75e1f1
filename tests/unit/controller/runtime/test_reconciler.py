"""Reconciler on fakes: actions are committed first, failed reads are None, a failing port blocks no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from controller import telemetry
from controller.auth import Identity, Role
from controller.errors import StaleToken, StaleWrite, Unreachable
from controller.rollout.actions import SetSplit, StopVersion
from controller.rollout.observation import CommandKind, VersionPhase
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
class Rig:
    """Store and data plane, which survive a controller."""

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
        """Ports of a controller, each passed through `wrap`."""
        names = ("store", "fleet", "traffic", "evidence", "probes", "notifier", "clock")
        return Ports(**{name: wrap(name, getattr(self, name)) for name in names})

    def state(self) -> RolloutState:
        stored = self.store.load("r-00000001")
        assert stored is not None
        return stored.state

    def drive(
        self, reconciler: Reconciler, *, until: Callable[[RolloutState], bool], token: int = 1
    ) -> RolloutState:
        """Tick, and advance the clock as the tick returns, until the condition holds."""
        for _ in range(TICKS):
            ticked = tick(reconciler, token=token)
            if until(ticked.state):
                return ticked.state
            self.clock.advance(max(ticked.next_in_s, 0.01))
        raise AssertionError(f"still {self.state().phase}: {self.state().reason}")

    def outcome(self) -> tuple[object, ...]:
        """Final state of rollout, table and engines, to compare runs."""
        table = self.traffic.tables["chat"]
        engines = tuple(sorted(version for _, version in self.fleet.engines))
        state = self.state()
        return state.phase, state.serving, table.stable, table.canary, table.weight_bp, engines


def final(state: RolloutState) -> bool:
    return state.is_final


def in_stage(index: int) -> Callable[[RolloutState], bool]:
    return lambda state: state.phase is Phase.STAGE and state.stage == index and state.acked_at_s is not None


def test_a_good_canary_becomes_stable_and_the_old_version_is_unloaded() -> None:
    rig = Rig()

    state = rig.drive(Reconciler(rig.ports()), until=final)
    rig.clock.advance(10.0)
    rig.fleet.observe("chat")

    assert rig.outcome() == (Phase.SUCCEEDED, CANARY, CANARY, None, 0, (CANARY,)), state.reason


def test_the_weight_only_rises_until_promotion() -> None:
    rig = Rig()
    rig.drive(Reconciler(rig.ports()), until=final)

    assert rig.traffic.weights == [0, 1000, 5000, 10000, 0]


def test_a_manual_rollback_releases_the_memory() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.drive(reconciler, until=in_stage(0))
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=rig.clock.at_s)

    state = rig.drive(reconciler, until=final)

    assert rig.outcome() == (Phase.ROLLED_BACK, STABLE, STABLE, None, 0, (STABLE,))
    assert state.departure is not None
    assert state.departure.total_ms is not None


def test_no_action_is_performed_before_it_is_committed() -> None:
    rig = Rig()
    performed: list[str] = []

    class Recorded:
        def __init__(self, port: Any) -> None:
            self.port = port

        def __getattr__(self, name: str) -> Any:
            if name in ("ensure", "set_split", "drain", "stop", "start_or_check", "send"):
                pending = rig.store.rows["r-00000001"].pending
                performed.append(name)
                assert pending, f"{name} was called with nothing pending"
            return getattr(self.port, name)

    ports = rig.ports(lambda name, port: port if name == "store" else Recorded(port))
    rig.drive(Reconciler(ports), until=final)

    assert {"ensure", "set_split", "drain", "stop", "start_or_check"} <= set(performed)


def test_an_idle_tick_commits_nothing() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.evidence.verdict = Verdict.UNDECIDED
    rig.drive(reconciler, until=in_stage(0))
    tick(reconciler)
    commits = rig.store.commits

    for _ in range(4):
        rig.clock.advance(1.0)
        tick(reconciler)

    assert rig.store.commits == commits


def test_new_evidence_alone_is_committed_after_five_seconds() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.evidence.verdict = Verdict.UNDECIDED
    rig.drive(reconciler, until=in_stage(0))
    tick(reconciler)
    commits = rig.store.commits

    rig.clock.advance(5.1)
    tick(reconciler)

    assert rig.store.commits == commits + 1


def test_an_unreadable_data_plane_causes_a_rollback_that_finishes_once_it_answers() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.evidence.verdict = Verdict.UNDECIDED
    rig.drive(reconciler, until=in_stage(0))
    rig.traffic.blind = rig.fleet.blind = True

    state = rig.drive(reconciler, until=lambda state: state.phase is Phase.ROLLING_BACK)
    rig.traffic.blind = rig.fleet.blind = False
    rig.drive(reconciler, until=final)

    assert state.cause is not None
    assert rig.outcome()[0] is Phase.ROLLED_BACK


def test_a_failing_notifier_does_not_block_a_rollback() -> None:
    rig = Rig()

    class Broken:
        def send(self, *_: object) -> bool:
            raise RuntimeError("the mail server refuses")

    reconciler = Reconciler(rig.ports(lambda name, port: Broken() if name == "notifier" else port))
    rig.drive(reconciler, until=in_stage(0))
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=rig.clock.at_s)

    rig.drive(reconciler, until=final)

    assert rig.outcome() == (Phase.ROLLED_BACK, STABLE, STABLE, None, 0, (STABLE,))


@dataclass(slots=True)
class LargeEvidence(FakeEvidence):
    """Evidence whose snapshot takes seconds, as that of 100,000 users does."""

    clock: FakeClock = field(default_factory=FakeClock)
    takes_s: float = 2.0
    snapshots: int = 0

    def snapshot(self, rollout: str) -> bytes | None:
        self.clock.advance(self.takes_s)
        self.snapshots += 1
        return b'{"all": 1}'

    def conclusion(self, rollout: str) -> bytes | None:
        return b'{"shown": 1}'


def a_rig_with_large_evidence() -> tuple[Rig, Reconciler, LargeEvidence]:
    """In the first stage, which it stays in."""
    rig = Rig()
    rig.evidence = evidence = LargeEvidence(clock=rig.clock)
    reconciler = Reconciler(rig.ports())
    evidence.verdict = Verdict.UNDECIDED
    rig.drive(reconciler, until=in_stage(0))
    return rig, reconciler, evidence


def test_a_rollback_waits_for_no_snapshot_and_an_ended_rollout_keeps_only_what_is_shown() -> None:
    """Of 100,000 users it took 14.7 MB in each commit, and 1.9 s before the traffic moved."""
    rig, reconciler, evidence = a_rig_with_large_evidence()
    snapshots = evidence.snapshots
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=rig.clock.at_s)

    rig.drive(reconciler, until=final)

    assert rig.outcome()[0] is Phase.ROLLED_BACK
    assert (evidence.snapshots, rig.store.evidences["r-00000001"]) == (snapshots, b'{"shown": 1}')


def test_a_snapshot_that_takes_long_is_taken_less_often() -> None:
    rig, reconciler, evidence = a_rig_with_large_evidence()
    snapshots = evidence.snapshots

    for _ in range(35):
        rig.clock.advance(1.0)
        tick(reconciler)
    early = evidence.snapshots - snapshots
    for _ in range(30):
        rig.clock.advance(1.0)
        tick(reconciler)

    assert (early, evidence.snapshots - snapshots) == (0, 1)


def test_the_evidence_is_not_written_for_a_change_that_it_is_not_the_reason_of() -> None:
    rig, reconciler, evidence = a_rig_with_large_evidence()
    snapshots, commits = evidence.snapshots, rig.store.commits
    rig.store.append_command("r-00000001", CommandKind.RESUME, OPERATOR, reason="", at_s=rig.clock.at_s)

    tick(reconciler)

    assert (rig.store.commits, evidence.snapshots) == (commits + 1, snapshots)


def test_a_failing_evidence_snapshot_does_not_block_a_rollback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.drive(reconciler, until=in_stage(0))

    def fails(self: FakeEvidence, rollout: str) -> bytes:
        raise RuntimeError("not serializable")

    monkeypatch.setattr(FakeEvidence, "snapshot", fails)
    monkeypatch.setattr(FakeEvidence, "conclusion", fails)
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=rig.clock.at_s)

    rig.drive(reconciler, until=final)

    assert rig.state().phase is Phase.ROLLED_BACK


def test_unreadable_evidence_never_promotes() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.evidence.readable = False
    rig.drive(reconciler, until=in_stage(0))

    for _ in range(100):
        tick(reconciler)
        rig.clock.advance(10.0)

    assert (rig.state().phase, rig.state().stage) == (Phase.STAGE, 0)


def test_a_tombstone_rolls_back() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.drive(reconciler, until=in_stage(0))
    rig.traffic.tombstone("r-00000001")

    rig.drive(reconciler, until=final)

    assert rig.outcome()[:2] == (Phase.ROLLED_BACK, STABLE)


def test_a_stale_token_ends_the_tick_and_commits_nothing() -> None:
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    rig.drive(reconciler, until=lambda state: state.phase is Phase.LOADING)
    rig.fleet.fence.check(9)
    before = rig.store.load("r-00000001")

    with pytest.raises(StaleToken):
        tick(reconciler)

    assert rig.store.load("r-00000001") == before


def test_a_stale_write_ends_the_tick() -> None:
    rig = Rig()

    class Raced(MemoryStore):
        pass

    def wrap(name: str, port: Any) -> Any:
        if name != "store":
            return port
        raced = Raced(port.rows, port.evidences, port.queued)
        raced.commit = lambda *_, **__: (_ for _ in ()).throw(StaleWrite("read again"))  # type: ignore
        return raced

    with pytest.raises(StaleWrite):
        tick(Reconciler(rig.ports(wrap)))


def test_an_unreachable_store_ends_the_tick() -> None:
    rig = Rig()

    class Gone(MemoryStore):
        def load(self, rollout: str) -> Any:
            raise Unreachable("the database does not answer")

    with pytest.raises(Unreachable):
        tick(Reconciler(rig.ports(lambda name, port: Gone() if name == "store" else port)))


def test_an_unknown_rollout_is_none() -> None:
    assert Reconciler(Rig().ports()).perform("r-nowhere0", token=1) is None


class Killed(BaseException):
    """The controller was killed: nothing of the tick may be caught or finished."""


class Killer:
    """Kills the controller before the nth call of any port; only what was stored remains.

    (A kill after a call is a kill before the next one.) sites: the state at each call, in order.
    """

    def __init__(self, rig: Rig, at: int) -> None:
        self.rig, self.calls_left = rig, at
        self.sites: list[tuple[object, ...]] = []

    def wrap(self, name: str, port: Any) -> Any:
        killer = self

        class Mortal:
            def __getattr__(self, method: str) -> Any:
                def call(*args: Any, **kwargs: Any) -> Any:
                    stored = killer.rig.store.rows["r-00000001"]
                    state = stored.state
                    killer.sites.append(
                        (name, method, state.phase, state.stage, state.departure, stored.pending)
                    )
                    killer.calls_left -= 1
                    if killer.calls_left == 0:
                        raise Killed
                    return getattr(port, method)(*args, **kwargs)

                return call

        return Mortal()


def promotion(rig: Rig) -> None:
    """A harmless canary."""


def manual_rollback(rig: Rig) -> None:
    """A rollback is requested in the second stage."""
    if rig.state().phase is Phase.STAGE and rig.state().stage == 1 and not rig.store.queued:
        rig.store.append_command(
            "r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="bad", at_s=rig.clock.at_s
        )


def run_through(rig: Rig, story: Callable[[Rig], None], killer: Killer | None) -> tuple[object, ...]:
    """Outcome of a run whose controller is killed once and restarted under the next token."""
    reconciler = Reconciler(rig.ports(killer.wrap) if killer else rig.ports())
    token = 1
    for _ in range(TICKS):
        story(rig)
        try:
            ticked = tick(reconciler, token=token)
        except Killed:
            token += 1
            reconciler = Reconciler(rig.ports())
            continue
        if ticked.state.is_final and not rig.store.running():
            break
        rig.clock.advance(max(ticked.next_in_s, 0.01))
    rig.clock.advance(10.0)
    rig.fleet.observe("chat")
    return (*rig.outcome(), sorted(rig.notifier.sent), rig.traffic.weights)


@pytest.mark.integration
@pytest.mark.parametrize("story", [promotion, manual_rollback])
def test_a_kill_at_any_port_call_does_not_change_the_outcome(
    story: Callable[[Rig], None],
) -> None:
    rig = Rig()
    never = Killer(rig, -1)
    undisturbed = run_through(rig, story, never)
    # Calls of one kind in one state differ only in time: the first and the last of them are tried.
    first = {site: at for at, site in reversed(list(enumerate(never.sites, 1)))}
    last = {site: at for at, site in enumerate(never.sites, 1)}
    tried = sorted({*first.values(), *last.values()})
    assert len(tried) > 100

    outcomes = {}
    for at in tried:
        rig = Rig()
        outcomes[at] = run_through(rig, story, Killer(rig, at))

    # A controller that takes over decides before it acts: a rollback spares the weight that it ends.
    *outcome, weights = undisturbed
    assert isinstance(weights, list)
    assert {at: one for at, (*one, _) in outcomes.items() if one != outcome} == {}
    spared = [weight for weight in weights if weight != 5000]
    assert all(one[-1] in (weights, spared) for one in outcomes.values())


def test_a_restarted_controller_logs_that_it_took_over() -> None:
    rig = Rig()
    rig.drive(Reconciler(rig.ports()), until=in_stage(0))

    tick(Reconciler(rig.ports()), token=2)

    assert any("took over" in line.text for line in rig.state().log)


def test_an_ended_rollout_with_an_undelivered_notice_keeps_no_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    monkeypatch.setattr(FakeNotifier, "send", lambda *_: False)
    reconciler = Reconciler(rig.ports())
    rig.drive(reconciler, until=final)
    observed: list[str] = []
    monkeypatch.setattr(FakeEvidence, "observe", lambda _, rollout, *rest: observed.append(rollout.id))

    for _ in range(5):
        rig.clock.advance(2.0)
        tick(reconciler)

    assert rig.store.running() == ("r-00000001",)
    assert observed == []


def test_a_new_controller_decides_before_it_acts() -> None:
    """Killed between the commit of a stop and the stop; an hour later the version that stays is dead."""
    rig = Rig()
    reconciler = Reconciler(rig.ports())
    stop = StopVersion(STABLE)
    rig.drive(reconciler, until=lambda state: stop in rig.store.rows[state.id].pending)
    rig.clock.advance(3600.0)
    rig.fleet.engines["chat", CANARY].phase = VersionPhase.LOADING
    rig.fleet.engines["chat", CANARY].since_s = rig.clock.boot_s() + 1e9

    after = Reconciler(rig.ports())
    for _ in range(5):
        tick(after, token=2)
        rig.clock.advance(0.25)

    assert rig.fleet.engines["chat", STABLE].phase is not VersionPhase.STOPPING


def test_the_actions_of_another_controller_are_performed_in_the_second_tick() -> None:
    rig = Rig()
    rig.drive(Reconciler(rig.ports()), until=lambda state: state.phase is Phase.STAGE)
    before = list(rig.traffic.weights)
    after = Reconciler(rig.ports())

    first = tick(after, token=2)
    assert (first.next_in_s, rig.traffic.weights) == (0.0, before)
    tick(after, token=2)

    assert rig.traffic.weights == [*before, 1000]


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    """Lines of the log on faults: the text, and what it is about."""
    texts = ("failed, will be retried", "works again")
    fields = [(line.getMessage(), vars(line).get("fields", {})) for line in caplog.records]
    return [(text, about.get("what")) for text, about in fields if text in texts]


class Failing:
    """A port of which some calls fail while `is_down`."""

    def __init__(self, port: Any, *calls: str) -> None:
        self._port, self._calls, self.is_down = port, calls, False

    def __getattr__(self, name: str) -> Any:
        return self._fails if self.is_down and name in self._calls else getattr(self._port, name)

    def _fails(self, *_: object, **__: object) -> None:
        raise Unreachable("Ray does not answer")


def test_a_fault_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Fleet and route table stop answering for one reason: one line, not one of each."""
    caplog.set_level(logging.INFO, telemetry.LOGGER)
    rig = Rig()
    down = {name: Failing(getattr(rig, name), "observe") for name in ("fleet", "traffic")}
    reconciler = Reconciler(rig.ports(lambda name, port: down.get(name, port)))

    for is_down in (True, True, True, False):
        for port in down.values():
            port.is_down = is_down
        reconciler.read("chat")

    assert logged(caplog) == [
        ("failed, will be retried", "reading versions"),
        ("works again", "reading split"),
    ]


def test_an_action_that_is_given_up_hides_no_later_fault(caplog: pytest.LogCaptureFixture) -> None:
    """`ensure` fails until a person rolls back; then the fleet fails for the same reason."""
    caplog.set_level(logging.INFO, telemetry.LOGGER)
    rig = Rig()
    fleet = Failing(rig.fleet, "ensure")
    reconciler = Reconciler(rig.ports(lambda name, port: fleet if name == "fleet" else port))
    fleet.is_down = True
    for _ in range(5):
        tick(reconciler)
        rig.clock.advance(1.0)
    rig.store.append_command("r-00000001", CommandKind.ROLLBACK, OPERATOR, reason="", at_s=rig.clock.at_s)
    for _ in range(5):
        tick(reconciler)
        rig.clock.advance(1.0)
    fleet._calls = ("observe",)
    reconciler.read("chat")

    assert logged(caplog) == [
        ("failed, will be retried", "ensure of r-00000001"),
        ("failed, will be retried", "reading versions"),
    ]
