"""Runs the ticks: one thread a service, one for the lease. Of several controllers the lease's holder acts.

Invariants: every tick carries the fencing token of the lease; a lost lease stops all ticks before the next
one, and a new holder starts from the store alone; a fault in one service never stops another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken, StaleWrite, UnknownService
from controller.rollout.observation import EvidenceStatus, SplitStatus, VersionStatus
from controller.rollout.ports import Clock
from controller.rollout.state import RolloutState
from controller.runtime.reconciler import Reconciler
from controller.runtime.service_keeper import Keeper
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore

LEASE_S = 5.0
RENEW_S = 1.0
PAUSE_S = 1.0
KEEP_S = 1.0


@dataclass(frozen=True, slots=True)
class LastTick:
    """What the last tick of a service saw. None: it could not be read, or not yet."""

    split: SplitStatus | None = None
    versions: tuple[VersionStatus, ...] | None = None
    evidence: EvidenceStatus | None = None
    rollout: str | None = None  # whose evidence it is
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceWorkers:
    """Those who do the work for one service, made anew with every lease."""

    reconciler: Reconciler
    keeper: Keeper
    measure: Callable[[float], None]  # counts the service's traffic, given the time


class Runner:
    """Ticks every service of the store until it is stopped."""

    def __init__(
        self,
        store: SqlStore,
        clock: Clock,
        make_workers: Callable[[str], ServiceWorkers],
        replicas: Callable[[ServiceRow], int],
        *,
        holder: str,
    ) -> None:
        self._store = store
        self._clock = clock
        self._make_workers = make_workers
        self._replicas = replicas
        self._holder = holder
        self._token: int | None = None  # None: another controller acts
        self._stopping = threading.Event()
        self._changed = threading.Event()  # services may have come
        self._wakes: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._sights: dict[str, LastTick] = {}
        self._chief = threading.Thread(target=self._lead, name="lease", daemon=True)

    @property
    def is_leading(self) -> bool:
        """True while this controller holds the lease."""
        return self._token is not None

    def start(self) -> None:
        """Begin; returns at once."""
        self._chief.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End all ticks after the present one, and give the lease back."""
        self._stopping.set()
        self._changed.set()
        for wake in list(self._wakes.values()):
            wake.set()
        for thread in (self._chief, *self._threads.values()):
            if thread.is_alive():
                thread.join(timeout_s)
        token, self._token = self._token, None
        if token is not None:
            self._store.release_lease(token)

    def wake(self, service: str) -> None:
        """There is something new to do for the service: tick it now."""
        self._changed.set()
        if (wake := self._wakes.get(service)) is not None:
            wake.set()

    def sight(self, service: str) -> LastTick:
        """What the last tick saw."""
        return self._sights.get(service, LastTick())

    # --- the lease

    def _lead(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hold_lease()
                if self._token is not None:
                    self._staff()
            except Exception as exc:  # noqa: BLE001 - without this thread nothing would ever act again
                telemetry.alarm("the lease could not be kept", exc)
                self._token = None
            self._changed.wait(RENEW_S)
            self._changed.clear()

    def _hold_lease(self) -> None:
        now_s = self._clock.now_s()
        token = self._token
        if token is not None:
            if self._store.renew_lease(token, now_s=now_s, ttl_s=LEASE_S):
                return
            telemetry.warning("lease lost, another controller acts", token=token)
            self._token = None
        lease = self._store.acquire_lease(self._holder, now_s=now_s, ttl_s=LEASE_S)
        if lease is not None:
            telemetry.event("lease taken", token=lease.token)
            self._token = lease.token

    def _staff(self) -> None:
        for row in self._store.services():
            thread = self._threads.get(row.name)
            if thread is None or not thread.is_alive():
                self._wakes[row.name] = threading.Event()
                thread = threading.Thread(target=self._serve, args=(row.name,), name=row.name, daemon=True)
                self._threads[row.name] = thread
                thread.start()

    # --- one service

    def _serve(self, service: str) -> None:
        watch = _Watch(self, service)
        wake = self._wakes[service]
        while not self._stopping.is_set():
            wake.clear()
            try:
                pause_s = watch.look()
            except UnknownService:
                break
            except Exception as exc:  # noqa: BLE001 - a fault in one service must not end its thread
                telemetry.alarm("the service's tick failed", exc, service=service)
                pause_s = PAUSE_S
            if pause_s > 0:
                wake.wait(pause_s)
        self._sights.pop(service, None)

    def _drop(self, token: int) -> None:
        """The world has seen a higher token than ours: let go, and take the lease again in our turn."""
        if self._token == token:
            self._token = None
            self._store.release_lease(token)


class _Watch:
    """One service's loop body: what it remembers between looks."""

    def __init__(self, runner: Runner, service: str) -> None:
        self._runner = runner
        self._service = service
        self._workers: ServiceWorkers | None = None
        self._token: int | None = None
        self._keep_at_s = 0.0

    def look(self) -> float:
        """Tick what is due; the seconds to wait then. Raises UnknownService when the service is no more."""
        runner = self._runner
        token = runner._token
        row = runner._store.service(self._service)
        if token is None:
            self._workers = None
            return PAUSE_S
        if self._workers is None or self._token != token:
            self._workers, self._token = runner._make_workers(self._service), token
        try:
            return self._tick(self._workers, row, token)
        except StaleToken as exc:
            telemetry.warning("fenced, another controller acted", service=self._service, why=str(exc))
            self._workers = None
            runner._drop(token)
        except StaleWrite as exc:
            telemetry.warning("another writer was first, reading again", service=self._service, why=str(exc))
            self._workers = None
            return 0.0
        except UnknownService:
            raise
        except CanaryctlError as exc:
            telemetry.warning("tick not possible now", service=self._service, why=str(exc))
        return PAUSE_S

    def _tick(self, workers: ServiceWorkers, row: ServiceRow, token: int) -> float:
        runner, now_s = self._runner, self._runner._clock.now_s()
        pause_s, running = KEEP_S, None
        for rollout in runner._store.running(self._service):
            ticked = workers.reconciler.tick(rollout, token=token)
            if ticked is None:
                continue
            pause_s = min(pause_s, ticked.next_in_s)
            if not ticked.state.is_final:
                running = ticked.state
            seen = ticked.seen
            runner._sights[self._service] = LastTick(seen.split, seen.versions, seen.evidence, rollout, now_s)
        if now_s >= self._keep_at_s or running is None:
            pause_s = min(pause_s, self._keep(workers, row, running, token))
        return pause_s

    def _keep(
        self, workers: ServiceWorkers, row: ServiceRow, running: RolloutState | None, token: int
    ) -> float:
        runner, now_s = self._runner, self._runner._clock.now_s()
        # The rollout that just ticked may have changed what is stable.
        fresh = runner._store.service(self._service) if running is not None else row
        kept = workers.keeper.tick(fresh, runner._replicas(fresh), running, token=token)
        self._keep_at_s = now_s + KEEP_S
        sight = runner.sight(self._service)
        runner._sights[self._service] = replace(sight, split=kept.split, versions=kept.versions, at_s=now_s)
        workers.measure(now_s)
        if kept.is_gone:
            raise UnknownService(f"service {self._service} was removed")
        return kept.next_in_s
