"""Tails: the percentile that stable has now, and the proof that the canary's is below a margin.

A percentile is tested by the rate at which values exceed stable's own (`latency.Exceedance`). Whatever the
threshold, both arms are compared at the same one, so a rollback is valid under any drift. A proof is not: a
threshold that lies at stable's p92 today proves nothing of the p99 (59 to 97 % of canaries at 1.3x were
"proven" where both arms became slower). So the threshold is of recent values, and a proof counts only while
stable's own share above it fits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from evaluation.betting.histogram import BINS, WIDTH, LogHistogram
from evaluation.betting.rates import RateProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Flags, Floats, UnitBlock
from evaluation.betting.wealth import Bets, Channel

TAIL_VALUES = 20.0  # of recent values, above the percentile: 2000 values of a p99
MOST_OFF = 1.5  # times the percentile's share, or less than a part of it: not this percentile any more
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


class RecentValues:
    """Weights of stable's values by bin: the newest epoch's whole, the older ones' scaled down together, so
    that they add up to `size`."""

    __state__ = ("weights", "seen")

    def __init__(self, size: float) -> None:
        self._size = size
        self.weights: Floats = np.zeros(BINS)
        self.seen: Floats = np.zeros(BINS)  # counts at the end of the last epoch

    def end_epoch(self, histogram: LogHistogram) -> None:
        """Add what the histogram has counted since the last epoch."""
        counts = histogram.counts.astype(np.float64)
        fresh = counts - self.seen
        added, older = float(fresh.sum()), float(np.add.accumulate(self.weights)[-1])
        if older > 0.0 and older + added > self._size:
            self.weights = self.weights * (max(self._size - added, 0.0) / older)
        self.weights = self.weights + fresh
        self.seen = counts

    def percentile(self, share: float, histogram: LogHistogram) -> float:
        """The smallest bin edge with at least this share of the weight below it."""
        return self.limit(share, histogram).upper

    def limit(self, share: float, histogram: LogHistogram) -> Limit:
        """The bin of the percentile, and the part of an event that a value of stable in it is."""
        below = np.add.accumulate(self.weights)
        index = int(np.searchsorted(below, share * below[-1] * (1.0 - 1e-12), side="left"))
        index = min(index, BINS - 1)
        upper, lower = (float(np.exp((index + histogram.first_bin + edge) * WIDTH)) for edge in (1, 0))
        total, inside = float(below[-1]), float(self.weights[index])
        above = max(total - float(below[index]), 0.0)
        expected = (1.0 - share) * total
        if inside < ATOM_VALUES or above >= ATOM_BELOW * expected:
            return Limit(upper, upper, 0.0)
        return Limit(upper, lower, min(max(expected - above, 0.0) / inside, 1.0))


class TailProof(RateProof):
    """Promotion: bets that the canary exceeds `margin` times stable's percentile less often than stable does
    the percentile. Requests without an answer (`UnitBlock.missing`) are slowest, on both arms. It is looked
    at only while the share of stable's answers above the limit, in this stage, fits `1 - percentile`."""

    __state__ = ("mu", "floor_share", "missing", "units", "events", "stage")

    def __init__(self, *, percentile: float) -> None:
        super().__init__(ratio=1.0, floor=0.0, missing_as=1.0)
        self._share = 1.0 - percentile
        self.units = 0.0  # answered ones of stable, since the stage or the bets began
        self.events = 0.0
        self.stage = 0

    def bets(self, block: UnitBlock) -> Bets:
        """As of a rate, with looks only where stable fits."""
        if len(block) and block.stage[0] > self.stage:
            self.stage = int(block.stage[0])
            self.restart()
        rows, log_factors, looks = super().bets(block)
        own = ~block.arm & (block.w > 0.0)
        answered = own.astype(np.float64) if block.missing is None else own * (1.0 - block.missing)
        units = np.add.accumulate(np.concatenate(([self.units], answered)))
        events = np.add.accumulate(np.concatenate(([self.events], np.where(own, block.y, 0.0))))
        self.units, self.events = float(units[-1]), float(events[-1])
        fits = self._fits(units[1:], events[1:], NOISE)
        return Bets(rows, log_factors, looks[fits[rows[looks]]])

    def _fits(self, units: Floats, events: Floats, errors: float) -> Flags:
        expected = self._share * units
        noise = errors * np.sqrt(expected)
        fits: Flags = (events <= MOST_OFF * expected + noise) & (events >= expected / MOST_OFF - noise)
        return fits

    @property
    def is_fitting(self) -> bool:
        """Whether stable's share above the threshold is that of the percentile, as far as one can tell."""
        return bool(self._fits(np.array([self.units]), np.array([self.events]), MUCH_NOISE)[0])

    @property
    def text(self) -> str:
        """Stable's share above the threshold, in words."""
        shown = self.events / max(self.units, 1.0)
        return f"{shown:.1%} of stable's own are above the limit, not {self._share:.1%}: latency drifts"

    def restart(self) -> None:
        """Count anew."""
        self.units = self.events = 0.0


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
