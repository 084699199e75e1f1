"""Sequential A/B test: one outcome a unit in order of assignment, a valid result at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.ab.comparison import AbQuestion, AbResult, AbVerdict, Floats, Moments, Scale, cohens_d
from evaluation.ab.mixture import MeanMixture
from evaluation.betting.histogram import LogHistogram

_UNIT_BINS = 256


@dataclass(slots=True)
class _Arm:
    """Running moments and a bounded histogram of one side."""

    n: int = 0
    mean: float = 0.0
    square: float = 0.0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_UNIT_BINS, dtype=np.int64))
    values: LogHistogram = field(default_factory=LogHistogram)

    @property
    def moments(self) -> Moments:
        return Moments(self.n, self.mean, self.square)

    def add(self, y: float, scale: Scale) -> None:
        self.n += 1
        deviation = y - self.mean
        self.mean += deviation / self.n
        self.square += deviation * (y - self.mean)
        if scale is Scale.VALUE:
            self.values.add(np.array([y]))
        else:
            self.bins[min(int(y * _UNIT_BINS), _UNIT_BINS - 1)] += 1


class SequentialTest:
    """A running A/B test, whose verdict is wrong with probability at most alpha over all looks.

    A returning unit (a sticky user) counts once: leave its later outcomes out, or give their mean. About
    11 KiB of state, 24 KiB where values span ten decades.
    """

    def __init__(self, question: AbQuestion) -> None:
        self.question = question
        self._a, self._b = _Arm(), _Arm()
        self._mixture = MeanMixture(question.alpha)

    def add(self, y: float, *, is_b: bool, w: float) -> None:
        """Add one unit's outcome; w: P(B) at its draw. Raises ValueError for bad input, changing nothing."""
        self.add_all([y], [is_b], [w])

    def add_all(self, y: Sequence[float] | Floats, is_b: ArrayLike, w: ArrayLike) -> None:
        """Add units in order of assignment; how they are grouped changes nothing. Errors: as `add`."""
        weights = np.asarray(w, dtype=np.float64)
        for value in y:
            self.question.check(float(value))
        if not bool(((weights > 0.0) & (weights < 1.0)).all()):
            bad = weights[~((weights > 0.0) & (weights < 1.0))][0]
            raise ValueError(f"w {bad} is outside (0, 1); rows without a coin are not evidence")
        arms = np.asarray(is_b, dtype=np.bool_)
        good = np.empty(len(y))
        for i, (value, arm) in enumerate(zip(y, arms.tolist(), strict=True)):
            good[i] = self._goodness(float(value))
            (self._b if arm else self._a).add(float(value), self.question.scale)
        self._mixture.add(good, arms.astype(np.float64), weights)

    def _goodness(self, y: float) -> float:
        """The outcome in 0..1, higher is better; of a value its rank among the past values of both arms."""
        if self.question.scale is not Scale.VALUE:
            return y if self.question.higher_is_better else 1 - y
        n = self._a.n + self._b.n
        if n == 0:
            return 0.5
        above = sum(arm.n * arm.values.mid_share_above(y) for arm in (self._a, self._b) if arm.n)
        return 1 - above / n if self.question.higher_is_better else above / n

    @property
    def verdict(self) -> AbVerdict:
        """The first verdict that was reached; it stays."""
        match self._mixture.side:
            case None:
                return AbVerdict.NOT_SHOWN
            case 0:
                return AbVerdict.B_BETTER
            case _:
                return AbVerdict.A_BETTER

    @property
    def ended_at(self) -> int | None:
        """Units when the verdict was reached; None: it has not been."""
        return self._mixture.ended_at

    @property
    def log_e(self) -> dict[AbVerdict, float]:
        """Log evidence now, by the verdict that it speaks for; its limit is log(2 / alpha)."""
        b_better, a_better = self._mixture.log_e.tolist()
        return {AbVerdict.B_BETTER: b_better, AbVerdict.A_BETTER: a_better}

    def result(self) -> AbResult:
        """The current result."""
        a, b = self._a, self._b
        both = a.n > 0 and b.n > 0
        is_value = self.question.scale is Scale.VALUE
        return AbResult(
            self.verdict,
            "sequential",
            a.n,
            b.n,
            a.mean if a.n else None,
            b.mean if b.n else None,
            b.mean - a.mean if both else None,
            self._interval() if both else None,
            "win rate" if is_value else "difference",
            self._win_rate() if both else None,
            cohens_d(a.moments, b.moments),
            min(1.0, 2 * math.exp(-float(self._mixture.peak.max()))),
            self.question.alpha,
        )

    def _interval(self) -> tuple[float, float]:
        """The mixture's interval in the outcome's own direction; of ranks: of the win rate."""
        bounds = self._mixture.bounds()
        low, high = bounds.low, bounds.high
        if low > high:  # a verdict that later units contradict; its side stays excluded
            low, high = (low, low) if self._mixture.side == 0 else (high, high)
        if self.question.scale is Scale.VALUE:
            return (max(0.0, low + 0.5), min(1.0, high + 0.5))
        return (low, high) if self.question.higher_is_better else (-high, -low)

    def _win_rate(self) -> float:
        if self.question.scale is Scale.VALUE:
            middles, share = self._b.values.occupied()
            above = [self._a.values.mid_share_above(middle) for middle in middles.tolist()]
            b_lower = float(sum(s * m for s, m in zip(share, above, strict=True)))
        else:
            share_a, share_b = self._a.bins / self._a.n, self._b.bins / self._b.n
            b_lower = float(share_b @ (1 - np.cumsum(share_a) + share_a / 2))
        return 1 - b_lower if self.question.higher_is_better else b_lower


def sequential(y: ArrayLike, is_b: ArrayLike, w: ArrayLike, question: AbQuestion) -> AbResult:
    """The sequential test over arrays in order of assignment. w: P(B) at the draw, a number or an array."""
    outcomes = np.asarray(y, dtype=np.float64)
    arms = np.asarray(is_b, dtype=np.bool_)
    if arms.shape != outcomes.shape:
        raise ValueError(f"{len(arms)} arms for {len(outcomes)} outcomes; give one arm for each outcome")
    test = SequentialTest(question)
    test.add_all(outcomes, arms, np.broadcast_to(np.asarray(w, dtype=np.float64), outcomes.shape))
    return test.result()
