"""Shares of answered units, which decide what missing scores could hide, and of answers that are scored.

A request without an answer (an error, or rejected) has no score, nor any other judged value. While both arms
leave equally many unanswered, that hides nothing. Where stable answers more, the events of its additional
answers are all that the canary's failures could hide: `rates.RateProof` moves its margins by them.
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.stable_baseline import FIRST_EPOCH, epoch_after
from evaluation.betting.unit_block import Flags, Floats, Ints
from evaluation.units.later_blocks import PARTS
from evaluation.units.sessions import Rows

NOISE = 2.0  # standard errors: a smaller difference is chance, where a rate would have to pay for all of it


class AnsweredGap:
    """Running difference of the arms' answered shares, by the coin. With A the arm and a the answered share
    of a unit, `(A - w)(a - m)` has mean `w (1-w) gap` for every constant m: a shared outage, or clients at a
    weight of their own, moves both arms' shares alike and the difference not at all. (Arms compared as a
    whole showed a gap of identical versions under audiences, and after an outage at a higher weight.)

    What a unit gets is of units before it: gap and m, the mean of all, are updated where an epoch of drawn
    units ends: the blocks in which they come make no difference."""

    __state__ = ("sums", "rows", "until", "mean", "certain")

    def __init__(self) -> None:
        self.sums: Floats = np.zeros(4)  # of (A - w)(a - m), w (1-w), w (1-w)(a - m)^2, and a
        self.rows = 0
        self.until = FIRST_EPOCH
        self.mean = 1.0
        self.certain = 0.0

    def of(self, arm: Flags, w: Floats, answered: Floats) -> Floats:
        """The gap before each unit, canary less stable, with the noise taken off.

        answered: share of each unit's requests that were answered. Units from before the canary (w = 0) do
        not count.
        """
        out = np.empty(len(arm))
        drawn = np.flatnonzero(w > 0.0)
        start = given = 0
        while start < len(drawn):
            stop = min(len(drawn), start + self.until - self.rows)
            end = int(drawn[stop - 1]) + 1
            out[given:end] = self.certain
            given = end
            self._add(arm[drawn[start:stop]], w[drawn[start:stop]], answered[drawn[start:stop]])
            self.rows += stop - start
            if self.rows == self.until:
                self.until += epoch_after(self.rows)
                self._end_epoch()
            start = stop
        out[given:] = self.certain
        return out

    def _add(self, arm: Flags, w: Floats, answered: Floats) -> None:
        off, spread = answered - self.mean, w * (1.0 - w)
        terms = np.stack(((arm - w) * off, spread, spread * off * off, answered))
        so_far = np.concatenate((self.sums[:, None], terms), axis=1)
        self.sums = np.add.accumulate(so_far, axis=1)[:, -1]

    def _end_epoch(self) -> None:
        moved, spread, squares, answered = self.sums.tolist()
        self.mean = answered / self.rows
        if spread > 0.0:
            raw, error = moved / spread, math.sqrt(squares) / spread
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


class LaterShare:
    """Share of the present stage's values of one metric that are of later requests: how much of what it does
    is not seen in the sessions themselves. Of a part's blocks a drawn one is judged, so each of its values
    counts for those that are not: 1 over its probability (`Rows.stands`), which is right in the mean."""

    __state__ = ("stage", "own", "later")

    def __init__(self) -> None:
        self.stage = 0
        self.own = 0
        self.later: Ints = np.zeros(PARTS, dtype=np.int64)  # values by part, judged or not

    def count(self, rows: Rows, present: Flags) -> None:
        """Count values, in order. present: which of the rows have one."""
        if (stage := int(rows.stage.max())) > self.stage:  # a late row of an earlier stage ends nothing
            self.stage, self.own, self.later = stage, 0, np.zeros(PARTS, dtype=np.int64)
        present = present & (rows.stage == self.stage)
        is_later = present & (rows.round > 0)
        self.own += int(np.count_nonzero(present)) - int(np.count_nonzero(is_later))
        if is_later.any():
            self.later = self.later + _sums(rows.part[is_later], rows.stands[is_later])

    @property
    def shares(self) -> Floats:
        """Of each part; 0 before any value."""
        shares: Floats = self.later / max(self.own + int(self.later.sum()), 1)
        return shares

    def parts_of(self, least: float) -> list[int]:
        """Which parts must prove a margin: see `parts_with`."""
        return parts_with(self.shares, least)

    def unproven(self, least: float) -> tuple[float, int]:
        """The later requests of which no proof is asked (`parts_of`): their share of the values, and after
        how many sessions' requests of a unit in an hour they begin."""
        rest = sorted(set(range(PARTS)) - set(self.parts_of(least)))
        shares = self.shares
        return sum(float(shares[part]) for part in rest), 1 << min(rest, default=PARTS)


def parts_with(shares: Floats, least: float) -> list[int]:
    """The parts with so large a share of all values; the first one as well where all together have it."""
    total = float(np.add.accumulate(shares)[-1])
    return [part for part in range(PARTS) if shares[part] >= least or (part == 0 and total >= least)]


def _sums(part: Ints, stands: Ints) -> Ints:
    """Sums of `stands` by part."""
    return np.bincount(part, weights=stands, minlength=PARTS).astype(np.int64)
