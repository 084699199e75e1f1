"""Loop body of one service: perform pending actions, read the data plane, step rollouts, run the keeper.

Invariants: fleet and route table are read once per tick, after the pending actions were performed; once ticks
have failed for `STUCK_S`, no heartbeat is sent, so the route table withdraws the canary by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken, StaleWrite, UnknownService
from controller.rollout.observation import EvidenceStatus, SplitStatus, VersionStatus
from controller.rollout.ports import Clock
from controller.runtime.faults import Faults
from controller.runtime.reconciler import Reconciler
from controller.runtime.service_keeper import Keeper
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from serving.files.plain_text import plain_text

PAUSE_S = 1.0  # without the lease, or after an error
KEEP_S = 1.0
# A rollout whose next state cannot be committed cannot be rolled back either.
STUCK_S = 30.0


def ticks_of(service: str) -> str:
    """Place of the faults of a service's ticks."""
    return f"ticks of {service}"


@dataclass(frozen=True, slots=True)
class LastTick:
    """What the last tick of a service read. None: it could not be read, or not yet."""

    split: SplitStatus | None = None
    versions: tuple[VersionStatus, ...] | None = None
    evidence: EvidenceStatus | None = None
    rollout: str | None = None  # the rollout that `evidence` belongs to
    at_s: float = 0.0
    problem: str | None = None  # why no tick has been completed since; None: they are


@dataclass(frozen=True, slots=True)
class ServiceWorkers:
    """Workers of one service, created for each lease."""

    reconciler: Reconciler
    keeper: Keeper
    measure: Callable[[float], None]  # counts the service's traffic up to the given time


class ServiceLoop:
    """Ticks one service. replicas: number that its stable version needs."""

    def __init__(
        self,
        service: str,
        store: SqlStore,
        clock: Clock,
        make_workers: Callable[[str], ServiceWorkers],
        replicas: Callable[[ServiceRow], int],
        faults: Faults | None = None,
    ) -> None:
        """faults: the runner's; None: its own."""
        self.last = LastTick()
        self._faults = faults if faults is not None else Faults()
        self._service = service
        self._store = store
        self._clock = clock
        self._make_workers = make_workers
        self._replicas = replicas
        self._workers: ServiceWorkers | None = None
        self._token: int | None = None
        self._keep_at_s = 0.0  # boot time
        self._failing_since_s: float | None = None  # boot time; None: the last tick was completed
        self._is_stuck = False
        self._is_fenced = False  # `problem` says that the data plane has seen a newer token

    def tick(self, token: int | None) -> float:
        """One tick under the lease's token (None: another controller holds it); seconds until the next.

        Raises UnknownService once the service is removed, StaleToken when another controller acted.
        """
        if token is None:
            self._workers = None
            if self._is_fenced:  # another controller acts: that is no problem of this one
                self.last, self._is_fenced = replace(self.last, problem=None), False
            try:
                self._store.service(self._service)  # of a removed one no controller keeps a thread
            except UnknownService:
                raise
            except CanaryctlError as exc:
                return self._retry(exc)
            # What failed may fail still: only a tick under the lease tells.
            return PAUSE_S
        try:
            if self._workers is None or self._token != token:
                self._workers, self._token = self._make_workers(self._service), token
            pause_s = self._tick(self._workers, token)
        except (StaleToken, UnknownService) as exc:
            self._completed()
            if isinstance(exc, StaleToken) and exc.newest is not None:
                problem = f"not acting until the next lease: {exc}"
                self.last, self._is_fenced = replace(self.last, problem=problem), True
            raise
        except Exception as exc:  # noqa: BLE001 - a bug is shown and logged, and the next tick is tried
            return self._failed(exc)
        self._completed()
        return pause_s

    def _completed(self) -> None:
        if self.last.problem is not None:
            self.last = replace(self.last, problem=None)
        self._faults.works(ticks_of(self._service))
        if self._is_stuck:
            telemetry.event("ticks work again, heartbeats are sent", service=self._service)
        self._failing_since_s, self._is_stuck = None, False

    def _failed(self, exc: Exception) -> float:
        """Seconds until the failed tick is repeated."""
        now_s = self._clock.boot_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if not self._is_stuck and now_s - self._failing_since_s >= STUCK_S:
            self._is_stuck = True
            why = CanaryctlError(
                f"no tick of {self._service} was completed for {STUCK_S:g} s, nothing can be rolled back; "
                f"heartbeats stop, so the route table withdraws a canary in a minute: {exc}"
            )
            telemetry.error("the service is stuck", why, service=self._service)
            self.last = replace(self.last, problem=str(why))
        if isinstance(exc, StaleWrite):
            telemetry.warning("another writer was first, reading again", service=self._service, why=str(exc))
            self._workers = None
            return 0.0
        if isinstance(exc, CanaryctlError):
            return self._retry(exc)
        telemetry.error("a tick failed", exc, service=self._service)
        first = plain_text(str(exc).partition("\n")[0], limit=200)  # further lines may hold what was stored
        what = f"a bug of canaryctl, see its log: {type(exc).__name__}: {first}"
        self.last = replace(self.last, problem=what)
        return PAUSE_S

    def _retry(self, exc: CanaryctlError) -> float:
        self._faults.failed(ticks_of(self._service), exc, service=self._service)
        self.last = replace(self.last, problem=str(exc))
        return PAUSE_S

    def _tick(self, workers: ServiceWorkers, token: int) -> float:
        reconciler = workers.reconciler
        loaded = [
            reconciler.perform(id, token=token, is_stuck=self._is_stuck)
            for id in self._store.running(self._service)
        ]
        performed = [rollout for rollout in loaded if rollout is not None]
        is_keep_due = self._clock.boot_s() >= self._keep_at_s or all(
            rollout.stored.state.is_final for rollout in performed
        )
        prepared = (
            workers.keeper.prepare(self._service, token=token, is_alive=not self._is_stuck)
            if is_keep_due
            else None
        )
        plane = reconciler.read(self._service)
        pause_s, running = KEEP_S, None
        evidence, rollout_id = self.last.evidence, self.last.rollout
        for rollout in performed:
            ticked = reconciler.decide(rollout, plane)
            pause_s = min(pause_s, ticked.next_in_s)
            evidence, rollout_id = ticked.evidence, ticked.state.id
            if not ticked.state.is_final:
                running = ticked.state
        self.last = LastTick(plane.split, plane.versions, evidence, rollout_id, plane.read_at_s)
        if is_keep_due:
            if prepared is not None:
                next_in_s = workers.keeper.tick(prepared, self._replicas, running, plane, token=token)
                if next_in_s is None:
                    raise UnknownService(f"service {self._service} was removed")
                pause_s = min(pause_s, next_in_s)
            self._keep_at_s = plane.boot_s + KEEP_S
            workers.measure(plane.read_at_s)
        elif running is None:
            pause_s = 0.0  # the rollout ended in this tick: the next one keeps the service
        return pause_s
