"""Load per replica of each arm while a rollout runs, from requests counted and replicas ready.

Two results: the load of the stage, which its latency proofs depend on, and the load now. While a canary
replica carries more than `load_ratio` times a stable one (a replica was lost in the middle of a stage),
slower is not harm: the evaluator leaves latency out, for both arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from controller.quantities import FULL_BP
from evaluation.evaluator import Evaluator
from serving.messages import RequestRecord

ENOUGH = 400  # requests of each arm before their count is a better estimate of the split than its weight
# Requests assigned this long before the last balanced reading may still have been in flight.
IN_FLIGHT_S = 60.0
# A lost replica is noticed within this (the fleet checks one that was silent for 3 s). Until then nothing
# settles: settled evidence can no longer be left out.
LOSS_NOTICED_S = 5.0


class LiveLoad:
    """Requests per ready replica of each arm, counted anew for each weight."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ready: tuple[int, int] | None = None  # replicas of stable and canary; None: not known
        self._weight_bp: int | None = None  # None: none was acknowledged yet
        self._acked_at_s = 0.0
        self._served = [0, 0]  # requests since then while the load was balanced, by the arm that served them
        self._carried = [0.0, 0.0]  # the same requests, each divided by its arm's ready replicas
        self._read_at_s = 0.0
        self._balanced_at_s = -math.inf  # the last reading that found the load balanced

    def set_weight(self, weight_bp: int, acked_at_s: float) -> None:
        """Note the acknowledged weight; a different one starts the count anew."""
        if self._weight_bp not in (None, weight_bp):
            self._served, self._carried = [0, 0], [0.0, 0.0]
        self._weight_bp, self._acked_at_s = weight_bp, acked_at_s

    def note_ready(self, stable: int, canary: int, now_s: float) -> None:
        """Note the ready replicas of each arm. Without a stable one there is no load to compare."""
        self._ready = (stable, canary) if stable > 0 else None
        self._read_at_s = now_s
        if not self._is_over():
            self._balanced_at_s = now_s

    def count(self, record: RequestRecord) -> None:
        """Count a request for the arm that served it, whichever it was assigned to."""
        is_current = self._weight_bp is not None and record.at_s >= self._acked_at_s
        if self._ready is None or not is_current or self._is_over():
            return
        arm = record.arm if record.served_arm is None else record.served_arm
        if self._ready[arm]:
            self._served[arm] += 1
            self._carried[arm] += 1 / self._ready[arm]

    def report_to(self, evaluator: Evaluator) -> None:
        """Pass both loads to the evaluator, before it settles new requests."""
        ratio = self._ratio()
        if ratio is None or self._ready is None:
            return
        since_s = self._balanced_at_s - IN_FLIGHT_S
        evaluator.set_current_load(ratio, since_s=since_s, at_s=self._read_at_s)
        if min(self._served) >= ENOUGH:
            stable, canary = self._carried
        elif self._ready[1]:
            w = self._weight()
            stable, canary = (1 - w) / self._ready[0], w / self._ready[1]
        else:
            return
        evaluator.set_stage_load(stable=stable, canary=canary)

    def settle_through_s(self, low_watermark_s: float, now_s: float) -> float:
        """How far requests may settle: where a canary replica can be lost, not before its loss is noticed."""
        is_exposed = self._ready is not None and self._ready[1] != 1
        return min(low_watermark_s, now_s - LOSS_NOTICED_S) if is_exposed else low_watermark_s

    def to_mapping(self) -> dict[str, Any]:
        """State for a snapshot."""
        at_s = self._balanced_at_s if math.isfinite(self._balanced_at_s) else None
        counts = {"served": self._served, "load": self._carried}
        return {**counts, "weight_bp": self._weight_bp, "alike_at_s": at_s}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the state of `to_mapping`; older versions wrote fewer keys, the oldest none."""
        self._served, self._carried = saved.get("served", [0, 0]), saved.get("load", [0.0, 0.0])
        self._weight_bp = saved.get("weight_bp")
        at_s = saved.get("alike_at_s")
        self._balanced_at_s = -math.inf if at_s is None else at_s

    def _weight(self) -> float:
        return (self._weight_bp or 0) / FULL_BP

    def _is_over(self) -> bool:
        ratio = self._ratio()
        return ratio is not None and ratio > self._limit

    def _ratio(self) -> float | None:
        """A canary replica's current load over a stable one's; None: not known, or no request is drawn."""
        if self._ready is None or not 0 < self._weight() < 1:
            return None
        if self._ready[1] == 0:
            return math.inf
        w = self._weight()
        split = self._served[1] / self._served[0] if min(self._served) >= ENOUGH else w / (1 - w)
        return split * self._ready[0] / self._ready[1]
