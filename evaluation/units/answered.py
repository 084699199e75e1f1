"""Shares of answered units, which decide what missing scores could hide, and of answers that are scored.

A request without an answer (an error, or rejected) has no score. While both arms leave equally many
unanswered, that hides nothing. Else the arm that answers more has additional answers, and their scores are
all that it can be blamed, or praised, for: `scores.py` moves its tolerance by them.
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.stable_baseline import FIRST_EPOCH, epoch_after
from evaluation.betting.unit_block import Flags, Floats, Ints

SHRINKAGE = 200.0  # units: the weight of the pooled share in each arm's
NOISE = 2.0  # standard errors: a smaller difference is chance, where a rate would have to pay for all of it


class AnsweredGap:
    """Running shares of answered units of both arms. What a unit gets is of units before it: the gap is
    updated where an epoch of drawn units ends: the blocks in which they come make no difference."""

    __state__ = ("sums", "counts", "rows", "until", "shrunk", "certain")

    def __init__(self) -> None:
        self.sums: Floats = np.zeros(2)  # of answered shares, by arm
        self.counts: Floats = np.zeros(2)
        self.rows = 0
        self.until = FIRST_EPOCH
        self.shrunk = 0.0
        self.certain = 0.0

    def of(self, arm: Flags, w: Floats, answered: Floats) -> Floats:
        """2 x n gaps before each unit, canary less stable: shrunk, and with the noise taken off.

        answered: share of each unit's requests that were answered. Units from before the canary (w = 0) do
        not count.
        """
        out = np.empty((2, len(arm)))
        drawn = np.flatnonzero(w > 0.0)
        start = given = 0
        while start < len(drawn):
            stop = min(len(drawn), start + self.until - self.rows)
            end = int(drawn[stop - 1]) + 1
            out[:, given:end] = np.array([[self.shrunk], [self.certain]])
            given, rows = end, drawn[start:stop]
            for number, of_arm in enumerate((~arm[rows], arm[rows])):
                shares = answered[rows][of_arm]
                self.sums[number] = np.add.accumulate(np.concatenate(([self.sums[number]], shares)))[-1]
                self.counts[number] += len(shares)
            self.rows += stop - start
            if self.rows == self.until:
                self.until += epoch_after(self.rows)
                self._end_epoch()
            start = stop
        out[:, given:] = np.array([[self.shrunk], [self.certain]])
        return out

    def _end_epoch(self) -> None:
        total = float(self.counts[0] + self.counts[1])
        pooled = float(self.sums[0] + self.sums[1]) / total
        stable, canary = ((self.sums + SHRINKAGE * pooled) / (self.counts + SHRINKAGE)).tolist()
        self.shrunk = canary - stable
        n0, n1 = self.counts.tolist()
        if n0 > 0.0 and n1 > 0.0:
            raw = float(self.sums[1]) / n1 - float(self.sums[0]) / n0
            error = math.sqrt(max(pooled * (1.0 - pooled), 0.0) * (1.0 / n0 + 1.0 / n1))
            self.certain = math.copysign(max(abs(raw) - NOISE * error, 0.0), raw)


class ScoredShare:
    """Running share of answers that have a score, of both arms; 1 before any is known. Where a judge samples,
    requests without an answer count so much less in a proof, since it would have scored only so many."""

    __state__ = ("answers", "scores", "rows", "until", "share")

    def __init__(self) -> None:
        self.answers = 0
        self.scores = 0
        self.rows = 0
        self.until = FIRST_EPOCH
        self.share = 1.0

    def of(self, scored: Flags, answered: Flags, counted: slice | Ints = slice(None)) -> Floats:
        """The share before each request, updated where an epoch of the `counted` requests ends."""
        out = np.empty(len(scored))
        rows = np.arange(len(scored))[counted]
        start = given = 0
        while start < len(rows):
            stop = min(len(rows), start + self.until - self.rows)
            part = rows[start:stop]
            out[given : part[-1] + 1] = self.share
            given = int(part[-1]) + 1
            self.answers += int(np.count_nonzero(answered[part]))
            self.scores += int(np.count_nonzero(scored[part] & answered[part]))
            self.rows += stop - start
            if self.rows == self.until:
                self.until += epoch_after(self.rows)
                self.share = (self.scores + 1.0) / (self.answers + 1.0)
            start = stop
        out[given:] = self.share
        return out
