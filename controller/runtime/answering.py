"""Versions that answer in place of the stored one, and those without an owner: who is kept, and who may go.

An older copy of the database names a stable version that served before, and the route table the one that
serves now. Rules, over the ticks of one lease:
1. What the table names keeps its traffic until all replicas of the stored version have been ready for
   `STEADY_S`. Then the table moves; once that is applied the other is drained, and only then stopped.
2. `BLINK_S` without a ready replica decides nothing: a fleet actor that was restarted knows none for a while.
3. While the table cannot be read nothing is stopped, for it is not known whom users get.
"""

from __future__ import annotations

from typing import Literal

from controller.rollout.observation import (
    LOADED,
    DataPlaneStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.readiness import BLINK_S

STEADY_S = 10.0
DRAIN_S = 30.0  # after that, what is under way is ended
COUNT_LAG_S = 1.0  # maximum age of a count of requests in flight

Leaving = Literal["drain", "wait", "stop"]


class Answering:
    """Memory of who is ready and who is drained. Times are of the boot clock."""

    def __init__(self) -> None:
        self._steady: tuple[str, float] | None = None  # stored version, since when all its replicas are ready
        self._silent_since_s: dict[str, float] = {}  # by version, since when it has no ready replica
        self._draining_since_s: dict[str, float] = {}

    def instead_of(self, stable: str, replicas: int, plane: DataPlaneStatus) -> frozenset[str]:
        """Versions other than stable that the table names and that keep its traffic."""
        self._note(stable, replicas, plane)
        named = _named(plane.split) - {stable}
        if plane.versions is None:
            return named
        if self._steady is not None and plane.boot_s - self._steady[1] >= STEADY_S:
            return frozenset()
        loaded = {one.version for one in plane.versions if one.phase in LOADED}
        return frozenset(name for name in named & loaded if not self._is_lost(name, plane.boot_s))

    def _note(self, stable: str, replicas: int, plane: DataPlaneStatus) -> None:
        if plane.versions is None:
            return  # as last seen
        found = {one.version: one for one in plane.versions}
        own = found.get(stable)
        is_ready = own is not None and own.phase is VersionPhase.READY and own.ready_replicas >= replicas
        if not is_ready:
            self._steady = None
        elif self._steady is None or self._steady[0] != stable:
            self._steady = (stable, plane.boot_s)
        silent = [name for name, one in found.items() if one.ready_replicas <= 0]
        self._silent_since_s = {name: self._silent_since_s.get(name, plane.boot_s) for name in silent}
        self._draining_since_s = {
            name: at_s for name, at_s in self._draining_since_s.items() if name in found
        }

    def _is_lost(self, version: str, boot_s: float) -> bool:
        since_s = self._silent_since_s.get(version)
        return since_s is not None and boot_s - since_s >= BLINK_S

    def leaving(self, kept: frozenset[str], plane: DataPlaneStatus) -> dict[str, Leaving]:
        """What is to be done with each version that nobody owns and to which no router sends a request."""
        split = plane.split
        if split is None or not split.applied:
            return {}
        kept |= _named(split)
        gone = (VersionPhase.GONE, VersionPhase.STOPPING)
        orphans = [one for one in plane.versions or () if one.version not in kept and one.phase not in gone]
        return {one.version: self._next(one, plane.boot_s) for one in orphans}

    def _next(self, version: VersionStatus, boot_s: float) -> Leaving:
        is_serving = version.phase is not VersionPhase.FAILED and version.ready_replicas > 0
        if not is_serving and version.phase is not VersionPhase.DRAINING:
            return "stop"
        waited_s = boot_s - self._draining_since_s.setdefault(version.version, boot_s)
        if waited_s >= DRAIN_S:
            return "stop"
        if version.phase is not VersionPhase.DRAINING:
            return "drain"
        return "stop" if version.in_flight <= 0 and waited_s >= COUNT_LAG_S else "wait"


def _named(split: SplitStatus | None) -> frozenset[str]:
    """The versions to which the table sends requests."""
    if split is None:
        return frozenset()
    names = (split.stable, split.canary if split.weight_bp else None)
    return frozenset(name for name in names if name is not None)
