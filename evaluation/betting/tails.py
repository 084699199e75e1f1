"""Tails: the percentile that stable has now, and the proof that the canary's is below a margin.

A percentile is tested by the rate at which values exceed stable's own (`exceedance.Exceedance`). Whatever the
threshold, both arms are compared at the same one, so a rollback is valid under any drift. A proof is not: a
threshold that lies at stable's p92 today proves nothing of the p99 (59 to 97 % of canaries at 1.3x were
"proven" where both arms became slower). So the threshold is of recent values, and a proof counts only while
stable's own share above it fits.

Where latency goes up and down, a threshold of recent values lags: too low as each burst begins, too high
after it, and the share fits on average (a canary at 1.2x was "proven" in 11 to 23 % of runs). So a proof's
threshold is at least the percentile that the busiest of the last windows surely had. Alone it proves too
little: after a busy hour it is the p99.7 of a quiet one, where a canary whose p99 is 1.5x may have as many
answers as stable (proven below 1.2x in 36 of 73 runs). So both must prove, at it and at the percentile of
recent values. A stall of a few answers is no burst:
what sets the threshold lasted for several pieces of a window. (Without this, 60 slow answers of 20,000, of
both arms alike, kept a p99 from being proven within 10,000 canary requests in 40 of 40 runs.)

All these are estimates. Where the canary's slowest answers end together, just beyond the margin, a threshold
that is a little too high leaves none of them above it, and one too low loses nothing: such errors do not
average out (a canary at 1.22x was proven below 1.2x in 14 of 24 runs). So a third and a fourth proof are at
what the percentile of many more values may be instead (`RecentValues.may_be`): wherever it is in truth, one
is at most a little below it. Below it stable has more than 1 - percentile, and such a canary not: so stable's
values count in part. By half of the way, on a scale of ratios: wholly, so that they make 1 - percentile, one
limit alone would do, 2 or more standard errors lower, and a twin take half as long again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evaluation.betting.histogram import BINS, LogHistogram
from evaluation.betting.rates import RateProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Flags, Floats, UnitBlock
from evaluation.betting.wealth import Bets, Channel

TAIL_VALUES = 20.0  # of recent values, above the percentile: 2000 values of a p99
MANY = 10  # times as many, of which the limits are that the percentile may be
MAY_BE = (1.0, 2.0)  # standard errors of the count by which they are below the percentile
PART = 0.5  # power of the share that stable's values above one of them count: 0 is all, 1 is 1 - percentile
HELD_WINDOWS = 10  # of so many values each, for which a busy one sets the limit
PIECE = 0.1  # of a window, at least
PIECES, LASTING = 4, 3  # the last ones; so many of them had what is held
SURELY = 2.5  # standard errors of the count by which the limit that a window surely had is below its own
MOST_OFF = 1.5  # times the percentile's share of stable's answers above the limit: not this percentile
LEAST_OFF = 4.0  # ... or less than this part: the limit may be held above the percentile, but not so far
UNFIT = "latency changes, or these requests differ from the others"
ATOM_VALUES = 10.0  # recent values in the percentile's bin that may be alike
ATOM_BELOW = 0.5  # ... where fewer than this part of the percentile's share is above the bin
NOISE, MUCH_NOISE = 1.0, 2.0  # standard errors of the count: for a look; before what was won is given up


class Limit(NamedTuple):
    """What a proof counts as above the percentile: of stable, values above `upper`, and for the part `inside`
    those in (lower, upper]; of the canary, all above `lower`.

    Usually lower = upper and `inside` is 0. Where many values are alike (answers that end at a time-out), the
    percentile lies among them, and stable has nothing above it. Then its values there count for the part that
    makes their share 1 - percentile, and the canary's whole: of those it has as many, or more, above its own.
    (Both arms whole at the lower edge: with 3 % alike, a canary with 1 % at the margin was proven.)
    """

    upper: float
    lower: float
    inside: float
    part: float = 1.0  # what a value of stable above the limit counts

    def moved_to(self, upper: float) -> Limit:
        """The limit with this upper edge; values between its edges count in part only where it is unmoved."""
        inside = self.inside if upper == self.upper else 0.0
        return Limit(upper, self.lower if inside > 0.0 else upper, inside, self.part)


def with_errors(share: float, values: float, errors: float) -> float:
    """The share below, if so many standard errors more of the values are above."""
    above = (1.0 - share) * values
    return 1.0 - min((above + errors * math.sqrt(above)) / max(values, 1.0), 1.0)


def percentile_bin(weights: Floats, share: float) -> int:
    """The first bin with at least this share of the weight below its upper edge."""
    below = np.add.accumulate(weights)
    index = int(np.searchsorted(below, share * below[-1] * (1.0 - 1e-12), side="left"))
    return min(index, len(weights) - 1)


class RecentValues:
    """Weights of stable's values by bin: the newest epoch's whole, the older ones' scaled down together, so
    that they add up to `size`."""

    __state__ = ("weights", "seen", "first_bin")

    def __init__(self, size: float) -> None:
        self._size = size
        self.weights: Floats = np.zeros(1 + BINS)
        self.seen: Floats = np.zeros(1 + BINS)  # counts at the end of the last epoch
        self.first_bin = 0  # of the histogram at that time

    def end_epoch(self, histogram: LogHistogram) -> Floats:
        """Add what the histogram has counted since the last epoch; return that, by bin."""
        self.weights, self.seen = (histogram.fitted(of, self.first_bin) for of in (self.weights, self.seen))
        self.first_bin = histogram.range.first_bin
        counts = histogram.counts.astype(np.float64)
        fresh = counts - self.seen
        added, older = float(fresh.sum()), float(np.add.accumulate(self.weights)[-1])
        if older > 0.0 and older + added > self._size:
            self.weights = self.weights * (max(self._size - added, 0.0) / older)
        self.weights = self.weights + fresh
        self.seen = counts
        return fresh

    def forget(self) -> None:
        """Begin anew with the values counted since the last epoch."""
        self.weights = np.zeros_like(self.weights)

    def percentile(self, share: float, histogram: LogHistogram) -> float:
        """The smallest bin edge with at least this share of the weight below it."""
        return histogram.range.edges_of(percentile_bin(self.weights, share))[1]

    def lower_bound(self, share: float, histogram: LogHistogram) -> float:
        """What the percentile surely reaches: `SURELY` standard errors more of the values are above it."""
        return self.percentile(
            with_errors(share, float(np.add.accumulate(self.weights)[-1]), SURELY), histogram
        )

    def limit(self, share: float, histogram: LogHistogram) -> Limit:
        """The bin of the percentile, and the part of an event that a value of stable in it is."""
        below, index = np.add.accumulate(self.weights), percentile_bin(self.weights, share)
        lower, upper = histogram.range.edges_of(index)
        total, inside = float(below[-1]), float(self.weights[index])
        above = max(total - float(below[index]), 0.0)
        expected = (1.0 - share) * total
        if inside < ATOM_VALUES or above >= ATOM_BELOW * expected:
            return Limit(upper, upper, 0.0)
        return Limit(upper, lower, min(max(expected - above, 0.0) / inside, 1.0))

    def may_be(self, share: float, histogram: LogHistogram) -> tuple[Limit, Limit]:
        """What the percentile may be: `MAY_BE` standard errors lower than it seems, at a bin's lower edge."""
        near, far = (self._lower(share, errors, histogram) for errors in MAY_BE)
        return near, far

    def _lower(self, share: float, errors: float, histogram: LogHistogram) -> Limit:
        below = with_errors(share, float(np.add.accumulate(self.weights)[-1]), errors)
        limit = self.limit(below, histogram)._replace(part=((1.0 - share) / (1.0 - below)) ** PART)
        edge = histogram.range.edges_of(percentile_bin(self.weights, below))[0]
        return limit if limit.inside > 0.0 else limit._replace(upper=edge, lower=edge)


class HeldLimit:
    """The highest lower bound of the percentile in the last `HELD_WINDOWS` windows of `size` values each.

    Of bounds, and not of estimates: while latency stays as it is, the highest of several estimates would be
    above the percentile by chance alone, and a proof would take longer. And at most what `LASTING` of the
    last `PIECES` pieces, whole epochs, had as their own bound: a stall is in one of them, or in two.
    """

    __state__ = ("highest_in", "values", "pieces", "in_piece")

    def __init__(self, size: float) -> None:
        self._size = size
        self.highest_in: Floats = np.zeros(HELD_WINDOWS)  # by window, the present one first
        self.values = 0.0  # in the present window
        self.pieces: Floats = np.zeros(PIECES)  # mean bounds of their epochs, the present one first
        self.in_piece = 0.0  # values

    def end_epoch(self, bound: float, own: float, values: float) -> None:
        """Add the bound as it is after so many more values, whose own bound is `own`."""
        self._add_piece(own, values)
        bound = min(bound, float(np.sort(self.pieces)[-LASTING]))
        self.values += values
        if self.values >= self._size:
            self.values = 0.0
            self.highest_in = np.concatenate(([0.0], self.highest_in[:-1]))
        self.highest_in[0] = max(float(self.highest_in[0]), bound)

    def _add_piece(self, own: float, values: float) -> None:
        if self.in_piece >= PIECE * self._size:
            self.pieces = np.concatenate(([0.0], self.pieces[:-1]))
            self.in_piece = 0.0
        self.in_piece += values
        self.pieces[0] += (own - self.pieces[0]) * (values / max(self.in_piece, 1.0))
        whole = min(int(self.in_piece / (PIECE * self._size)), PIECES)
        self.pieces = np.concatenate((np.full(max(whole - 1, 0), self.pieces[0]), self.pieces))[:PIECES]

    @property
    def limit(self) -> float:
        """The highest bound that is held; 0: none yet."""
        return float(self.highest_in.max())


class TailProof(RateProof):
    """Promotion: bets that the canary exceeds `margin` times stable's percentile less often than stable does
    the percentile. Requests without an answer (`UnitBlock.missing`) are slowest, on both arms. It is looked
    at only while the share of stable's answers above the limit, in this stage, fits `1 - percentile`.

    The limit is the percentile of requests, so that share is one of requests. The bet is by unit: where units
    that ask little are slower, more than `1 - percentile` of stable's mean unit is above the limit.
    """

    __state__ = ("mu", "floor_share", "missing", "requests", "events", "stage")

    def __init__(self, *, percentile: float, least_off: float = LEAST_OFF) -> None:
        """least_off: stable's share above the limit is at least this part of the percentile's."""
        self._least_off = least_off
        super().__init__(ratio=1.0, floor=0.0, missing_as=1.0)
        self._share = 1.0 - percentile
        self.requests = 0.0  # answered ones of stable, since the stage or the bets began
        self.events = 0.0
        self.stage = 0

    def bets(self, block: UnitBlock) -> Bets:
        """As of a rate, with looks only where stable fits."""
        if len(block) and block.stage[0] > self.stage:
            self.stage = int(block.stage[0])
            self.restart()
        rows, log_factors, looks = super().bets(block)
        own = ~block.arm & (block.w > 0.0)
        of_stable = np.where(own, block.n, 0.0)
        answered = of_stable if block.missing is None else of_stable * (1.0 - block.missing)
        requests = np.add.accumulate(np.concatenate(([self.requests], answered)))
        events = np.add.accumulate(np.concatenate(([self.events], block.y * of_stable)))
        self.requests, self.events = float(requests[-1]), float(events[-1])
        fits = self._fits(requests[1:], events[1:], NOISE)
        return Bets(rows, log_factors, looks[fits[rows[looks]]])

    def _fits(self, requests: Floats, events: Floats, errors: float) -> Flags:
        expected = self._share * requests
        noise = errors * np.sqrt(expected)
        fits: Flags = (events <= MOST_OFF * expected + noise) & (events >= expected / self._least_off - noise)
        return fits

    @property
    def is_fitting(self) -> bool:
        """Whether stable's share above the threshold is that of the percentile, as far as one can tell."""
        return bool(self._fits(np.array([self.requests]), np.array([self.events]), MUCH_NOISE)[0])

    @property
    def text(self) -> str:
        """Stable's share above the threshold, in words."""
        shown = self.events / max(self.requests, 1.0)
        return f"{shown:.1%} of stable's own are above the limit, not {self._share:.1%}: {UNFIT}"

    def restart(self) -> None:
        """Count anew."""
        self.requests = self.events = 0.0


class TailChannel(Channel):
    """The channel of a `TailProof`. Where stable does not fit, what was won is given up at the end of the
    epoch and the count begins anew: a factor of at most one, so the proof stays valid."""

    def __init__(self, bettor: TailProof, *, limit: float, min_canary: int = 0) -> None:
        super().__init__(bettor, limit=limit, min_canary=min_canary)
        self.tail = bettor

    def end_epoch(self, stable: Stable) -> None:
        """Update what the bettor bets with."""
        if not self.is_idle and not self.tail.is_fitting:
            self.wealth.give_up()
            self.tail.restart()
        super().end_epoch(stable)
