"""Anchors: answers with known labels that a judge judges for ever, and the test that it still does so alike.

Anchors are drawn at random, with replacement, from one pool of bad and good answers, and judged beside live
ones. While the judge does not change, each verdict on a bad anchor is wrong with one probability, and each on
a good one with another. Against that stands a change at an unknown moment, in either direction: a judge that
has become better is another judge too, and its verdicts of before and after cannot be compared.

For a change after s of t verdicts, k of them wrong, the evidence is the ratio

    KT(first s) KT(the rest) / max_p p**k (1 - p)**(t - k),    KT: the mixture over a Beta(1/2, 1/2)

which is at most one in the mean under every constant p, at whatever moment one looks (universal inference).
The evidence is the sum over the moments s, with weights that sum to one: 1 / (i (i + 1)) for the i-th, fixed
when it is born. Of too many moments every second one is dropped with its weight, and no other gets it: a bet
that was made is not raised by what has been seen since.

A judge that was admitted by luck, or that has changed before the first anchor, shows no change: against it
stands what admission allows (`admission.py`), of which more than that share is evidence as well
(`units/missingness.py`). A quarter of alpha is each label's, for either test.

Source: Wasserman, Ramdas and Balakrishnan 2020 (universal inference), section 7; anchors: arXiv 2606.15474.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from evaluation.judging.admission import MAX_FALSE, MIN_FOUND
from evaluation.units.missingness import excess_log_e

EVERY = 8  # verdicts of one label between two moments at which a change may have begun
MAX_MOMENTS = 512  # beyond which every second one is kept
_WHAT = {True: "bad answers that it passes", False: "good answers that it calls bad"}  # by the label


@dataclass(slots=True)
class RateChange:
    """Whether the probability of an event changed. `log_e`: the evidence that it did, over all moments."""

    n: int = 0
    events: int = 0
    every: int = EVERY
    moments: list[tuple[int, int, int]] = field(default_factory=list)  # verdicts, events before; its number
    born: int = 0  # moments so far, dropped ones included

    def add(self, is_event: bool) -> None:
        """One more trial."""
        if self.n and self.n % self.every == 0:
            self.born += 1
            self.moments.append((self.n, self.events, self.born))
            if len(self.moments) >= MAX_MOMENTS:
                self.moments, self.every = self.moments[1::2], self.every * 2
        self.n += 1
        self.events += is_event

    @property
    def log_e(self) -> float:
        """Log evidence of a change; 0 or less: none."""
        if not self.moments:
            return 0.0
        whole = _log_max(self.events, self.n)
        logs = [
            self._log_parted(moment) - whole - math.log(moment[2] * (moment[2] + 1))
            for moment in self.moments
        ]
        top = max(logs)
        return top + math.log(sum(math.exp(one - top) for one in logs))

    @property
    def change_at(self) -> int | None:
        """After how many trials the change most likely began; None: no moment is known."""
        return max(self.moments, key=self._log_parted)[0] if self.moments else None

    def _log_parted(self, moment: tuple[int, int, int]) -> float:
        """Log probability of what was seen, with another rate from this moment on."""
        s, k, _ = moment
        return _log_kt(k, s) + _log_kt(self.events - k, self.n - s)


@dataclass(slots=True)
class AnchorWatch:
    """The verdicts of one judge on anchors since its admission. `drift`: what changed, or which of its rates
    is beyond what admission allows; None: nothing."""

    alpha: float = 0.01  # probability of naming a judge that has not changed and may vote, ever
    misses: RateChange = field(default_factory=RateChange)  # bad anchors that it passed
    alarms: RateChange = field(default_factory=RateChange)  # good anchors that it called bad
    drift: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha {self.alpha} is outside (0, 1); use 0.01")

    def add(self, *, is_bad: bool, called_bad: bool) -> str | None:
        """One more verdict; what changed, once it is shown. It stays: each judge has a watch of its own."""
        rate = self.misses if is_bad else self.alarms
        rate.add(called_bad is not is_bad)
        if self.drift is None:
            enough, most = math.log(4.0 / self.alpha), 1.0 - MIN_FOUND if is_bad else MAX_FALSE
            share = rate.events / rate.n
            if rate.log_e >= enough:
                self.drift = self._described(rate, is_bad=is_bad)
            elif share > most and excess_log_e(share, rate.n, most) >= enough:
                of = f"{share:.0%} of {rate.n} anchors"
                self.drift = f"the judge drifted: {_WHAT[is_bad]} are {of}, at most {most:.0%} may be"
        return self.drift

    def _described(self, rate: RateChange, *, is_bad: bool) -> str:
        began = rate.change_at or 0
        before = next(k for s, k, _ in rate.moments if s == began)
        old, new = before / began, (rate.events - before) / (rate.n - began)
        change = f"went from {old:.0%} to {new:.0%} after {began} of {rate.n} anchors"
        return f"the judge drifted: {_WHAT[is_bad]} {change}"


def _log_kt(events: int, n: int) -> float:
    """Log of the Krichevsky-Trofimov probability of one sequence. Check: `_log_kt(0, 1)` is log(1/2)."""
    return (
        math.lgamma(events + 0.5) + math.lgamma(n - events + 0.5) - math.lgamma(n + 1.0) - math.log(math.pi)
    )


def _log_max(events: int, n: int) -> float:
    """Log of the largest probability of one sequence under a constant rate."""
    if events in (0, n):
        return 0.0
    p = events / n
    return events * math.log(p) + (n - events) * math.log(1.0 - p)
