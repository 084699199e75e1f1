"""Difference of the arms' shares of answered units, which decides what missing scores could hide.

A request without an answer (an error, or rejected) has no score. While both arms leave equally many
unanswered, that hides nothing. Else the arm that answers more has additional answers, and their scores are
all that it can be blamed, or praised, for: `scores.py` moves its tolerance and margin by them.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.unit_block import Flags, Floats

SHRINKAGE = 200.0  # units: the weight of the pooled share in each arm's
NOISE = 2.0  # standard errors: a smaller difference is chance, where a rate would have to pay for all of it


class AnsweredGap:
    """Running shares of answered units of both arms; what a unit gets is of the units before it."""

    __state__ = ("sums", "counts")

    def __init__(self) -> None:
        self.sums: Floats = np.zeros(2)  # of answered shares, by arm
        self.counts: Floats = np.zeros(2)

    def of(self, arm: Flags, w: Floats, answered: Floats) -> tuple[Floats, Floats]:
        """The gap before each unit, canary less stable: shrunk, and with the noise taken off.

        answered: share of each unit's requests that were answered. Units from before the canary (w = 0) do
        not count.
        """
        drawn = w > 0.0
        sums, counts = [], []
        for number, of_arm in enumerate((drawn & ~arm, drawn & arm)):
            sums.append(self._before(self.sums, number, np.where(of_arm, answered, 0.0)))
            counts.append(self._before(self.counts, number, of_arm.astype(np.float64)))
        n0, n1 = counts
        total = n0 + n1
        pooled = (sums[0] + sums[1]) / np.maximum(total, 1.0)
        shares = [(s + SHRINKAGE * pooled) / (n + SHRINKAGE) for s, n in zip(sums, counts, strict=True)]
        gap = np.where(total > 0.0, shares[1] - shares[0], 0.0)
        spread = np.sqrt(pooled * np.maximum(1.0 - pooled, 0.0))
        noise = NOISE * spread * np.sqrt(1.0 / np.maximum(n0, 1.0) + 1.0 / np.maximum(n1, 1.0))
        raw = np.where(
            (n0 > 0.0) & (n1 > 0.0), sums[1] / np.maximum(n1, 1.0) - sums[0] / np.maximum(n0, 1.0), 0.0
        )
        return gap, np.sign(raw) * np.maximum(np.abs(raw) - noise, 0.0)

    @staticmethod
    def _before(totals: Floats, number: int, terms: Floats) -> Floats:
        path = np.add.accumulate(np.concatenate(([totals[number]], terms)))
        totals[number] = path[-1]
        return path[:-1]
