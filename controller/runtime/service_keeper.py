"""Keeper of a service: ingress open, stable version loaded and in the route table, no other version running.

Invariants: level-triggered, so it repairs what a crash, a reboot or an actor restart left behind; while a
rollout is `exposed`, only the rollout writes the route table; engines of an unreadable fleet are left alone.
"""

from __future__ import annotations

from typing import Protocol

from controller import telemetry
from controller.errors import CanaryctlError, StaleToken
from controller.rollout.actions import SetSplit
from controller.rollout.observation import DataPlaneStatus, SplitStatus, VersionPhase, VersionStatus
from controller.rollout.ports import Clock, Fleet, Traffic
from controller.rollout.state import RolloutState
from controller.store.rows import ServiceRow

RETRY_FAILED_S = 30.0
BUSY_S = 0.25
INTERVAL_S = 1.0


class Ingress(Protocol):
    """Route table, records log and routers of a service. Idempotent."""

    def open(self, service: str, secret: str, *, token: int) -> None: ...
    def close(self, service: str, *, token: int) -> None: ...


class Removals(Protocol):
    """The part of the store that deletes a removed service."""

    def remove_service(self, name: str, *, at_s: float, token: int) -> None: ...


class Keeper:
    """Drives the data plane towards the service's row; stops all of it when the row is `removing`."""

    def __init__(
        self, fleet: Fleet, traffic: Traffic, ingress: Ingress, removals: Removals, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._traffic = traffic
        self._ingress = ingress
        self._removals = removals
        self._clock = clock

    def prepare(self, row: ServiceRow, *, token: int) -> bool:
        """Open the ingress and send a heartbeat, or close the ingress of a service being removed.

        MUST come before the read for `tick`, by one interval at most. False: it failed, skip `tick`. Raises
        StaleToken.
        """
        try:
            if row.removing:
                # The ingress first: no request may arrive at an engine that is being stopped.
                self._ingress.close(row.name, token=token)
            else:
                self._ingress.open(row.name, row.secret, token=token)
                self._traffic.heartbeat(row.name, token=token)
            return True
        except StaleToken:
            raise
        except CanaryctlError as exc:
            telemetry.warning("ingress does not answer, will be retried", service=row.name, why=str(exc))
        except Exception as exc:  # noqa: BLE001 - a broken ingress must not block the rollback of a rollout
            telemetry.error("ingress raised an unexpected error", exc, service=row.name)
        return False

    def tick(
        self,
        row: ServiceRow,
        replicas: int,
        rollout: RolloutState | None,
        plane: DataPlaneStatus,
        *,
        token: int,
    ) -> float | None:
        """One correction; seconds until the next, None: the service was removed. Raises StaleToken.

        rollout: the running one, None: there is none.
        """
        try:
            if row.removing:
                return self._remove(row, plane, token)
            is_settled = plane.versions is not None and plane.split is not None
            if plane.versions is not None:
                is_settled &= self._has_stable(row, replicas, plane.versions, token)
                if rollout is None:
                    is_settled &= not self._stop_orphans(row, plane.versions, token)
            if (rollout is None or not rollout.exposed) and not _is_only_stable(plane.split, row.stable):
                stable_alone = SetSplit(row.stable, None, 0, 0)
                self._traffic.set_split(row.name, rollout.id if rollout else "", stable_alone, token=token)
                is_settled = False
            return INTERVAL_S if is_settled else BUSY_S
        except StaleToken:
            raise
        except CanaryctlError as exc:
            telemetry.warning("keeping the service failed, will be retried", service=row.name, why=str(exc))
            return INTERVAL_S

    def _has_stable(
        self, row: ServiceRow, replicas: int, versions: tuple[VersionStatus, ...], token: int
    ) -> bool:
        """True: all stable replicas are ready; otherwise they are loaded."""
        stable = next((version for version in versions if version.version == row.stable), None)
        if stable is not None and stable.phase is VersionPhase.READY and stable.ready_replicas >= replicas:
            return True
        if stable is None or stable.phase is not VersionPhase.FAILED:
            self._fleet.ensure(row.name, row.stable, replicas, token=token)
        elif self._clock.now_s() - stable.since_s >= RETRY_FAILED_S:
            # Stopping clears the failure; the next tick finds the version gone and loads it again.
            self._fleet.stop(row.name, row.stable, token=token)
        return False

    def _stop_orphans(self, row: ServiceRow, versions: tuple[VersionStatus, ...], token: int) -> bool:
        """Stop versions without an owner, such as a canary whose memory was not released in time."""
        leaving = (VersionPhase.GONE, VersionPhase.STOPPING)
        orphans = [one.version for one in versions if one.version != row.stable and one.phase not in leaving]
        for version in orphans:
            self._fleet.stop(row.name, version, token=token)
        return bool(orphans)

    def _remove(self, row: ServiceRow, plane: DataPlaneStatus, token: int) -> float | None:
        if plane.versions is None:
            return BUSY_S
        loaded = [version for version in plane.versions if version.phase is not VersionPhase.GONE]
        for version in loaded:
            if version.phase is not VersionPhase.STOPPING:
                self._fleet.stop(row.name, version.version, token=token)
        if loaded or plane.split is not None:
            return BUSY_S
        self._removals.remove_service(row.name, at_s=self._clock.now_s(), token=token)
        telemetry.event("service removed", service=row.name)
        return None


def _is_only_stable(split: SplitStatus | None, stable: str) -> bool:
    return split is not None and (split.stable, split.canary, split.weight_bp) == (stable, None, 0)
