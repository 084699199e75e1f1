"""One version kept loaded: until its replicas are ready, and again after a failure."""

from __future__ import annotations

from controller.rollout.observation import VersionPhase, VersionStatus
from controller.rollout.ports import Clock, Fleet

RETRY_FAILED_S = 30.0


class KeptLoaded:
    """Drives the fleet towards one version at a time."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet, self._clock = fleet, clock
        self._failure: tuple[str, float] | None = None  # version and start of its failure
        self._failed_s = 0.0  # boot time at which it was first seen

    def is_ready(
        self, service: str, version: str, replicas: int, status: VersionStatus | None, *, token: int
    ) -> bool:
        """True: so many replicas are; otherwise they are loaded. status: None: the version is gone."""
        if status is not None and status.phase is VersionPhase.READY and status.ready_replicas >= replicas:
            return True
        if status is None or status.phase is not VersionPhase.FAILED:
            self._fleet.ensure(service, version, replicas, token=token)
        elif self._has_failed_for_long(status):
            # Stopping clears the failure; the next tick finds the version gone and loads it again.
            self._fleet.stop(service, version, token=token)
        return False

    def _has_failed_for_long(self, status: VersionStatus) -> bool:
        """True: this failure was first seen `RETRY_FAILED_S` ago, by a clock that cannot be set."""
        failure = (status.version, status.since_s)
        if self._failure != failure:
            self._failure, self._failed_s = failure, self._clock.boot_s()
        return self._clock.boot_s() - self._failed_s >= RETRY_FAILED_S
