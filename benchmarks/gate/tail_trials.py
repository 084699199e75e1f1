"""Trials of tails that a limit a little off, or a recorder, hides: a cliff, and polls that come late.

The canary is as stable but for its slowest answers, and its p99 is above the margin of 1.2x.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from benchmarks.gate.traffic import MEDIAN_MS, Floats
from benchmarks.gate.trials import Row, Share, Trial, seed_of
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

W, SIGMA, STABLE_FIRST = 0.25, 0.5, 6000
MARGINS = {"latency_p99": 1.2}
CLIFF_WIDTH = 0.002  # relative


@dataclass(frozen=True, slots=True)
class SlowEnd:
    """Measure: whether p99 < 1.2x is proven of a canary whose slowest `share` of answers take `times` as
    long: all of them `times` stable's p99 where it is a cliff (a server's deadline, a retry after a fixed
    wait), else each of them.

    Answers above `exact_ms` are seen at the next multiple of `poll_ms`, up to `late_ms` later; 0: exactly.
    """

    name: str
    share: float
    times: float
    is_cliff: bool = False
    exact_ms: float = 0.0
    poll_ms: float = 0.0
    late_ms: float = 0.0
    canary_requests: int = 6000

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        size = STABLE_FIRST + round(self.canary_requests / W)
        w = np.where(np.arange(size) < STABLE_FIRST, 0.0, W)
        on_canary = rng.random(size) < w
        z = rng.standard_normal(size)
        latency: Floats = MEDIAN_MS * np.exp(SIGMA * z)
        slow = latency * self.times
        if self.is_cliff:
            p99 = MEDIAN_MS * np.exp(SIGMA * NormalDist().inv_cdf(0.99))
            slow = self.times * p99 * (1.0 + CLIFF_WIDTH * rng.random(size))
        is_slow = on_canary & (z > NormalDist().inv_cdf(1.0 - self.share))
        latency = np.where(is_slow, slow, latency)
        if self.poll_ms > 0.0:
            polled = np.ceil(latency / self.poll_ms) * self.poll_ms + self.late_ms * rng.random(size)
            latency = np.where(latency > self.exact_ms, polled, latency)
        columns = {
            "t_s": np.arange(size) * 0.1,
            "arm": on_canary.astype(np.int64),
            "w": w,
            "assigned_by": np.full(size, "request"),
            "error": np.zeros(size),
            "latency_ms": latency,
        }
        policy = GatePolicy.default().only("error", "latency_ms")
        result = run(columns, policy, stages=(StagePlan(W, 0, MARGINS, 0.0005),))
        return {"rep": rep, "proven": "promote" if "latency_p99" in result.proofs else "undecided"}


def tail_trials() -> list[Trial]:
    """None of them is proven in more than one of twenty runs."""
    cliff = "an estimate of stable's p99 that is a little high leaves all of them below the margin"
    polled = "the canary's slowest 4 % are slower, and seen at the same polls as stable's"
    goal = Share("proven", frozenset({"promote"}), 0.05, 0.05)
    measures = (
        (cliff, SlowEnd("the canary's slowest 1.05 % end at 1.22x", 0.0105, 1.22, is_cliff=True)),
        (cliff, SlowEnd("the canary's slowest 1.2 % end at 1.22x", 0.012, 1.22, is_cliff=True)),
        (
            polled,
            SlowEnd(
                "p99 at 1.3x, exact to 1 s, then polled each 2 s and 10 ms late",
                *(0.04, 1.3),
                exact_ms=1000.0,
                poll_ms=2000.0,
                late_ms=10.0,
                canary_requests=4000,
            ),
        ),
        (
            polled,
            SlowEnd(
                "p99 at 1.22x, exact to 1.8 s, then polled each 1.7 s and 15 ms late",
                *(0.04, 1.22),
                exact_ms=1800.0,
                poll_ms=1700.0,
                late_ms=15.0,
                canary_requests=4000,
            ),
        ),
    )
    return [
        Trial(measure.name, "not proven", says, measure, {"promoted": goal}, runs=400)
        for says, measure in measures
    ]
