"""What the replicas of each arm have to carry while a rollout runs, from what was counted and what is ready.

Two answers: the load of the stage, on which its latency proofs stand or fall, and the load now. While a
canary replica carries more than the policy's `load_ratio` of a stable one (a replica was lost in the middle
of a stage), slower is not harm: the evaluator leaves latency out, of both arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from controller.quantities import FULL_BP
from evaluation.evaluator import Evaluator
from serving.messages import RequestRecord

ENOUGH = 400  # requests of each arm, before their count says more of the split than its weight does
# What was assigned so long before the last look that found the loads alike may still have been under way.
UNDER_WAY_S = 60.0
# So soon a lost replica is seen (the fleet looks after one that was silent for 3 s). Until then nothing
# settles: what has settled can be left out no more.
SEEN_AFTER_S = 5.0


class LiveLoad:
    """Counts who served, and divides by who was ready. One weight at a time."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ready: tuple[int, int] | None = None  # replicas of stable and canary; None: not known
        self._weight_bp: int | None = None  # None: none was acknowledged yet
        self._since_s = 0.0  # when it was
        self._served = [0, 0]  # requests since then while the loads were alike, by who served them
        self._carried = [0.0, 0.0]  # the same requests, each divided by its arm's ready replicas
        self._looked_at_s = 0.0
        self._alike_at_s = -math.inf  # the last look that found them alike

    def stand(self, weight_bp: int, since_s: float) -> None:
        """A weight was acknowledged at `since_s`: another weight is counted anew."""
        if self._weight_bp not in (None, weight_bp):
            self._served, self._carried = [0, 0], [0.0, 0.0]
        self._weight_bp, self._since_s = weight_bp, since_s

    def look(self, stable: int, canary: int, now_s: float) -> None:
        """Ready replicas of each arm now. Without one of stable's there is no load to compare."""
        self._ready = (stable, canary) if stable > 0 else None
        self._looked_at_s = now_s
        if not self._is_over():
            self._alike_at_s = now_s

    def count(self, record: RequestRecord) -> None:
        """Who served it carried it, whoever it was drawn for. Before the weight stood, another one did."""
        if self._ready is None or self._weight_bp is None or record.at_s < self._since_s or self._is_over():
            return
        arm = record.arm if record.served_arm is None else record.served_arm
        if self._ready[arm]:
            self._served[arm] += 1
            self._carried[arm] += 1 / self._ready[arm]

    def tell(self, evaluator: Evaluator) -> None:
        """Tell the evaluator how it stands, before it settles what has come."""
        ratio = self._ratio()
        if ratio is None or self._ready is None:
            return
        since_s = self._alike_at_s - UNDER_WAY_S
        evaluator.set_current_load(ratio, since_s=since_s, at_s=self._looked_at_s)
        if min(self._served) >= ENOUGH:
            stable, canary = self._carried
        elif self._ready[1]:
            w = self._weight()
            stable, canary = (1 - w) / self._ready[0], w / self._ready[1]
        else:
            return
        evaluator.set_stage_load(stable=stable, canary=canary)

    def through_s(self, through_s: float, now_s: float) -> float:
        """Up to where may settle: where the canary has replicas to lose, not before a loss would be seen."""
        is_exposed = self._ready is not None and self._ready[1] != 1
        return min(through_s, now_s - SEEN_AFTER_S) if is_exposed else through_s

    def to_mapping(self) -> dict[str, Any]:
        """For a snapshot."""
        alike = self._alike_at_s if math.isfinite(self._alike_at_s) else None
        return {
            "served": self._served,
            "load": self._carried,
            "weight_bp": self._weight_bp,
            "alike_at_s": alike,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """What `to_mapping` gave; an older canaryctl wrote less, the oldest none of it."""
        self._served, self._carried = saved.get("served", [0, 0]), saved.get("load", [0.0, 0.0])
        self._weight_bp = saved.get("weight_bp")
        alike_at_s = saved.get("alike_at_s")
        self._alike_at_s = -math.inf if alike_at_s is None else alike_at_s

    def _weight(self) -> float:
        return (self._weight_bp or 0) / FULL_BP

    def _is_over(self) -> bool:
        ratio = self._ratio()
        return ratio is not None and ratio > self._limit

    def _ratio(self) -> float | None:
        """A canary replica's requests over a stable one's, now; None: not known, or no coin is tossed."""
        if self._ready is None or not 0 < self._weight() < 1:
            return None
        if self._ready[1] == 0:
            return math.inf
        w = self._weight()
        split = self._served[1] / self._served[0] if min(self._served) >= ENOUGH else w / (1 - w)
        return split * self._ready[0] / self._ready[1]
