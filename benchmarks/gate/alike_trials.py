"""Trials of latencies whose slowest end alike, at a time-out: the p99 lies among equal values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.gate.traffic import MEDIAN_MS
from benchmarks.gate.trials import Goal, Row, Share, Trial, seed_of
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

W, END_MS, JITTER = 0.25, 8000.0, 0.001
MARGINS = {"latency_p99": 1.2}
FAILED = 0.005


@dataclass(frozen=True, slots=True)
class Alike:
    """Measure: whether p99 < 1.2x is proven. `stable`, `canary`: shares of answers that end alike, the
    canary's at `times` the time of stable's. `unanswered`: share of the canary's requests, else 0.5 %."""

    name: str
    stable: float
    canary: float
    times: float = 1.0
    unanswered: float = FAILED
    requests: int = 20_000

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        size = self.requests
        on_canary = rng.random(size) < W
        latency = rng.lognormal(np.log(MEDIAN_MS), 0.5, size)
        ends = END_MS * np.where(on_canary, self.times, 1.0) * np.exp(JITTER * rng.standard_normal(size))
        latency = np.where(rng.random(size) < np.where(on_canary, self.canary, self.stable), ends, latency)
        failed = rng.random(size) < np.where(on_canary, self.unanswered, FAILED)
        columns = {
            "t_s": np.arange(size) * 1.0,
            "arm": on_canary.astype(np.int64),
            "w": np.full(size, W),
            "assigned_by": np.full(size, "request"),
            "error": failed * 1.0,
            "latency_ms": np.where(failed, 20.0, latency),
        }
        policy = GatePolicy.default().only("error", "latency_ms")
        result = run(columns, policy, stages=(StagePlan(W, 0, MARGINS),))
        return {"rep": rep, "proven": "promote" if "latency_p99" in result.proofs else "undecided"}


def alike_trials() -> list[Trial]:
    """Equal versions are proven; a p99 at the margin, or more unanswered requests than 1 %, are not."""
    promoted = frozenset({"promote"})
    trials = []
    for share in (0.015, 0.03):
        name = f"{share:.1%} of the answers end alike"
        goals: dict[str, Goal] = {"promoted": Share("proven", promoted, 0.95, 0.97, at_least=True)}
        says = "identical versions: p99 < 1.2x can be proven"
        trials.append(Trial(name, "promoted", says, Alike(name, share, share), goals, runs=200))
    for name, says, stable, canary, times, unanswered in (
        ("3 % end alike, the canary's at 1.2x", "the p99 is at the margin", 0.03, 0.03, 1.2, FAILED),
        ("3 % end alike, 1.05 % of the canary's, at 1.21x", "so is its p99", 0.03, 0.0105, 1.21, FAILED),
        ("1.5 % end alike, 1.05 % of the canary's, at 1.21x", "so is its p99", 0.015, 0.0105, 1.21, FAILED),
        ("3 % end alike, the canary fails 2 % instead", "failures are slowest", 0.03, 0.0, 1.0, 0.02),
    ):
        measure = Alike(name, stable, canary, times, unanswered)
        goal = Share("proven", promoted, 0.05, 0.05)
        trials.append(Trial(name, "not proven", says, measure, {"promoted": goal}, runs=400))
    return trials
