"""Tails: the percentile that stable has now, and the proof that the canary's is below a margin.

A percentile is tested by the rate at which values exceed stable's own (`latency.Exceedance`). Whatever the
threshold, both arms are compared at the same one, so a rollback is valid under any drift. A proof is not: a
threshold that lies at stable's p92 today proves nothing of the p99 (59 to 97 % of canaries at 1.3x were
"proven" where both arms became slower). So the threshold is of recent values, and a proof counts only while
stable's own share above it fits.
"""

from __future__ import annotations

import numpy as np

from evaluation.betting.histogram import BINS, WIDTH, LogHistogram
from evaluation.betting.rates import RateProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import Flags, Floats, UnitBlock
from evaluation.betting.wealth import Bets, Channel

TAIL_VALUES = 20.0  # of recent values, above the percentile: 2000 values of a p99
MOST_OFF = 1.5  # times the percentile's share, or less than a part of it: not this percentile any more
NOISE, MUCH_NOISE = 1.0, 2.0  # standard errors of the count: for a look; before what was won is given up


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
        below = np.add.accumulate(self.weights)
        index = int(np.searchsorted(below, share * below[-1] * (1.0 - 1e-12), side="left"))
        return float(np.exp((min(index, BINS - 1) + histogram.first_bin + 1) * WIDTH))


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
