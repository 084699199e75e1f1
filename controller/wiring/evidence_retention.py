"""Retention of evidence: of an ended rollout only what people are shown is kept.

A rollout's end stores no more than that; this shortens what earlier releases stored, and what a rollout kept
that ended before its evidence was read again.
"""

from __future__ import annotations

from controller import telemetry
from controller.errors import CanaryctlError
from controller.evidence.snapshot import without_feed
from controller.rollout.serialization import UnreadableState
from controller.store.database import Database
from controller.store.retention import large_evidence, shorten_evidence

INTERVAL_S = 3600.0


class EvidenceRetention:
    """Shortens stored evidence, one rollout a call, so that no call takes long."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._left: list[str] = []
        self._next_s: float | None = None  # boot time of the next search; None: now
        self._refused: set[str] = set()  # what another release wrote is left as it is

    def __call__(self, boot_s: float) -> None:
        """Shorten one rollout's evidence, if any is large. Raises nothing: nothing depends on it."""
        try:
            if not self._left:
                if self._next_s is not None and boot_s < self._next_s:
                    return
                self._next_s = boot_s + INTERVAL_S
                self._left = [id for id in large_evidence(self._database) if id not in self._refused]
            if self._left:
                self._shorten(self._left.pop())
        except CanaryctlError as exc:
            self._left = []
            telemetry.warning("evidence of ended rollouts was not shortened, next in an hour", why=str(exc))

    def _shorten(self, rollout: str) -> None:
        try:
            shorten_evidence(self._database, rollout, without_feed)
        except (ValueError, KeyError, AttributeError, UnreadableState) as exc:
            self._refused.add(rollout)
            telemetry.warning("evidence of an ended rollout is kept whole", rollout=rollout, why=str(exc))
