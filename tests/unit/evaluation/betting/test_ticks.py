"""Values that come at ticks and a little later: found by the gaps between them, and rounded up for proofs."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.histogram import NO_STEPS, LogHistogram, Steps
from evaluation.betting.ticks import next_tick_up

Floats = np.ndarray


def at_ticks(rng: np.random.Generator, ms: Floats, every_ms: float, late: float) -> Floats:
    """Answers end at the next tick, and up to `late` of the time between two later."""
    out: Floats = np.ceil(ms / every_ms) * every_ms + rng.random(len(ms)) * every_ms * late
    return out


def steps_of(values: Floats) -> Steps:
    histogram = LogHistogram(with_steps=True)
    histogram.add(values)
    return histogram.steps()


@pytest.mark.parametrize("count", [1000, 12_000])
@pytest.mark.parametrize(
    ("every_ms", "late"),
    [(50.0, 0.1), (100.0, 0.05), (300.0, 0.02), (300.0, 0.3), (1000.0, 0.01), (1000.0, 0.05)],
)
def test_ticks_are_found_whatever_their_distance(every_ms: float, late: float, count: int) -> None:
    rng = np.random.default_rng(count)
    steps = steps_of(at_ticks(rng, 600.0 * np.exp(0.5 * rng.standard_normal(count)), every_ms, late))
    ticks = np.round(steps.lows / every_ms) * every_ms

    assert len(steps.lows) >= 2
    assert len(np.unique(ticks)) == len(ticks)
    assert (steps.lows <= ticks * 1.02).all()
    assert (steps.points[:-1] >= ticks[:-1]).all()
    assert not steps.is_mixed


@pytest.mark.parametrize("seed", range(20))
def test_exact_values_of_any_shape_have_no_ticks(seed: int) -> None:
    """Also two kinds of requests, each of nearly one length, and a few values."""
    rng = np.random.default_rng(seed)
    ms = 600.0 * np.exp(rng.choice([0.05, 0.1, 0.5, 1.5]) * rng.standard_normal(int(rng.integers(60, 9000))))
    if seed % 2:
        ms = np.where(rng.random(len(ms)) < 0.3, ms * (2.6, 1.5, 12.0, 4.0)[seed % 4], ms)

    assert steps_of(ms) is NO_STEPS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("other", [0.03, 0.07])
def test_polls_at_an_interval_of_each_client_are_ticks(other: float, seed: int) -> None:
    """They are late in proportion to time, as answers of a few lengths are, which are taken for ticks too."""
    rng = np.random.default_rng(seed)
    interval = 1000.0 * (1.0 + other * rng.random(6000))
    waited = 1000.0 * rng.choice([0.6, 1.3, 2.1], size=6000, p=[0.7, 0.25, 0.05])
    waited *= 1.0 + 0.2 * rng.random(6000)

    assert len(steps_of(np.ceil(waited / interval) * interval).lows) >= 2


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [
        (610.0, 1.2, 610.0),  # waited 600 at most: 500, recorded at 600
        (625.0, 1.2, 625.0),
        (610.0, 2.1, 330.0),
        (915.0, 1.2, 915.0),  # 750 would be recorded at 900
        (915.0, 1.7, 630.0),
        (450.0, 1.2, 450.0),  # at no tick
        (450.0, 1.6, 330.0),
        (2000.0, 1.2, 2000.0),  # beyond the ticks
        (np.inf, 1.2, np.inf),
    ],
)
def test_a_quotient_is_recorded_at_the_next_tick_and_never_later_than_the_value(
    value: float, divisor: float, expected: float
) -> None:
    lows, highs = np.array([300.0, 600.0, 900.0]), np.array([330.0, 630.0, 930.0])

    assert next_tick_up(np.array([value]), divisor, lows, highs, 0.01).tolist() == [expected]


def test_an_exceedance_at_ticks_needs_a_whole_tick() -> None:
    """Stable's p99 lies at 1200 ms; the next tick may have been 1200 ms as well."""
    rng = np.random.default_rng(8)
    past = rng.choice([600.0, 900.0, 1200.0, 1500.0], size=6000, p=[0.5, 0.4, 0.095, 0.005])
    gate = Exceedance(percentile=0.99, with_steps=True)
    gate.seed(past + 20.0 * rng.random(6000))
    canary = np.array([1210.0, 1510.0, 1900.0, 910.0])

    events = gate.of(canary, canary, np.ones(4, dtype=np.bool_), (1.0, 1.2))

    assert events[1].tolist() == [0.0, 1.0, 1.0, 0.0]


def polled_late(
    rng: np.random.Generator, count: int, start: float, every_ms: float, late_ms: float
) -> Floats:
    """Exact up to `start`; slower answers end at the next poll and a little later."""
    ms: Floats = 800.0 * np.exp(0.5 * rng.standard_normal(count))
    return np.where(ms > start, np.ceil(ms / every_ms) * every_ms + late_ms * rng.random(count), ms)


@pytest.mark.parametrize("count", [4000, 20_000])
@pytest.mark.parametrize(
    ("start", "every_ms", "late_ms"),
    [(1000.0, 2000.0, 1.0), (1000.0, 2000.0, 10.0), (1800.0, 1700.0, 15.0), (1800.0, 1700.0, 60.0)],
)
def test_slow_answers_alone_may_be_polled_a_little_late(
    start: float, every_ms: float, late_ms: float, count: int
) -> None:
    histogram = LogHistogram(with_steps=True)
    values = polled_late(np.random.default_rng(4), count, start, every_ms, late_ms)
    histogram.add(values)
    p99 = float(np.quantile(values, 0.99))
    steps = histogram.steps(p99 / 1.2)

    assert histogram.steps() is NO_STEPS
    assert steps.is_mixed
    assert steps.divided(np.array([p99, 900.0]), 1.2)[0] == pytest.approx(p99, rel=0.02)
    assert steps.divided(np.array([p99, 900.0]), 1.2)[1] == 750.0
    assert "partly recorded at ticks" in steps.text(1.2)


@pytest.mark.parametrize("seed", range(20))
def test_slow_exact_answers_have_no_ticks(seed: int) -> None:
    """Also a second kind of requests, of nearly one length, and the thin end of a tail."""
    rng = np.random.default_rng(seed)
    ms = 600.0 * np.exp(rng.choice([0.05, 0.1, 0.5, 1.5]) * rng.standard_normal(int(rng.integers(60, 9000))))
    if seed % 2:
        ms = np.where(
            rng.random(len(ms)) < 0.03, 12.0 * 600.0 * np.exp(0.05 * rng.standard_normal(len(ms))), ms
        )
    histogram = LogHistogram(with_steps=True)
    histogram.add(ms)

    for share in (0.5, 0.9, 0.95, 0.99):
        assert histogram.steps(float(np.quantile(ms, share)) / 1.2) is NO_STEPS
