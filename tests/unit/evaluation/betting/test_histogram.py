"""The histogram of values: a range that fits what comes, zeros, and edges that never move."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation import snapshot as snapshots
from evaluation.betting.exceedance import Exceedance
from evaluation.betting.histogram import BINS, FIRST, MORE_ABOVE, MORE_BELOW, LogHistogram
from evaluation.betting.latency import ShapeProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.tails import RecentValues
from evaluation.units.points import Points

Floats = np.ndarray


def histogram_of(*parts: Floats, with_steps: bool = False) -> LogHistogram:
    histogram = LogHistogram(with_steps=with_steps)
    for part in parts:
        histogram.add(part)
    return histogram


def mixed(seed: int, count: int) -> Floats:
    """93 % of requests take about 200 ms, 7 % about 25 s; a tenth of all are answered in 0.5 ms."""
    rng = np.random.default_rng(seed)
    ms = 200.0 * np.exp(0.5 * rng.standard_normal(count))
    ms = np.where(rng.random(count) < 0.07, 25_000.0 * np.exp(0.25 * rng.standard_normal(count)), ms)
    return np.where(rng.random(count) < 0.1, 0.5 * np.exp(0.3 * rng.standard_normal(count)), ms)


def test_percentiles_hold_far_from_the_median() -> None:
    ms = mixed(1, 20_000)
    shares = np.array([0.01, 0.05, 0.5, 0.95, 0.99, 0.999])
    exact = np.sort(ms)[np.ceil(shares * len(ms)).astype(int) - 1]

    edges = histogram_of(ms).upper_edges(shares)

    assert (exact <= edges).all()
    assert (edges <= exact * 1.0101).all()


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 31, 32, 33, 500])
def test_the_range_does_not_depend_on_the_blocks(cut: int) -> None:
    rng = np.random.default_rng(2)
    ms = np.where(rng.random(900) < 0.3, 0.0, mixed(3, 900))
    whole = histogram_of(ms, with_steps=True)
    parts = histogram_of(ms[:cut], ms[cut:], with_steps=True)
    one_by_one = histogram_of(*ms[:, None], with_steps=True)

    bits = snapshots.write(whole, digest="")
    assert snapshots.write(parts, digest="") == bits
    assert snapshots.write(one_by_one, digest="") == bits


def test_the_range_grows_by_pieces_up_to_a_limit() -> None:
    """An outlier of any size costs 2368 bins at most, and takes no range from the other side."""
    histogram = histogram_of(np.full(FIRST, 400.0))
    assert len(histogram.counts) == 1 + BINS

    histogram.add(np.array([1e300, 2e300, 400.0 * 2e4]))
    assert len(histogram.counts) == 1 + BINS + MORE_ABOVE
    histogram.add(np.array([1e-8, 2e-8, 400.0 / 2e4]))

    middles, shares = histogram.occupied()
    assert len(histogram.counts) == 1 + BINS + MORE_ABOVE + MORE_BELOW
    assert (shares * 38).tolist() == pytest.approx([2, 1, 32, 1, 2])
    assert middles[1:4] == pytest.approx([400.0 / 2e4, 400.0, 400.0 * 2e4], rel=0.01)


@pytest.mark.parametrize("first", [0, 20, 40])
def test_zeros_have_a_bin_of_their_own(first: int) -> None:
    """Also where all of the first values are 0, which say nothing of the range."""
    values = np.append(np.zeros(first), np.tile([0.0, 0.0, 0.02, 0.03], 25))
    histogram = histogram_of(values)
    zeros = (first + 50) / len(values)

    middles, shares = histogram.occupied()

    assert middles.tolist() == pytest.approx([0.0, 0.02, 0.03], rel=0.01)
    assert shares[0] == pytest.approx(zeros)
    assert histogram.share_above(0.0) == pytest.approx(1.0 - zeros)
    assert histogram.mid_share_above(0.0) == pytest.approx(1.0 - zeros / 2.0)
    assert histogram.mid_share_above(0.02) == pytest.approx((1.0 - zeros) * 0.75)
    assert histogram.upper_edges(np.array([zeros, zeros + 0.01])).tolist() == pytest.approx(
        [0.0, 0.0202], rel=0.01
    )


def test_a_few_first_zeros_are_ranked_as_ties() -> None:
    assert histogram_of(np.array([0.0, 0.0, 1.0, 2.0])).mid_share_above(0.0) == 0.75


def test_values_beyond_the_range_are_ranked_as_they_are_counted() -> None:
    histogram = histogram_of(np.append(np.full(36, 400.0), [1e300, 1e300]))

    assert histogram.mid_share_above(1e250) == pytest.approx(1 / 38)
    assert histogram.share_above(500.0) == histogram.mid_share_above(1e4) == pytest.approx(2 / 38)
    assert histogram.mid_share_above(1.0) == 1.0


def test_recent_values_follow_a_range_that_grows() -> None:
    histogram, recent = histogram_of(np.full(500, 400.0)), RecentValues(2000.0)
    recent.end_epoch(histogram)
    histogram.add(np.append(np.full(480, 60_000.0), np.full(20, 0.1)))
    recent.end_epoch(histogram)

    assert recent.percentile(0.52, histogram) == pytest.approx(400.0, rel=0.011)
    assert recent.percentile(0.53, histogram) == pytest.approx(60_000.0, rel=0.011)
    assert recent.percentile(0.02, histogram) == pytest.approx(0.1, rel=0.011)


def test_a_limit_lies_at_the_percentile_wherever_that_is() -> None:
    """It lay at 79 times the median of the first 32 values, where 7 % were above."""
    ms, gate = mixed(4, 8000), Exceedance(percentile=0.99)
    gate.seed(ms)

    assert 0.007 < np.mean(ms > gate.threshold) < 0.01


def test_estimates_show_percentiles_far_from_the_median_and_zeros() -> None:
    points, arm = Points(with_histogram=True), np.arange(4000) % 2 == 1
    points.add(arm, np.full(4000, 0.5), np.where(arm, 0.0, mixed(5, 4000)))

    stable, canary = points.percentiles(0.99)

    assert stable == pytest.approx(np.quantile(mixed(5, 4000)[~arm], 0.99), rel=0.03)
    assert canary == 0.0


def test_zeros_are_no_steps_unless_others_are_in_steps() -> None:
    rng = np.random.default_rng(6)
    cost = np.where(rng.random(2000) < 0.6, 0.0, 0.01 * np.exp(0.5 * rng.standard_normal(2000)))
    floors = np.floor(rng.exponential(500.0, 2000) / 300.0) * 300.0

    assert len(histogram_of(cost, with_steps=True).steps().points) == 0
    steps = histogram_of(floors, with_steps=True).steps()
    assert steps.points[:3].tolist() == [0.0, 300.0, 600.0]
    assert steps.divided(np.array([0.0, 300.0]), 1.2).tolist() == [0.0, 300.0]
    assert histogram_of(np.zeros(100), with_steps=True).steps().points.tolist() == [0.0]


def test_a_proof_of_values_that_are_mostly_zero_sees_the_others() -> None:
    rng, past = np.random.default_rng(7), Stable(with_histogram=True, with_steps=True)
    past.learn(np.where(rng.random(4000) < 0.6, 0.0, 0.01 * np.exp(0.5 * rng.standard_normal(4000))))
    proof = ShapeProof(margin=1.2)

    proof.end_epoch(past)

    assert proof.edges[0] == 0.0
    assert 0.005 < proof.edges[1] < proof.edges[-1] < 0.1
    assert np.exp(proof.log_ratios).max() > 1.1


@pytest.mark.parametrize("share", [0.011, 0.05, 0.09])
def test_slow_answers_alone_may_be_in_steps(share: float) -> None:
    """Answers above 1 s are polled each 2 s: few of all values, and nearly all of those that are slow."""
    rng = np.random.default_rng(11)
    ms = 400.0 * np.exp(0.4 * rng.standard_normal(4000))
    ms = np.where(ms > 1000.0, rng.uniform(300.0, 900.0, 4000), ms)
    slow = rng.random(4000) < share
    ms[slow] = np.where(rng.random(int(slow.sum())) < 0.9, 3000.0, 5000.0)
    histogram = histogram_of(ms, with_steps=True)

    steps = histogram.steps(800.0)
    assert (steps.points[0], steps.is_mixed) == (3000.0, True)
    assert steps.divided(np.array([3000.0, 900.0]), 1.2).tolist() == [3000.0, 750.0]
    assert len(histogram.steps().points) == 0
    assert len(histogram.steps(6000.0).points) == 0


@pytest.mark.parametrize("median", [400.0, 3000.0])
@pytest.mark.parametrize("count", [500, 4000, 60_000])
def test_slow_answers_in_whole_milliseconds_are_in_no_steps(median: float, count: int) -> None:
    rng = np.random.default_rng(12)
    ms = np.round(median * np.exp(0.7 * rng.standard_normal(count)))
    slow = np.round(median * (1.0 + rng.pareto(2.0, count)))

    for values in (ms, slow):
        histogram = histogram_of(values, with_steps=True)
        for quantile in (0.5, 0.9, 0.97, 0.99):
            above = float(np.quantile(values, quantile))
            assert len(histogram.steps(above).points) == 0, (quantile, histogram.steps(above).points[:5])
