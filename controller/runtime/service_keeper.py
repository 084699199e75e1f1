"""Keeps each service as its row says: front open, stable version loaded and in the table, nothing else there.

Invariants: level-triggered, so that it repairs what a crash, a reboot or a restarted actor left; while a
rollout has the route table in its hands (`exposed`), only it writes there; what cannot be read is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken
from controller.rollout.actions import SetSplit
from controller.rollout.observation import SplitStatus, VersionPhase, VersionStatus
from controller.rollout.ports import Clock, Fleet, Traffic
from controller.rollout.state import RolloutState
from controller.store.rows import ServiceRow

RETRY_FAILED_S = 30.0
BUSY_S = 0.25
INTERVAL_S = 1.0


class Front(Protocol):
    """Where a service's users come in: route table, records log, routers. Each call returns within 50 ms."""

    def open(self, service: str, secret: str, *, token: int) -> None: ...
    def is_open(self, service: str) -> bool | None: ...
    def close(self, service: str, *, token: int) -> None: ...


class Removals(Protocol):
    """Where a service that is gone is forgotten."""

    def remove_service(self, name: str, *, at_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class KeepResult:
    """What a look saw and left. None: it could not be read. `is_gone`: the service is no more."""

    next_in_s: float
    versions: tuple[VersionStatus, ...] | None = None
    split: SplitStatus | None = None
    is_gone: bool = False


class Keeper:
    """Drives services that exist towards their row, and those being removed out of the world."""

    def __init__(
        self, fleet: Fleet, traffic: Traffic, front: Front, removals: Removals, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._traffic = traffic
        self._front = front
        self._removals = removals
        self._clock = clock

    def tick(self, row: ServiceRow, replicas: int, rollout: RolloutState | None, *, token: int) -> KeepResult:
        """One look at a service. rollout None: none runs. Raises StaleToken when another controller acts."""
        try:
            if row.removing:
                return self._remove(row, token)
            self._front.open(row.name, row.secret, token=token)
            self._traffic.heartbeat(row.name, token=token)
            versions = self._fleet.observe(row.name)
            split = self._traffic.observe(row.name)
            return self._keep(row, replicas, rollout, versions, split, token)
        except StaleToken:
            raise
        except CanaryctlError as exc:
            telemetry.warning("service cannot be kept now", service=row.name, why=str(exc))
            return KeepResult(INTERVAL_S)

    def _keep(
        self,
        row: ServiceRow,
        replicas: int,
        rollout: RolloutState | None,
        versions: tuple[VersionStatus, ...] | None,
        split: SplitStatus | None,
        token: int,
    ) -> KeepResult:
        is_settled = versions is not None and split is not None
        if versions is not None and not self._has_stable(row, replicas, versions, token):
            is_settled = False
        if rollout is None and versions is not None and self._stop_strangers(row, versions, token):
            is_settled = False
        if (rollout is None or not rollout.exposed) and not _is_only_stable(split, row.stable):
            wanted = SetSplit(row.stable, None, 0, 0)
            self._traffic.set_split(row.name, rollout.id if rollout else "", wanted, token=token)
            is_settled = False
        return KeepResult(INTERVAL_S if is_settled else BUSY_S, versions, split)

    def _has_stable(
        self, row: ServiceRow, replicas: int, versions: tuple[VersionStatus, ...], token: int
    ) -> bool:
        sight = next((one for one in versions if one.version == row.stable), None)
        if sight is not None and sight.phase is VersionPhase.READY and sight.ready_replicas >= replicas:
            return True
        if sight is None or sight.phase is not VersionPhase.FAILED:
            self._fleet.ensure(row.name, row.stable, replicas, token=token)
        elif self._clock.now_s() - sight.since_s >= RETRY_FAILED_S:
            # Stopping forgets the failure; the next look finds it gone and loads it again.
            self._fleet.stop(row.name, row.stable, token=token)
        return False

    def _stop_strangers(self, row: ServiceRow, versions: tuple[VersionStatus, ...], token: int) -> bool:
        """Stop what no rollout owns, such as a canary whose memory was not seen freed in time."""
        gone = (VersionPhase.GONE, VersionPhase.STOPPING)
        strangers = [one for one in versions if one.version != row.stable and one.phase not in gone]
        for one in strangers:
            self._fleet.stop(row.name, one.version, token=token)
        return bool(strangers)

    def _remove(self, row: ServiceRow, token: int) -> KeepResult:
        # The front first: nothing may arrive at an engine that is being stopped.
        self._front.close(row.name, token=token)
        versions = self._fleet.observe(row.name)
        if versions is None:
            return KeepResult(BUSY_S)
        left = [one for one in versions if one.phase is not VersionPhase.GONE]
        for one in left:
            if one.phase is not VersionPhase.STOPPING:
                self._fleet.stop(row.name, one.version, token=token)
        if left or self._front.is_open(row.name) is not False:
            return KeepResult(BUSY_S, versions)
        self._removals.remove_service(row.name, at_s=self._clock.now_s())
        telemetry.event("service removed", service=row.name)
        return KeepResult(INTERVAL_S, is_gone=True)


def _is_only_stable(split: SplitStatus | None, stable: str) -> bool:
    return split is not None and (split.stable, split.canary, split.weight_bp) == (stable, None, 0)
