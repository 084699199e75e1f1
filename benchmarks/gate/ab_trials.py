"""Trials of A/B tests: the time to a winner beside mSPRT tuned to the effect, and the interval shown with it.

mSPRT: the mixture sequential probability ratio test of a difference of two means with a normal mixture whose
standard deviation is the true effect, and the true variance: what nobody knows before the test.
Source: Johari, Koomen, Pekelis & Walsh, Always Valid Inference (2022), equation 14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate.traffic import Floats
from benchmarks.gate.trials import Row, seed_of
from evaluation.ab.comparison import AbVerdict
from evaluation.ab.mixture import MeanMixture

ALPHA = 0.05
STEP = 256
_VERDICTS = {None: AbVerdict.NOT_SHOWN, 0: AbVerdict.B_BETTER, 1: AbVerdict.A_BETTER}


@dataclass(frozen=True, slots=True)
class AbRun:
    """Measure: units until a winner, of the test and of mSPRT; whether the interval agrees at every verdict.

    a, b: rates of success, half of the units each. At most `units` units.
    """

    name: str
    a: float
    b: float
    units: int

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        is_b = rng.random(self.units) < 0.5
        y = (rng.random(self.units) < np.where(is_b, self.b, self.a)).astype(np.float64)
        side, w = is_b.astype(np.float64), np.full(self.units, 0.5)
        test = MeanMixture(ALPHA)
        for start in range(0, self.units, STEP):
            part = slice(start, start + STEP)
            test.add(y[part], side[part], w[part])
            if test.ended_at is not None:
                break
        found, bounds = test.ended_at, test.bounds()
        excludes = bounds.low > 0.0 or bounds.high < 0.0
        return {
            "rep": rep,
            "ours": found,
            "msprt": msprt(y, is_b, self.b - self.a, (self.a + self.b) / 2),
            "interval": "agrees" if excludes == (found is not None) else "contradicts",
            "verdict": _VERDICTS[test.side].value,
        }


def msprt(y: Floats, is_b: NDArray[np.bool_], effect: float, mean: float) -> int | None:
    """Units until mSPRT's likelihood ratio reaches 1 / alpha; None: not within these.

    effect: the true difference. mean: of all outcomes, whose variance is mean (1 - mean).
    """
    n = np.arange(1, len(y) + 1)
    n_b = np.cumsum(is_b)
    n_a = n - n_b
    sums = np.cumsum(y * is_b), np.cumsum(y * ~is_b)
    difference = sums[0] / np.maximum(n_b, 1) - sums[1] / np.maximum(n_a, 1)
    variance = mean * (1 - mean) * (1 / np.maximum(n_a, 1) + 1 / np.maximum(n_b, 1))
    tau2 = effect * effect
    log_ratio = 0.5 * np.log(variance / (variance + tau2)) + tau2 * difference**2 / (
        2 * variance * (variance + tau2)
    )
    reached = np.flatnonzero((log_ratio >= math.log(1 / ALPHA)) & (np.minimum(n_a, n_b) >= 2))
    return int(reached[0]) + 1 if len(reached) else None
