"""Running estimates: they contain the truth, agree with `intervals.py`, and do not depend on blocks."""

import numpy as np
import pytest

from evaluation.betting.estimates import Estimate, EventCounts, MeanGap, MedianRatio
from evaluation.betting.intervals import EventCount, ratio_interval
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.unit_block import UnitBlock
from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import requests, unit_block


def scores(rows: int, difference: float, seed: int = 0) -> UnitBlock:
    rng = np.random.default_rng(seed)
    arm = rng.random(rows) < 0.2
    y = np.clip(rng.normal(0.7, 0.15, rows) + np.where(arm, difference, 0.0), 0.0, 1.0)
    return unit_block(arm, 0.2, y)


def shown(estimate: Estimate) -> tuple[float, float]:
    interval = estimate.interval()
    assert interval is not None
    return interval


def after(block: UnitBlock, epoch: int = 500) -> MeanGap:
    gap = MeanGap()
    for start in range(0, len(block), epoch):
        gap.learn(block.pick(slice(start, start + epoch)))
        gap.end_epoch(Stable(with_histogram=False))
    return gap


def test_a_difference_lies_in_its_interval_and_the_interval_narrows() -> None:
    short, long = (shown(after(scores(rows, -0.1))) for rows in (3000, 30_000))

    assert short[0] < long[0] < -0.1 < long[1] < short[1]
    assert long[1] < 0.0


def test_the_interval_contains_the_truth_in_most_runs() -> None:
    missed = sum(
        not low < 0.0 < high for low, high in (shown(after(scores(4000, 0.0, s))) for s in range(60))
    )

    assert missed <= 3


def test_blocks_do_not_change_a_bit() -> None:
    block = scores(500, 0.05)
    whole, parts = MeanGap(), MeanGap()
    for gap in (whole, parts):
        gap.learn(block)
        gap.end_epoch(Stable(with_histogram=False))
    whole.learn(block)
    for row in range(500):
        parts.learn(block.pick(slice(row, row + 1)))

    assert parts.interval() == whole.interval()


def test_there_is_no_interval_without_evidence() -> None:
    assert (MeanGap().interval(), EventCounts().interval()) == (None, None)


def test_events_are_counted_by_the_weight_of_their_draws() -> None:
    counts = EventCounts()
    arm, w = np.array([True, False, True, False]), np.array([0.1, 0.1, 0.5, 0.5])
    counts.learn(unit_block(arm, w, np.array([1.0, 1.0, 1.0, 0.0])))

    assert counts.interval() == ratio_interval([EventCount(0.1, 1, 1), EventCount(0.5, 1, 0)], alpha=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "low", "high"), [("error", 1.0, 4.0), ("quality", -0.2, 0.0)])
def test_a_backtest_shows_ratios_of_rates_and_differences_of_scores(
    metric: str, low: float, high: float
) -> None:
    columns = requests(9000, w=0.3, error=(0.05, 0.1), worse=0.1)
    interval = run(columns, GatePolicy.default()).intervals[metric]

    assert low < interval[0] < (2.0 if metric == "error" else -0.1) < interval[1] < high


def latencies(rows: int, ratio: float, seed: int = 0, *, drift: bool = False) -> UnitBlock:
    """A ramp from 5 to 50 %; with `drift` both arms become three times slower meanwhile."""
    rng = np.random.default_rng(seed)
    w = np.where(np.arange(rows) < rows // 2, 0.05, 0.5)
    arm = rng.random(rows) < w
    wave = np.linspace(0.0, np.log(3.0), rows) if drift else np.zeros(rows)
    y = np.exp(rng.normal(6.0, 0.5, rows) + wave) * np.where(arm, ratio, 1.0)
    return unit_block(arm, w, y)


def fed(block: UnitBlock, pieces: int = 1) -> MedianRatio:
    """The estimate after epochs of 500 units, each added in pieces."""
    past, ratio = Stable(with_histogram=True), MedianRatio()
    for start in range(0, len(block), 500):
        epoch = block.pick(slice(start, start + 500))
        for part in np.array_split(np.arange(len(epoch)), pieces):
            ratio.learn(epoch.pick(slice(part[0], part[-1] + 1)))
        past.learn(epoch.y[~epoch.arm])
        ratio.end_epoch(past)
    return ratio


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("true", [0.8, 1.0, 1.3])
def test_the_ratio_of_medians_lies_in_its_interval(true: float, drift: bool) -> None:
    intervals = [shown(fed(latencies(6000, true, seed, drift=drift))) for seed in range(40)]

    covered = [low <= true <= high for low, high in intervals]
    assert np.mean(covered) >= 0.95
    assert np.median([high / low for low, high in intervals]) < (1.7 if drift else 1.35)


def test_a_ramp_during_drift_is_not_a_difference() -> None:
    """Pooled over the weights the canary looks slower, because most of its requests are late."""
    block = latencies(6000, 1.0, 1, drift=True)
    pooled = np.median(block.y[block.arm]) / np.median(block.y[~block.arm])
    low, high = shown(fed(block))

    assert pooled > 1.2
    assert low <= 1.0 <= high


def test_blocks_do_not_change_the_ratio_of_medians() -> None:
    block = latencies(2000, 1.2)

    assert fed(block, 7).interval() == fed(block).interval()


def test_infinite_values_are_above_every_median() -> None:
    block = latencies(4000, 1.0)
    block.y[block.arm] = np.inf

    low, high = shown(fed(block))
    assert (low, high) == (5.0, np.inf)


def test_there_is_no_ratio_of_medians_before_the_canary() -> None:
    assert fed(latencies(500, 1.0)).interval() is None


def test_an_interval_is_of_all_values_however_often_it_was_read() -> None:
    """Values of stable alone narrow it, too: one that is read after a restart only must be the same."""
    block = latencies(4000, 1.0)
    past, read, unread = Stable(with_histogram=True), MedianRatio(), MedianRatio()
    past.learn(block.y[:500])
    for ratio in (read, unread):
        ratio.end_epoch(past)
        ratio.learn(block.pick(slice(500, 3000)))
    read.interval()
    stable = block.pick(slice(3000, 4000))
    stable = unit_block(np.zeros(1000, dtype=bool), 0.5, stable.y * 3.0)

    for ratio in (read, unread):
        ratio.learn(stable)

    assert read.interval() == unread.interval()
