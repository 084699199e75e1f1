"""Keeper on fakes: repairs a service towards its row, and stops only versions without an owner."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import pytest

from controller import telemetry
from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.observation import DataPlaneStatus, VersionPhase, VersionStatus
from controller.rollout.state import Phase, RolloutState
from controller.runtime.service_keeper import Keeper
from controller.store.rows import ServiceRow
from tests.fakes.plane import FakeClock, FakeFleet, FakeIngress, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)


@dataclass(slots=True)
class Services:
    row: ServiceRow = CHAT
    removed: list[str] = field(default_factory=list)

    def service(self, name: str) -> ServiceRow:
        return self.row

    def remove_service(self, name: str, *, at_s: float, token: int) -> None:
        self.removed.append(name)


class Rig:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fleet, self.traffic = FakeFleet(self.clock), FakeTraffic(self.clock)
        self.ingress = FakeIngress(self.traffic)
        self.services = Services()
        self.keeper = Keeper(self.fleet, self.traffic, self.ingress, self.services, self.clock)

    def keep(
        self, row: ServiceRow = CHAT, *, rollout: RolloutState | None = None, ticks: int = 1
    ) -> float | None:
        """Tick a number of times, as far apart as the ticks return."""
        next_in_s: float | None = None
        self.services.row = row
        for _ in range(ticks):
            prepared = self.keeper.prepare("chat", token=1)
            assert prepared is not None
            plane = DataPlaneStatus(
                self.clock.now_s(),
                self.clock.boot_s(),
                self.traffic.observe("chat"),
                self.fleet.observe("chat"),
            )
            next_in_s = self.keeper.tick(prepared, lambda row: 1, rollout, plane, token=1)
            self.clock.advance(next_in_s or 0.0)
        return next_in_s

    def plane(self) -> DataPlaneStatus:
        clock = self.clock
        split, versions = self.traffic.observe("chat"), self.fleet.observe("chat")
        return DataPlaneStatus(clock.now_s(), clock.boot_s(), split, versions)

    def versions(self) -> dict[str, VersionPhase]:
        return {one.version: one.phase for one in self.fleet.observe("chat") or ()}


def test_a_new_service_is_loaded_and_stable_gets_all_traffic() -> None:
    rig = Rig()
    rig.keep(ticks=10)

    table = rig.traffic.tables["chat"]
    assert rig.versions() == {STABLE: VersionPhase.READY}
    assert (table.stable, table.canary, rig.ingress.opened) == (STABLE, None, {"chat": "s3cret"})


def test_a_settled_service_is_not_changed() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    loads, weights = rig.fleet.loads, list(rig.traffic.weights)

    next_in_s = rig.keep(ticks=10)

    assert (rig.fleet.loads, rig.traffic.weights, next_in_s) == (loads, weights, 1.0)


def test_every_tick_sends_a_heartbeat() -> None:
    rig = Rig()
    rig.keep(ticks=3)
    before_s = rig.traffic.heartbeat_at_s["chat"]

    rig.clock.advance(5.0)
    rig.keep()

    assert rig.traffic.heartbeat_at_s["chat"] > before_s + 5.0


def test_a_missing_stable_is_loaded_again() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    rig.fleet.engines.clear()

    rig.keep(ticks=10)

    assert rig.versions() == {STABLE: VersionPhase.READY}


def test_a_failed_stable_is_loaded_again_after_a_delay() -> None:
    rig = Rig()
    rig.fleet.broken[STABLE] = "out of memory"
    rig.keep(ticks=20)
    loads = rig.fleet.loads
    del rig.fleet.broken[STABLE]

    rig.clock.advance(31.0)
    rig.keep(ticks=20)

    assert (loads, rig.versions()) == (1, {STABLE: VersionPhase.READY})


def test_a_version_without_an_owner_is_stopped() -> None:
    rig = Rig()
    rig.fleet.ensure("chat", CANARY, 1, token=1)
    rig.keep(ticks=20)

    assert rig.versions() == {STABLE: VersionPhase.READY}


def test_canary_and_table_of_a_running_rollout_are_not_changed() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    rig.fleet.ensure("chat", CANARY, 1, token=1)
    rig.traffic.set_split("chat", "r-00000001", SetSplit(STABLE, CANARY, 1000, 0), token=1)
    rollout = replace(a_rollout(), phase=Phase.STAGE, launched=True, exposed=True)

    rig.keep(rollout=rollout, ticks=10)

    assert CANARY in rig.versions()
    assert rig.traffic.tables["chat"].weight_bp == 1000


def test_an_empty_table_gets_its_stable_again() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    rig.traffic.tables.clear()

    rig.keep(ticks=2)

    assert rig.traffic.tables["chat"].stable == STABLE


def test_a_version_that_answers_stays_until_the_stored_one_is_ready() -> None:
    """After an older copy of the database was restored, or the service was made anew."""
    rig = Rig()
    promoted = replace(CHAT, stable=CANARY)
    rig.keep(promoted, ticks=20)
    rig.fleet.broken[STABLE] = "out of memory"
    rig.keep(CHAT, ticks=20)
    while_loading = (rig.traffic.tables["chat"].stable, rig.versions()[CANARY])
    del rig.fleet.broken[STABLE]
    rig.clock.advance(31.0)
    rig.keep(CHAT, ticks=80)

    assert while_loading == (CANARY, VersionPhase.READY)
    assert (rig.traffic.tables["chat"].stable, rig.versions()) == (STABLE, {STABLE: VersionPhase.READY})


@pytest.mark.parametrize("stored", [STABLE, CANARY])
@pytest.mark.parametrize("runs", [True, False])
def test_the_arms_of_a_rollout_are_no_sign_of_an_older_copy(
    stored: str, runs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each restart in a stage and each promotion sent people to restore a backup."""
    logging.getLogger(telemetry.LOGGER).propagate = True
    rig = Rig()
    rig.keep(ticks=10)
    rig.fleet.ensure("chat", CANARY, 1, token=1)
    rig.traffic.set_split("chat", "r-00000001", SetSplit(STABLE, CANARY, 1000, 0), token=1)
    rollout = replace(a_rollout(), phase=Phase.STAGE, launched=True, exposed=True)
    rig.keeper = Keeper(rig.fleet, rig.traffic, rig.ingress, rig.services, rig.clock)
    caplog.clear()

    rig.keep(replace(CHAT, stable=stored), rollout=rollout if runs else None, ticks=3)

    told = [line.getMessage() for line in caplog.records if "older copy" in line.getMessage()]
    assert len(told) == (0 if runs else 1)


def test_an_unreadable_fleet_moves_no_traffic_to_another_version() -> None:
    rig = Rig()
    rig.keep(replace(CHAT, stable=CANARY), ticks=20)
    rig.fleet.blind = True
    rig.keep(CHAT, ticks=5)

    assert rig.traffic.tables["chat"].stable == CANARY


def test_an_unreadable_fleet_is_not_changed() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    loads = rig.fleet.loads
    rig.fleet.blind = True

    rig.keep(ticks=5)

    assert rig.fleet.loads == loads


def test_an_unreadable_route_table_is_not_changed() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    weights = list(rig.traffic.weights)
    prepared = rig.keeper.prepare("chat", token=1)
    assert prepared is not None
    unreadable = replace(rig.plane(), split=None)
    rig.traffic.tables["chat"] = replace(rig.traffic.tables["chat"], canary=CANARY, weight_bp=100)

    rig.keeper.tick(prepared, lambda row: 1, None, unreadable, token=1)

    assert rig.traffic.weights == weights


def test_a_removed_service_closes_its_front_before_its_engines_stop() -> None:
    rig = Rig()
    rig.keep(ticks=10)

    rig.keep(replace(CHAT, removing=True))

    assert (rig.ingress.opened, rig.services.removed) == ({}, [])
    assert rig.versions() == {STABLE: VersionPhase.STOPPING}


def test_a_removed_service_is_deleted_once_its_memory_is_released() -> None:
    rig = Rig()
    rig.keep(ticks=10)

    next_in_s = rig.keep(replace(CHAT, removing=True), ticks=10)

    assert (rig.versions(), set(rig.services.removed), next_in_s) == ({}, {"chat"}, None)


def test_a_stale_token_ends_the_tick() -> None:
    rig = Rig()
    rig.fleet.fence.check(7)

    with pytest.raises(StaleToken):
        rig.keep()


def test_the_row_is_read_after_the_rollout_was_stepped() -> None:
    """A step that changes the stable version comes between `prepare` and `tick`."""
    rig = Rig()
    rig.keep(ticks=10)
    rig.fleet.ensure("chat", CANARY, 1, token=1)
    rig.clock.advance(5.0)
    prepared = rig.keeper.prepare("chat", token=1)
    assert prepared is not None
    plane = DataPlaneStatus(
        rig.clock.now_s(), rig.clock.boot_s(), rig.traffic.observe("chat"), rig.fleet.observe("chat")
    )

    rig.services.row = replace(CHAT, stable=CANARY)
    rig.keeper.tick(prepared, lambda row: 1, None, plane, token=1)

    assert rig.versions()[CANARY] is VersionPhase.READY
    assert rig.traffic.tables["chat"].stable == STABLE  # it is not known whether the other stays ready

    rig.keep(rig.services.row, ticks=80)
    assert rig.traffic.tables["chat"].stable == CANARY


class OlderCopy(Rig):
    """STABLE is stored, and loads for an hour; the table names CANARY, which alone answers."""

    def __init__(self, replicas: int = 1) -> None:
        super().__init__()
        self.keep(replace(CHAT, stable=CANARY), ticks=20)
        self.fleet.load_s, self.needed = 3600.0, replicas
        self.services.row = CHAT

    def tick(self, plane: DataPlaneStatus | None = None, *, ticks: int = 1) -> None:
        for _ in range(ticks):
            prepared = self.keeper.prepare("chat", token=1)
            assert prepared is not None
            read = replace(plane or self.plane(), boot_s=self.clock.boot_s())
            self.keeper.tick(prepared, lambda row: self.needed, None, read, token=1)
            self.clock.advance(1.0)

    def shown(self, stable: VersionPhase, ready: int, *, other: int = 1) -> DataPlaneStatus:
        """A reading with this of the stored version, and so many ready replicas of the other."""
        plane = self.plane()
        phase = VersionPhase.READY if other else VersionPhase.LOADING
        versions = (VersionStatus(STABLE, stable, ready, 0), VersionStatus(CANARY, phase, other, 1))
        return replace(plane, versions=versions)

    @property
    def serves(self) -> bool:
        return self.traffic.tables["chat"].stable == CANARY and self.versions()[CANARY] is VersionPhase.READY


def test_a_table_that_is_not_read_stops_nobody_who_answers() -> None:
    rig = OlderCopy()
    for _ in range(3):
        rig.tick(ticks=3)
        rig.tick(replace(rig.plane(), split=None))

    assert rig.serves


@pytest.mark.parametrize("phase", [VersionPhase.FAILED, VersionPhase.STOPPING, VersionPhase.LOADING])
def test_a_replica_left_of_a_version_that_is_not_ready_stops_nobody_who_answers(phase: VersionPhase) -> None:
    rig = OlderCopy(replicas=2)
    rig.tick(ticks=3)
    rig.tick(rig.shown(phase, 1), ticks=20)

    assert rig.serves


def test_a_blink_of_the_version_that_answers_does_not_stop_it() -> None:
    rig = OlderCopy()
    for _ in range(5):
        rig.tick(rig.shown(VersionPhase.LOADING, 0, other=0), ticks=3)
        rig.tick(ticks=3)

    assert rig.serves


def test_a_stored_version_that_was_ready_for_a_moment_takes_no_traffic() -> None:
    rig = OlderCopy()
    for _ in range(3):
        rig.tick(rig.shown(VersionPhase.READY, 1), ticks=5)
        rig.tick(rig.shown(VersionPhase.LOADING, 0))

    assert rig.serves


def test_traffic_moves_and_is_acknowledged_before_the_other_is_drained_and_stopped() -> None:
    rig = OlderCopy()
    rig.traffic.ack_s, rig.fleet.load_s, rig.fleet.unload_s = 2.5, 0.0, 2.5
    rig.fleet.engines["chat", CANARY].in_flight = 1
    seen: list[tuple[str | None, VersionPhase | None]] = []
    for second in range(40):
        if second == 25:
            rig.fleet.engines["chat", CANARY].in_flight = 0
        rig.tick()
        entry = (rig.traffic.tables["chat"].stable, rig.versions().get(CANARY))
        seen += [] if seen and seen[-1] == entry else [entry]

    assert seen == [
        (CANARY, VersionPhase.READY),
        (STABLE, VersionPhase.READY),
        (STABLE, VersionPhase.DRAINING),
        (STABLE, VersionPhase.STOPPING),
        (STABLE, None),
    ]


def test_a_version_that_is_lost_for_good_gives_the_table_to_the_stored_one() -> None:
    rig = OlderCopy()
    rig.tick(rig.shown(VersionPhase.LOADING, 0, other=0), ticks=10)

    assert rig.traffic.tables["chat"].stable == STABLE


def test_a_removal_requested_in_the_tick_stops_nothing_before_the_ingress_is_closed() -> None:
    rig = Rig()
    rig.keep(ticks=10)
    prepared = rig.keeper.prepare("chat", token=1)
    assert prepared is not None
    plane = DataPlaneStatus(
        rig.clock.now_s(), rig.clock.boot_s(), rig.traffic.observe("chat"), rig.fleet.observe("chat")
    )

    rig.services.row = replace(CHAT, removing=True)
    rig.keeper.tick(prepared, lambda row: 1, None, plane, token=1)

    assert rig.versions() == {STABLE: VersionPhase.READY}
    assert rig.ingress.opened == {"chat": "s3cret"}


@pytest.mark.parametrize("what", ["opening the ingress", "keeping the service"])
def test_a_fault_that_lasts_is_one_line_of_the_log_and_its_end_another(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a line each second, in a log that nobody empties."""
    told: list[tuple[str, object]] = []
    for kind in ("warning", "event"):
        monkeypatch.setattr(telemetry, kind, lambda text, **fields: told.append((text, fields["what"])))
    rig, is_down = Rig(), [True]
    rig.keep()

    def fails(*_: object, **__: object) -> None:
        if is_down[0]:
            raise Unreachable("Ray does not answer")

    port, name = (rig.ingress, "open") if what == "opening the ingress" else (rig.fleet, "ensure")
    monkeypatch.setattr(type(port), name, fails)
    if name == "ensure":
        rig.fleet.engines.clear()
    plane = rig.plane()
    for is_down[0] in (True, True, True, False):
        prepared = rig.keeper.prepare("chat", token=1)
        if prepared is not None:
            rig.keeper.tick(prepared, lambda row: 1, None, plane, token=1)

    assert told == [("failed, will be retried", what), ("works again", what)]
