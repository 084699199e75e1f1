"""Loop body of one service: perform pending actions, read the data plane, step rollouts, run the keeper.

Invariants: fleet and route table are read once per tick, after the pending actions were performed; once no
tick was completed for `STUCK_S`, no heartbeat is sent, so the route table withdraws the canary by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from controller import telemetry
from controller.errors import CanaryctlError, OlderDatabase, StaleToken, StaleWrite, UnknownService
from controller.rollout.observation import DataPlaneStatus, EvidenceStatus, SplitStatus, VersionStatus
from controller.rollout.ports import Clock
from controller.rollout.serialization import UnreadableState
from controller.runtime.faults import Faults, reason
from controller.runtime.outage_watch import OutageWatch
from controller.runtime.reconciler import Performed, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.store.rows import Lease, ServiceRow
from controller.store.sql import SqlStore

PAUSE_S = 1.0  # without the lease, or after an error
KEEP_S = 1.0
# A rollout whose next state cannot be committed cannot be rolled back either.
STUCK_S = 30.0
CONTROLLER_LEASE_S = 5.0
LEASE = "renewing the lease"  # place of the faults of the thread that does


def ticks_of(service: str) -> str:
    """Place of the faults of a service's ticks."""
    return f"ticks of {service}"


def reading_of(service: str) -> str:
    """Place of the faults of a service's ticks without the lease."""
    return f"reading of {service}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why no tick of a service is completed."""

    text: str
    loses_commands: bool = False  # this controller leads from an older database: what is stored is not done
    is_of_lease: bool = True  # only a tick under the lease tells that it has ended


@dataclass(frozen=True, slots=True)
class LastTick:
    """What the last tick of a service read. None: it could not be read, or not yet."""

    split: SplitStatus | None = None
    versions: tuple[VersionStatus, ...] | None = None
    evidence: EvidenceStatus | None = None
    rollout: str | None = None  # the rollout that `evidence` belongs to
    at_s: float = 0.0
    problem: Problem | None = None  # why no tick has been completed since; None: they are
    judge: VersionStatus | None = None  # its engine; None: none is needed, or it does not run
    outage: str | None = None  # what users do not get of stable; None: nothing is known of one


@dataclass(frozen=True, slots=True)
class ServiceWorkers:
    """Workers of one service, created for each lease."""

    reconciler: Reconciler
    keeper: Keeper
    measure: Callable[[float], None]  # counts the service's traffic up to the given time
    require_newest: Callable[[int], None]  # see `NewestDatabase.require`
    outages: OutageWatch | None = None  # None: what users get is not watched


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
        self._completed_s: float | None = None  # boot time; of the first tick, until one was completed
        self._is_stuck = False
        self._lease: Lease | None = None  # as it was read without holding it; None: not yet
        self._renewed_s: float | None = None  # boot time at which another's was seen to move; None: never

    def tick(self, token: int | None) -> float:
        """One tick under the lease's token (None: another controller holds it); seconds until the next.

        Raises UnknownService once the service is removed, StaleToken when another controller acted.
        """
        if token is None:
            self._workers = None
            self._stand_by()
            return PAUSE_S
        try:
            if self._completed_s is None:
                self._completed_s = self._clock.boot_s()
            if self._workers is None or self._token != token:
                self._workers, self._token = self._make_workers(self._service), token
            self._require_newest(self._workers, token)
            pause_s = self._tick(self._workers, token)
        except (StaleToken, UnknownService) as exc:
            self._completed()
            if isinstance(exc, StaleToken) and exc.newest is not None:
                # Without the lease another controller acts: that is no problem of this one.
                problem = Problem(f"not acting until the next lease: {exc}", is_of_lease=False)
                self.last = replace(self.last, problem=problem)
            raise
        except Exception as exc:  # noqa: BLE001 - a bug is shown and logged, and the next tick is tried
            return self._failed(exc)
        self._completed()
        self._completed_s = self._clock.boot_s()
        return pause_s

    def _stand_by(self) -> None:
        """A tick without the lease. What failed under it may fail still, and is shown on."""
        kept = self.last.problem if self.last.problem is not None and self.last.problem.is_of_lease else None
        if kept is not None:
            # A person may have accepted the database since, and another controller act from it.
            kept = replace(kept, loses_commands=False)
        try:
            self._store.service(self._service)  # of a removed one no controller keeps a thread
            kept = kept or self._lapsed()
            self._faults.works(reading_of(self._service))
        except UnknownService:
            raise
        except CanaryctlError as exc:
            self._faults.failed(reading_of(self._service), exc, service=self._service)
            kept = kept or Problem(str(exc), is_of_lease=False)
        self.last = replace(self.last, problem=kept, outage=None)

    def _lapsed(self) -> Problem | None:
        """The problem of a lease that this controller cannot renew and nobody else holds, as on a full disk:
        nothing is kept or decided, and what the last tick read grows old. Raises Unreachable."""
        why = self._faults.failing.get(LEASE)
        if why is None:
            self._lease = self._renewed_s = None
            return None
        lease, now_s = self._store.lease(), self._clock.boot_s()
        if self._lease not in (None, lease):
            self._renewed_s = now_s
        self._lease = lease
        if self._renewed_s is not None and now_s - self._renewed_s <= 2 * CONTROLLER_LEASE_S:
            return None
        return Problem(f"no controller leads, for the lease cannot be renewed: {why}", is_of_lease=False)

    def _require_newest(self, workers: ServiceWorkers, token: int) -> None:
        """Before anything is sent to the data plane; where that must not be, it is still shown."""
        try:
            workers.require_newest(token)
        except CanaryctlError:
            plane = workers.reconciler.read(self._service)
            self.last = replace(self.last, split=plane.split, versions=plane.versions, at_s=plane.read_at_s)
            raise

    def _completed(self) -> None:
        if self.last.problem is not None:
            self.last = replace(self.last, problem=None)
        for place in (ticks_of(self._service), reading_of(self._service)):
            self._faults.works(place)
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
            self.last = replace(self.last, problem=Problem(str(why)))
        if isinstance(exc, StaleWrite):
            telemetry.warning("another writer was first, reading again", service=self._service, why=str(exc))
            self._workers = None
            return 0.0
        if isinstance(exc, CanaryctlError):
            return self._retry(exc)
        self._faults.failed(ticks_of(self._service), exc, service=self._service)
        self.last = replace(self.last, problem=Problem(f"a bug of canaryctl, see its log: {reason(exc)}"))
        return PAUSE_S

    def _retry(self, exc: CanaryctlError) -> float:
        self._faults.failed(ticks_of(self._service), exc, service=self._service)
        problem = Problem(str(exc), loses_commands=isinstance(exc, OlderDatabase))
        self.last = replace(self.last, problem=problem)
        return PAUSE_S

    def _tick(self, workers: ServiceWorkers, token: int) -> float:
        reconciler = workers.reconciler
        # Also of ticks without the lease: a rollback that waits on a slow disk is not carried out either.
        is_stuck = self._is_stuck or self._clock.boot_s() - (self._completed_s or 0.0) >= STUCK_S
        loaded = [
            self._perform(reconciler, id, token=token, is_stuck=is_stuck)
            for id in self._store.running(self._service)
        ]
        performed = [rollout for rollout in loaded if rollout is not None]
        is_keep_due = self._clock.boot_s() >= self._keep_at_s or all(
            rollout.stored.state.is_final for rollout in performed
        )
        prepared = (
            workers.keeper.prepare(self._service, token=token, is_alive=not is_stuck) if is_keep_due else None
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
        outage = self.last.outage
        self.last = LastTick(
            *(plane.split, plane.versions, evidence, rollout_id, plane.read_at_s),
            judge=workers.keeper.judge,
            outage=outage,
        )
        if is_keep_due:
            if prepared is not None:
                workers.require_newest(token)  # the keeper acts on what was committed above
                next_in_s = workers.keeper.tick(prepared, self._replicas, running, plane, token=token)
                if next_in_s is None:
                    raise UnknownService(f"service {self._service} was removed")
                pause_s = min(pause_s, next_in_s)
            self._keep_at_s = plane.boot_s + KEEP_S
            self._measure(workers, plane)
        elif running is None:
            pause_s = 0.0  # the rollout ended in this tick: the next one keeps the service
        return pause_s

    def _measure(self, workers: ServiceWorkers, plane: DataPlaneStatus) -> None:
        """Count the traffic, and look whether users get answers. Faults are told, and keep no rollout from
        being rolled back."""
        place = f"measuring of {self._service}"
        try:
            workers.measure(plane.read_at_s)
            if workers.outages is not None:
                outage = workers.outages.look(plane.versions, plane.read_at_s)
                self.last = replace(self.last, outage=outage)
        except (StaleToken, UnknownService):
            raise
        except Exception as exc:  # noqa: BLE001 - what is measured serves plans, and no decision
            self.last = replace(self.last, outage=None)  # whether it is over is not known
            self._faults.failed(place, exc, service=self._service)
        else:
            self._faults.works(place)

    def _perform(
        self, reconciler: Reconciler, rollout: str, *, token: int, is_stuck: bool
    ) -> Performed | None:
        """See `Reconciler.perform`; None, too: it has ended, and another release knows its last notices."""
        try:
            return reconciler.perform(rollout, token=token, is_stuck=is_stuck)
        except UnreadableState:
            row = self._store.rollout(rollout)
            if row is None or not row.is_final:
                raise
            return None
