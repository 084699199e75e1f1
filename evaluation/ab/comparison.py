"""Comparison of an A/B test: is B *better* than A? The question, the result, categories. In two modes.

- `sequential.py` (the default): valid at every look, so it can stop at the first verdict. Drift that both
  arms share cancels, and any split and unit is valid, since w belongs to the draw.
- `fixed.py`: one test, at a sample size chosen in advance (`sample_size.required_sample_size`), with the win
  rate, Cohen's d and an interval. Stopping early on an interim result breaks its alpha.

Results by category are corrected for their number (Holm), in both modes.

Invariant: no canary gate tests for better, and an A/B test never moves traffic by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_PER_SIDE = 30
MAX_CATEGORIES = 64


class Scale(StrEnum):
    """Scale of an outcome. RATE: 0 or 1. SCORE: within 0..1. VALUE: at least 0 (latency, tokens)."""

    RATE = "rate"
    SCORE = "score"
    VALUE = "value"


class AbVerdict(StrEnum):
    """Verdict so far. TOO_FEW: a fixed-horizon test has fewer than 30 outcomes on a side. INVALID: the
    experiment itself is broken (`validity.py`), so that no difference means anything."""

    B_BETTER = "b better"
    A_BETTER = "a better"
    NOT_SHOWN = "no difference shown"
    TOO_FEW = "too few"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class AbQuestion:
    """What an A/B test compares. Raises ValueError for an alpha outside (0, 1)."""

    scale: Scale
    higher_is_better: bool
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha {self.alpha} is outside (0, 1); use 0.05")

    def check(self, y: float) -> None:
        """Raise ValueError unless y is an outcome on this scale."""
        if not math.isfinite(y) or y < 0:
            raise ValueError(f"outcome {y} is not a number of at least 0; leave out what is unknown")
        if self.scale is not Scale.VALUE and y > 1:
            raise ValueError(f"outcome {y} exceeds 1 on the scale {self.scale}; rescale it to 0..1")
        if self.scale is Scale.RATE and y not in (0.0, 1.0):
            raise ValueError(f"outcome {y} is neither 0 nor 1; use the scale score")


@dataclass(frozen=True, slots=True)
class AbResult:
    """Result of one comparison.

    `difference`: mean of B - mean of A, in the outcome's unit; `interval`: of the difference, or of the win
    rate for values (and for scores of a fixed test). It excludes "no difference" exactly when there is a
    verdict, except of a rate compared within several splits. `win_rate`: P(an outcome of B is better than one
    of A), ties half.
    `p_value`: of the fixed test, or 1 / (maximum evidence so far), which is valid at any time.
    """

    verdict: AbVerdict
    method: str
    n_a: int
    n_b: int
    mean_a: float | None  # None: no outcome yet
    mean_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_of: str
    win_rate: float | None
    cohens_d: float | None  # None: fewer than two on a side, or no spread
    p_value: float
    alpha: float


class Moments(NamedTuple):
    """Number, mean and spread of one side's outcomes."""

    n: int
    mean: float
    square: float  # sum of squared deviations


def moments_of(y: Floats) -> Moments:
    """The moments of outcomes; zeros for none."""
    return (
        Moments(len(y), float(y.mean()), float(((y - y.mean()) ** 2).sum())) if len(y) else Moments(0, 0, 0)
    )


def cohens_d(a: Moments, b: Moments) -> float | None:
    """Difference in pooled standard deviations; None: fewer than two on a side, or no spread."""
    if min(a.n, b.n) < 2 or a.square + b.square <= 0:
        return None
    return (b.mean - a.mean) / math.sqrt((a.square + b.square) / (a.n + b.n - 2))


@dataclass(frozen=True, slots=True)
class CategoryResult:
    """One category's comparison; `adjusted_p` and `verdict` are corrected for the number of categories."""

    category: str
    result: AbResult
    adjusted_p: float
    verdict: AbVerdict


def correct_categories(results: Mapping[str, AbResult]) -> tuple[CategoryResult, ...]:
    """Holm's correction over categories: the probability of any wrong verdict is at most alpha.

    Valid at any time for sequential results, like their p-values. Raises ValueError beyond 64 categories.
    """
    if len(results) > MAX_CATEGORIES:
        raise ValueError(f"{len(results)} categories exceed {MAX_CATEGORIES}; group the rare ones")
    adjusted = holm([result.p_value for result in results.values()])
    out = []
    for (category, result), p in zip(results.items(), adjusted, strict=True):
        verdict = result.verdict
        if verdict in (AbVerdict.A_BETTER, AbVerdict.B_BETTER) and p > result.alpha:
            verdict = AbVerdict.NOT_SHOWN
        out.append(CategoryResult(category, result, p, verdict))
    return tuple(out)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given. Check: (0.01, 0.04, 0.03) gives (0.03, 0.06, 0.06)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return tuple(adjusted)
