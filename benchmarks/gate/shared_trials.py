"""Trials of the hold for shared hardware: what became slower with the canary, and what did not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.gate.traffic import MEDIAN_MS
from benchmarks.gate.trials import Goal, Row, Share, Trial, seed_of
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

FIRST, REQUESTS, W = 3000, 12_000, 0.05  # before the canary, and in all
TEXT = "shared hardware?"


@dataclass(frozen=True, slots=True)
class SharedHardware:
    """Measure: whether a rollout of identical versions is held for stable's own slowdown.

    `staff`: share of the requests of clients with the weight `staff_w`, `faster` times as fast as the others.
    `drift`: factor by which latency grows evenly from the canary's beginning to the end. `at_once`: factor
    from the canary's beginning on.
    """

    name: str
    staff: float = 0.0
    staff_w: float = W
    faster: float = 1.0
    drift: float = 1.0
    at_once: float = 1.0

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        is_staff, row = rng.random(REQUESTS) < self.staff, np.arange(REQUESTS)
        w = np.where(row < FIRST, 0.0, np.where(is_staff, self.staff_w, W))
        since = np.clip((row - FIRST) / (REQUESTS - FIRST), 0.0, 1.0)
        latency = rng.lognormal(np.log(MEDIAN_MS), 0.5, REQUESTS) / np.where(is_staff, self.faster, 1.0)
        latency *= self.drift**since * np.where(row < FIRST, 1.0, self.at_once)
        columns = {
            "t_s": row * 1.0,
            "arm": (rng.random(REQUESTS) < w).astype(np.int64),
            "w": w,
            "assigned_by": np.full(REQUESTS, "request"),
            "latency_ms": latency,
            "error": (rng.random(REQUESTS) < 0.01) * 1.0,
        }
        policy = GatePolicy.default().only("error", "latency_ms")
        result = run(columns, policy, stages=(StagePlan(W, 0, {"error": 5.0}),))
        is_held = any(TEXT in reason for reason in result.reasons)
        return {"rep": rep, "held": "held" if is_held else "free"}


def shared_trials() -> list[Trial]:
    """Clients who left stable and slow drift hold nothing; a slowdown that came with the canary does."""
    held = frozenset({"held"})
    trials = []
    for name, says, measure in (
        (
            "fast clients always on the canary",
            "40 % of the requests, 3.75 times as fast: stable has none of theirs",
            SharedHardware("", staff=0.4, staff_w=1.0, faster=3.75),
        ),
        (
            "fast clients at 90 %",
            "60 % of the requests, 3.75 times as fast: stable has a tenth of theirs",
            SharedHardware("", staff=0.6, staff_w=0.9, faster=3.75),
        ),
        (
            "latency that rises to x3 on both arms",
            "evenly, long after the canary's beginning",
            SharedHardware("", drift=3.0),
        ),
        (
            "latency x2 from the canary's beginning",
            "on both arms: the coin cannot tell, and it pages",
            SharedHardware("", at_once=2.0),
        ),
    ):
        of_name = SharedHardware(
            name, measure.staff, measure.staff_w, measure.faster, measure.drift, measure.at_once
        )
        is_true = measure.at_once > 1.0
        limit, usual = (0.95, 0.99) if is_true else (0.05, 0.01)
        goals: dict[str, Goal] = {"held": Share("held", held, limit, usual, at_least=is_true)}
        trials.append(Trial(name, "power" if is_true else "stays", says, of_name, goals, runs=400))
    return trials
