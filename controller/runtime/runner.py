"""Runner of the controller: one thread renews the lease, one finds new services, one per service ticks it.

Invariants: of several controllers only the lease's holder acts, and every tick carries the lease's fencing
token; a lost lease stops all ticks before the next one, and a new holder starts from the store alone; a fault
in one service never stops another; no wall clock decides who leads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken, UnknownService
from controller.rollout.ports import Clock
from controller.runtime.faults import Faults
from controller.runtime.service_loop import (
    CONTROLLER_LEASE_S,
    LEASE,
    PAUSE_S,
    LastTick,
    ServiceLoop,
    ServiceWorkers,
    ticks_of,
)
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from serving.clock import boot_s

RENEW_S = 1.0
# Places of faults.
BEFORE, SERVICES = "carrying out kept orders", "reading the services"


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
        boot_clock: Callable[[], float] = boot_s,
        on_removed: Callable[[str], None] | None = None,
        before_services: Callable[[], None] = lambda: None,
    ) -> None:
        """on_removed: called with the name of a service whose ticks have ended because it was removed.
        before_services: called while this controller leads, each time before it looks for new services."""
        self._before_services = before_services
        self._on_removed = on_removed
        self._store = store
        self._clock = clock
        self._make_workers = make_workers
        self._replicas = replicas
        self._holder = holder
        self._boot_clock = boot_clock
        self.faults = Faults()
        self._token: int | None = None  # None: another controller acts
        self._fence = 0  # newest token that the data plane, or this controller, is known to have seen
        self._held_until_s = 0.0  # by the boot clock: a controller that was suspended knows it when it wakes
        self._stopping = threading.Event()
        self._changed = threading.Event()  # services may have been added
        self._wakes: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._loops: dict[str, ServiceLoop] = {}
        self._lease_thread = threading.Thread(target=self._lead, name="lease", daemon=True)
        self._services_thread = threading.Thread(target=self._find_services, name="services", daemon=True)

    @property
    def is_leading(self) -> bool:
        """True while this controller holds the lease."""
        return self._valid_token() is not None

    def start(self) -> None:
        """Start the threads; returns at once."""
        self._lease_thread.start()
        self._services_thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Finish the current ticks, end all threads and release the lease; `timeout_s`: of all threads."""
        self._stopping.set()
        self._changed.set()
        for wake in list(self._wakes.values()):
            wake.set()
        ends_at_s = self._boot_clock() + timeout_s
        for thread in (self._lease_thread, self._services_thread, *self._threads.values()):
            if thread.is_alive():
                thread.join(max(0.0, ends_at_s - self._boot_clock()))
        token, self._token = self._token, None
        if token is not None:
            self._release(token)

    def wake(self, service: str) -> None:
        """Tick the service now: something was changed for it in the store."""
        self._changed.set()
        if (wake := self._wakes.get(service)) is not None:
            wake.set()

    def last_tick(self, service: str) -> LastTick:
        """What the service's last tick read."""
        loop = self._loops.get(service)
        return loop.last if loop is not None else LastTick()

    # --- the lease

    def _lead(self) -> None:
        """Renew the lease, and nothing that could make it wait."""
        while not self._stopping.is_set():
            try:
                self._hold_lease()
                self.faults.works(LEASE)
            except Exception as exc:  # noqa: BLE001 - without this thread nothing would ever act again
                # The token stays: it is void once its time is over, and may be renewed before that.
                self.faults.failed(LEASE, exc)
            self._stopping.wait(RENEW_S)

    def _find_services(self) -> None:
        """Start the threads of services that have none."""
        while not self._stopping.is_set():
            try:
                if self._token is not None:
                    self._prepare_services()
                    self._start_loops()
                self.faults.works(SERVICES)
            except Exception as exc:  # noqa: BLE001 - without this thread no new service would be ticked
                self.faults.failed(SERVICES, exc)
            self._changed.wait(RENEW_S)
            self._changed.clear()

    def _prepare_services(self) -> None:
        """Services are ticked whatever is wrong here."""
        try:
            self._before_services()
            self.faults.works(BEFORE)
        except Exception as exc:  # noqa: BLE001 - as above
            self.faults.failed(BEFORE, exc)

    def _hold_lease(self) -> None:
        held_until_s = self._boot_clock() + CONTROLLER_LEASE_S  # before the call, which may take long
        token = self._token
        if token is not None:
            if self._store.renew_lease(token, ttl_s=CONTROLLER_LEASE_S):
                self._held_until_s = held_until_s
                return
            if self._token == token:  # else it was fenced meanwhile, and has released the lease
                telemetry.warning("lease lost, another controller acts", token=token)
                self._token = None
        if self._stopping.is_set():
            return
        lease = self._store.acquire_lease(self._holder, ttl_s=CONTROLLER_LEASE_S, above=self._fence)
        if lease is not None:
            telemetry.event("lease acquired", token=lease.token)
            self._fence = max(self._fence, lease.token)  # a restored database would give it again
            self._token, self._held_until_s = lease.token, held_until_s
            self._changed.set()

    def _valid_token(self) -> int | None:
        """The lease's token; None: another controller holds it, or it was not renewed in time."""
        token = self._token
        return token if self._boot_clock() < self._held_until_s else None

    def _start_loops(self) -> None:
        for row in self._store.services():
            thread = self._threads.get(row.name)
            if thread is None or not thread.is_alive():
                self._wakes[row.name] = threading.Event()
                self._loops[row.name] = ServiceLoop(
                    row.name, self._store, self._clock, self._make_workers, self._replicas, self.faults
                )
                thread = threading.Thread(target=self._run, args=(row.name,), name=row.name, daemon=True)
                self._threads[row.name] = thread
                thread.start()

    # --- one service

    def _run(self, service: str) -> None:
        wake, loop = self._wakes[service], self._loops[service]
        while not self._stopping.is_set():
            wake.clear()
            try:
                pause_s = self._tick(service, loop)
            except UnknownService:
                if self._on_removed is not None:
                    self._on_removed(service)
                break
            except Exception as exc:  # noqa: BLE001 - a fault in one service must not end its thread
                self.faults.failed(ticks_of(service), exc, service=service)
                pause_s = PAUSE_S
            if pause_s > 0:
                wake.wait(pause_s)
        # Last of all itself: without it here, a service of this name that is created again gets another.
        self._loops.pop(service, None)
        self._wakes.pop(service, None)
        self._threads.pop(service, None)

    def _tick(self, service: str, loop: ServiceLoop) -> float:
        token = self._valid_token()
        try:
            return loop.tick(token)
        except StaleToken as exc:
            is_behind = exc.newest is not None and token is not None and exc.newest > token
            what = "fenced: another controller acted, or the database is an older copy"
            text = what if is_behind else "fenced, another controller acted"
            telemetry.warning(text, service=service, why=str(exc))
            # Release the lease, so that the next one has a higher token than the one that fenced us: of an
            # older copy of the database, the next number may be far behind.
            self._fence = max(self._fence, exc.newest or 0)
            if token is not None and self._token == token:
                self._token = None
                self._release(token)
            return PAUSE_S

    def _release(self, token: int) -> None:
        """Release the lease; it expires by itself if the store does not answer."""
        try:
            self._store.release_lease(token)
        except CanaryctlError as exc:
            telemetry.warning("the lease was not released, it expires", why=str(exc))
