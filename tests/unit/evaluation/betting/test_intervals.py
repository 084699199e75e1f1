"""Confidence intervals: they invert their tests, cover at every look, and refuse invalid input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.betting.intervals import EventCount, MeanDifference, ratio_interval, ratio_log_e
from evaluation.betting.rates import RATIO_PRIOR, RATIOS

COUNTS = (EventCount(0.05, 12, 60), EventCount(0.2, 30, 40))


def test_the_ratio_evidence_agrees_with_an_explicit_sum() -> None:
    wealth = 0.0
    for rho, prior in zip(RATIOS, RATIO_PRIOR / RATIO_PRIOR.sum(), strict=True):
        product = prior
        for w, canary, stable in COUNTS:
            q0, q1 = w * 1.25 + 1 - w, w * 1.25 * rho + 1 - w
            product *= (rho * q0 / q1) ** canary * (q0 / q1) ** stable
        wealth += product

    assert ratio_log_e(COUNTS, 1.25) == pytest.approx(math.log(wealth))


def test_the_interval_ends_where_the_test_crosses_its_limit() -> None:
    low, high = ratio_interval(COUNTS, alpha=0.05)
    limit = math.log(2 / 0.05)

    assert ratio_log_e(COUNTS, low) == pytest.approx(limit, abs=1e-6)
    assert ratio_log_e(COUNTS, high, worse=False) == pytest.approx(limit, abs=1e-6)


def test_without_events_every_ratio_is_possible() -> None:
    assert ratio_interval([EventCount(0.05, 0, 0)], alpha=0.05) == (0.0, math.inf)


def test_more_events_at_the_same_ratio_narrow_the_interval() -> None:
    few = ratio_interval([EventCount(0.5, 40, 20)], alpha=0.05)
    many = ratio_interval([EventCount(0.5, 400, 200)], alpha=0.05)

    assert few[0] < many[0] < 2.0 < many[1] < few[1]


@pytest.mark.slow
@pytest.mark.parametrize(("w", "truth"), [(0.2, 2.0), (0.05, 1.0), (0.5, 0.7)])
def test_the_ratio_interval_covers_at_every_look(w: float, truth: float) -> None:
    """Exact: over all sequences of 60 events, with a look after each, the truth is rarely ever excluded."""
    p, limit = w * truth / (w * truth + 1 - w), math.log(2 / 0.2)
    covered, missed = {0: 1.0}, 0.0
    for n in range(1, 61):
        after: dict[int, float] = {}
        for k, chance in covered.items():
            for hit, part in ((1, p), (0, 1 - p)):
                counts = [EventCount(w, k + hit, n - k - hit)]
                if max(ratio_log_e(counts, truth), ratio_log_e(counts, truth, worse=False)) >= limit:
                    missed += chance * part
                else:
                    after[k + hit] = after.get(k + hit, 0.0) + chance * part
        covered = after

    assert 0.0 < missed <= 0.2


@pytest.mark.parametrize(("w", "canary", "n"), [(0.05, 12, 72), (0.2, 30, 70), (0.5, 40, 60), (0.5, 5, 60)])
def test_the_anytime_interval_contains_scipys_fixed_interval(w: float, canary: int, n: int) -> None:
    exact = stats.binomtest(canary, n).proportion_ci(0.95, method="exact")
    one_look = [p / (1 - p) * (1 - w) / w for p in (exact.low, exact.high)]
    low, high = ratio_interval([EventCount(w, canary, n - canary)], alpha=0.05)

    assert low < one_look[0] < one_look[1] < high


def difference_paths(seed: int, *, w: float, n: int) -> tuple[bool, tuple[float, float]]:
    """Beta outcomes whose means differ by -0.075, with shared drift: coverage, and the last interval."""
    rng = np.random.default_rng(seed)
    sequence = MeanDifference(alpha=0.1)
    covered = True
    for i in range(n):
        canary = bool(rng.random() < w)
        base = 0.75 + 0.1 * math.sin(i / 100)
        y = (
            rng.beta(4 * base, 4 * (1 - base))
            if not canary
            else rng.beta(4 * (base - 0.075), 4 * (1.075 - base))
        )
        sequence.add(float(y), canary=canary, w=w)
        low, high = sequence.interval()
        covered &= low <= -0.075 <= high
    return covered, sequence.interval()


@pytest.mark.slow
def test_the_mean_difference_covers_under_drift_at_every_look() -> None:
    covered = [difference_paths(seed, w=0.3, n=400)[0] for seed in range(60)]

    assert sum(covered) >= 0.9 * 60


def test_the_mean_difference_eventually_excludes_zero() -> None:
    _, (low, high) = difference_paths(1, w=0.5, n=4000)

    assert -0.15 < low < -0.075 < high < 0.0


@pytest.mark.parametrize(
    ("y", "w", "message"),
    [
        (1.5, 0.5, "outside 0..1"),
        (math.nan, 0.5, "outside 0..1"),
        (0.5, 0.0, "not evidence"),
        (0.5, 1.0, "not evidence"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(y: float, w: float, message: str) -> None:
    sequence = MeanDifference()

    with pytest.raises(ValueError, match=message):
        sequence.add(y, canary=True, w=w)
    assert sequence == MeanDifference()


@pytest.mark.parametrize("bad", [EventCount(0.0, 1, 1), EventCount(0.1, -1, 1)])
def test_invalid_event_counts_are_refused(bad: EventCount) -> None:
    with pytest.raises(ValueError, match=r"not evidence|counter was reset"):
        ratio_log_e([bad], 1.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan])
def test_an_alpha_outside_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        ratio_interval(COUNTS, alpha=alpha)


def test_the_mean_difference_agrees_with_theorem_two() -> None:
    rng = np.random.default_rng(4)
    w, alpha, n = 0.3, 0.1, 300
    sequence, span = MeanDifference(alpha), 2 / 0.3
    scaled: list[float] = []  # z moved into [0, 1], as the theorem has it
    bets: list[float] = []
    total = 0.0
    for i in range(n):
        y, canary = float(rng.uniform()), bool(rng.random() < w)
        mean = (total + 0.5) / (i + 1)
        before = [span * (x - 0.5) for x in scaled]
        centre = float(np.mean(before)) if before else 0.0
        spread = (sum((z - centre) ** 2 for z in before) + (span / 4) ** 2) / (i + 1)
        bets.append(
            min(0.5, span * math.sqrt(2 * math.log(2 / alpha) / (spread * (i + 1) * math.log(i + 2))))
        )
        scaled.append(((y - mean) / w if canary else -(y - mean) / (1 - w)) / span + 0.5)
        total += y
        sequence.add(y, canary=canary, w=w)
    past = [0.5] + [float(np.mean(scaled[:i])) for i in range(1, n)]
    past = [min(max(m, 0.5 - 1 / span), 0.5 + 1 / span) for m in past]
    price = sum((x - m) ** 2 * (-math.log(1 - b) - b) for x, m, b in zip(scaled, past, bets, strict=True))
    centre = sum(b * x for b, x in zip(bets, scaled, strict=True)) / sum(bets)
    radius = (math.log(2 / alpha) + price) / sum(bets)

    low, high = sequence.interval()
    assert high == pytest.approx(min(1.0, span * (centre - 0.5 + radius)), rel=1e-9)
    assert low == pytest.approx(max(-1.0, span * (centre - 0.5 - radius)), rel=1e-9)
