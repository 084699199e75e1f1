"""Transcripts through the service loop: reconciler, keeper and a real store around the machine.

Invariant: whatever the keeper does in a tick, it stops no version that gets traffic and moves none while a
rollout is exposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.auth import Identity, Role
from controller.rollout.actions import RunProbe, SetSplit
from controller.rollout.observation import (
    EvidenceStatus,
    ProbeStatus,
    SplitStatus,
    VersionStatus,
)
from controller.rollout.state import RolloutState
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceLoop, ServiceWorkers
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.scenarios.transcript import Player


@dataclass(slots=True)
class _Plane:
    """The transcript's data plane as the ports of a service loop. It obeys no command: `do` lines do that."""

    player: StoredPlayer
    stopped: list[str] = field(default_factory=list)
    tables: list[SetSplit] = field(default_factory=list)

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None:
        pass

    def drain(self, service: str, version: str, *, token: int) -> None:
        pass

    def cancel(self, service: str, version: str, *, token: int) -> None:
        pass

    def stop(self, service: str, version: str, *, token: int) -> None:
        self.stopped.append(version)

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        if not self.player.fleet_readable:
            return None
        return tuple(self.player.plane.versions.values()) if service == self.player.state.service else ()


@dataclass(slots=True)
class _Table:
    player: StoredPlayer

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None:
        self.player.tables.append(split)
        return self.player.plane.split

    def observe(self, service: str) -> SplitStatus | None:
        return self.player.plane.split

    def heartbeat(self, service: str, *, token: int) -> None:
        pass


@dataclass(slots=True)
class _Others:
    """Ingress, evidence, probes, notifier and clock of the transcript."""

    player: StoredPlayer
    delivers: bool = False

    def open(self, service: str, secret: str, *, token: int) -> None:
        pass

    def close(self, service: str, *, token: int) -> None:
        raise AssertionError("no transcript removes its service")

    def now_s(self) -> float:
        return self.player.plane.now_s

    def boot_s(self) -> float:
        return self.player.plane.now_s

    def start_or_check(self, rollout: RolloutState, probe: RunProbe) -> ProbeStatus:
        known = {one.kind: one for one in self.player.plane.probes}
        return known.get(probe.probe, ProbeStatus(probe.probe, "running"))

    def send(self, key: str, severity: str, text: str) -> bool:
        return self.delivers


@dataclass(slots=True)
class _Evidence:
    player: StoredPlayer

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None:
        return self.player.seen_evidence()

    def snapshot(self, rollout: str) -> bytes | None:
        return b"{}"

    def conclusion(self, rollout: str) -> bytes | None:
        return b"{}"


class StoredPlayer(Player):
    """A transcript's rollout in a store, ticked by a service loop."""

    def __init__(self, plan_line: str, store: SqlStore) -> None:
        super().__init__(plan_line)
        self.store = store
        stable = self.state.stable
        service = ServiceRow("chat", "{}", stable.id, "secret", 0.0)
        store.put_service(service, VersionRow("chat", stable.id, "{}", "{}", 0.0))
        store.create_rollout(self.state, request="{}", at_s=0.0)
        self.fleet, self.table_port, self.others = _Plane(self), _Table(self), _Others(self)
        self.tables: list[SetSplit] = []
        self.token = self._lead()
        self.loop = ServiceLoop("chat", store, self.others, self._workers, lambda row: stable.replicas)

    def _lead(self) -> int:
        """The token of a controller that begins to lead."""
        lease = self.store.acquire_lease("transcript", ttl_s=600.0)
        assert lease is not None
        return lease.token

    def _workers(self, _: str) -> ServiceWorkers:
        fleet, table, others = self.fleet, self.table_port, self.others
        ports = Ports(self.store, fleet, table, _Evidence(self), others, others, others)
        # A transcript's tick may take minutes, and every tick of it is committed.
        reconciler = Reconciler(ports, commit_s=0.0, max_tick_s=math.inf)
        keeper = Keeper(fleet, table, others, self.store, others)
        return ServiceWorkers(reconciler, keeper, lambda now_s: None, lambda token: None)

    def tick(self, flags: set[str]) -> None:
        """One tick of the service loop, as the transcript's line says what it observes."""
        if "resumed" in flags:
            self.store.release_lease(self.token)
            self.token = self._lead()
        self.others.delivers = "delivered" in flags
        self._queue_commands()
        self.fleet.stopped.clear()
        self.tables.clear()
        self.loop.tick(self.token)
        stored = self.store.load(self.state.id)
        assert stored is not None
        self.state, self.actions = stored.state, stored.pending
        self._check()

    def _queue_commands(self) -> None:
        known = len(self.store.commands(self.state.id, after_seq=0))
        for command in self.plane.commands[known:]:
            identity = Identity(command.actor, Role(command.role))
            self.store.append_command(
                self.state.id, command.kind, identity, reason=command.reason, at_s=command.at_s
            )

    def _check(self) -> None:
        """What serves is never stopped, and the service's row names it."""
        split = self.plane.split
        serving = {split.stable, split.canary} if split is not None else {self.state.serving}
        assert serving.isdisjoint(self.fleet.stopped), f"{self.fleet.stopped} stopped while {serving} serve"
        assert self.store.service("chat").stable == self.state.serving
        if self.state.is_final:
            assert {table.stable for table in self.tables} <= {self.state.serving}
