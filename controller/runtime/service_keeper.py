"""Keeper of a service: ingress open, stable version loaded and in the route table, no other version running.

The engine of a rollout's judge is kept last (`judge_keeper.py`): it must keep nothing of this waiting.

Invariants: level-triggered, so it repairs what a crash, a reboot or an actor restart left behind; while a
rollout is `exposed`, only the rollout writes the route table; an unreadable fleet or route table is left
alone; the service's row is read after the rollouts were stepped, because a step may change stable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from controller import telemetry
from controller.errors import CanaryctlError, LostDatabase, StaleToken
from controller.rollout.actions import SetSplit
from controller.rollout.observation import DataPlaneStatus, SplitStatus, VersionPhase, VersionStatus
from controller.rollout.ports import Clock, Fleet, Traffic
from controller.rollout.state import RolloutState
from controller.runtime.answering import Answering
from controller.runtime.faults import Faults
from controller.runtime.judge_keeper import JudgeKeeper
from controller.runtime.kept_loaded import KeptLoaded
from controller.store.rows import ServiceRow

BUSY_S = 0.25
INTERVAL_S = 1.0
INGRESS, KEEPING = "opening the ingress", "keeping the service"  # places of faults


class Ingress(Protocol):
    """Route table, records log and routers of a service. Idempotent."""

    def open(self, service: str, secret: str, *, token: int) -> None: ...
    def close(self, service: str, *, token: int) -> None: ...


class Services(Protocol):
    """The part of the store with the services' rows. `service` raises UnknownService."""

    def service(self, name: str) -> ServiceRow: ...
    def remove_service(self, name: str, *, at_s: float, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of `prepare`. removing: the ingress is closed, because the service is being removed."""

    service: str
    removing: bool


class Keeper:
    """Drives the data plane towards the service's row; stops all of it when the row is `removing`."""

    def __init__(
        self, fleet: Fleet, traffic: Traffic, ingress: Ingress, services: Services, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._traffic = traffic
        self._ingress = ingress
        self._services = services
        self._clock = clock
        self._faults = Faults()  # each is logged once, not once a second of an outage
        self._stable = KeptLoaded(fleet, clock)
        self._judge_keeper = JudgeKeeper(fleet, clock, self._faults)
        self.judge: VersionStatus | None = None  # the judge's engine; None: none is needed, or runs
        self._answering = Answering()
        self._told: frozenset[str] = frozenset()  # answering in place of stable, in the last tick

    def prepare(self, service: str, *, token: int, is_alive: bool = True) -> Prepared | None:
        """Open the ingress and send a heartbeat, or close the ingress of a service being removed.

        is_alive False: without the heartbeat, so that the route table withdraws the canary in a minute.

        MUST come before the read for `tick`, by one interval at most. None: it failed, skip `tick`. Raises
        StaleToken, UnknownService.
        """
        row = self._services.service(service)
        try:
            if row.removing:
                # The ingress first: no request may arrive at an engine that is being stopped.
                self._ingress.close(row.name, token=token)
            else:
                self._ingress.open(row.name, row.secret, token=token)
                if is_alive:
                    self._traffic.heartbeat(row.name, token=token)
            self._faults.works(INGRESS)
            return Prepared(row.name, row.removing)
        except StaleToken:
            raise
        except Exception as exc:  # noqa: BLE001 - a broken ingress must not block the rollback of a rollout
            self._faults.failed(INGRESS, exc, service=row.name)
        return None

    def tick(
        self,
        prepared: Prepared,
        replicas: Callable[[ServiceRow], int],
        rollout: RolloutState | None,
        plane: DataPlaneStatus,
        *,
        token: int,
    ) -> float | None:
        """One correction; seconds until the next, None: the service was removed.

        MUST come after the rollouts were stepped. replicas: number that the stable version needs. rollout:
        the running one, None: there is none. Raises StaleToken, UnknownService.
        """
        row = self._services.service(prepared.service)
        if row.removing is not prepared.removing:
            return BUSY_S  # its removal was requested since: close the ingress before the engines stop
        try:
            if row.removing:
                next_in_s = self._remove(row, plane, token)
            else:
                next_in_s = self._correct(row, replicas(row), rollout, plane, token)
            self._faults.works(KEEPING)
            return next_in_s
        except (StaleToken, LostDatabase):  # the tick tells of a lost database, once
            raise
        except CanaryctlError as exc:
            self._faults.failed(KEEPING, exc, service=row.name)
            return INTERVAL_S

    def _correct(
        self, row: ServiceRow, replicas: int, rollout: RolloutState | None, plane: DataPlaneStatus, token: int
    ) -> float:
        """Ensure stable and its route table, stop versions without an owner; seconds until the next."""
        is_settled = plane.versions is not None and plane.split is not None
        answering = self._answering.instead_of(row.stable, replicas, plane)
        if plane.split is not None:
            self._tell_strangers(row, answering - _arms(rollout))
        if plane.versions is not None:
            is_settled &= self._has_stable(row, replicas, plane.versions, token)
            if rollout is None:
                is_settled &= not self._end_orphans(row, plane, answering, token)
        kept = self._judge_keeper.tick(row.name, rollout, token=token)
        self.judge, is_settled = kept.status, is_settled and kept.is_settled
        # A table that cannot be read is left alone: an unreadable one is never taken for a wrong one.
        is_own = plane.split is not None and (rollout is None or not rollout.exposed)
        if is_own and not _is_only_stable(plane.split, row.stable) and not answering:
            stable_alone = SetSplit(row.stable, None, 0, 0)
            self._traffic.set_split(row.name, rollout.id if rollout else "", stable_alone, token=token)
            is_settled = False
        return INTERVAL_S if is_settled else BUSY_S

    def _tell_strangers(self, row: ServiceRow, answering: frozenset[str]) -> None:
        """Warn once of versions that answer in place of stable and are no arms of a rollout."""
        if answering - self._told:
            names = ", ".join(sorted(answering))
            text = "it keeps its traffic until the stored version is ready; is the database an older copy?"
            telemetry.warning(f"{names} answers, and {row.stable} is stored: {text}", service=row.name)
        self._told = answering

    def _has_stable(
        self, row: ServiceRow, replicas: int, versions: tuple[VersionStatus, ...], token: int
    ) -> bool:
        """True: all stable replicas are ready; otherwise they are loaded."""
        stable = next((version for version in versions if version.version == row.stable), None)
        return self._stable.is_ready(row.name, row.stable, replicas, stable, token=token)

    def _end_orphans(
        self, row: ServiceRow, plane: DataPlaneStatus, answering: frozenset[str], token: int
    ) -> bool:
        """Drain, then stop, versions without an owner, as a canary whose memory was not released in time.

        True: there are any.
        """
        leaving = self._answering.leaving(answering | {row.stable}, plane)
        for version, what in leaving.items():
            if what == "stop":
                self._fleet.stop(row.name, version, token=token)
            elif what == "drain":
                self._fleet.drain(row.name, version, token=token)
        return bool(leaving)

    def _remove(self, row: ServiceRow, plane: DataPlaneStatus, token: int) -> float | None:
        if plane.versions is None:
            return BUSY_S
        loaded = [version for version in plane.versions if version.phase is not VersionPhase.GONE]
        for version in loaded:
            if version.phase is not VersionPhase.STOPPING:
                self._fleet.stop(row.name, version.version, token=token)
        kept = self._judge_keeper.tick(row.name, None, token=token)
        if loaded or plane.split is not None or not kept.is_clear:
            return BUSY_S
        self._services.remove_service(row.name, at_s=self._clock.now_s(), token=token)
        telemetry.event("service removed", service=row.name)
        return None


def _arms(rollout: RolloutState | None) -> frozenset[str]:
    return frozenset() if rollout is None else frozenset({rollout.stable.id, rollout.canary.id})


def _is_only_stable(split: SplitStatus | None, stable: str) -> bool:
    return split is not None and (split.stable, split.canary, split.weight_bp) == (stable, None, 0)
