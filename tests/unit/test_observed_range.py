"""The canary's percentiles against what stable showed between two dates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.gate import Verdict
from evaluation.observed_range import ObservedRange, ObservedRangeGate, _Exceedance, observe_range

HOUR_S = 3600.0


def stable_day(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t_s = np.sort(rng.uniform(0, 24 * HOUR_S, 12_000))
    wave = 0.2 * np.sin(2 * np.pi * t_s / (24 * HOUR_S))
    return t_s, np.exp(np.log(800) + wave + 0.5 * rng.standard_normal(len(t_s)))


def observed() -> ObservedRange:
    t_s, y = stable_day()
    return observe_range(t_s, y, since_s=0.0, until_s=24 * HOUR_S)


def verdicts(gate: ObservedRangeGate, values: np.ndarray) -> list[Verdict]:
    for value in values:
        gate.add(float(value))
    return [report.verdict for report in gate.report()]


def canary(scale: float, n: int, seed: int = 1) -> np.ndarray:
    return np.asarray(scale * np.exp(np.log(800) + 0.5 * np.random.default_rng(seed).standard_normal(n)))


def test_the_range_spans_each_windows_percentile() -> None:
    t_s, y = stable_day()
    by_hour = [np.quantile(y[(t_s >= h * HOUR_S) & (t_s < (h + 1) * HOUR_S)], 0.9) for h in range(24)]

    p90 = observed().ranges[1]
    assert (p90.low, p90.high) == (min(by_hour), max(by_hour))


def test_a_canary_like_stable_passes_every_percentile() -> None:
    assert verdicts(ObservedRangeGate(observed()), canary(1.0, 3000)) == [Verdict.PASS] * 3


def test_a_canary_twice_as_slow_fails_every_percentile() -> None:
    assert verdicts(ObservedRangeGate(observed()), canary(2.0, 400)) == [Verdict.FAIL] * 3


def test_no_answers_decide_nothing() -> None:
    assert verdicts(ObservedRangeGate(observed()), canary(1.0, 0)) == [Verdict.UNDECIDED] * 3


def test_a_faster_canary_fails_only_where_both_sides_are_asked() -> None:
    fast = canary(0.4, 800)

    assert verdicts(ObservedRangeGate(observed()), fast) == [Verdict.PASS] * 3
    assert verdicts(ObservedRangeGate(observed(), both_sides=True), fast) == [Verdict.FAIL] * 3


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_a_canary_at_the_very_end_of_the_range_is_rarely_failed(rate: float) -> None:
    """Exact: over scipy's binomial of how many of 80 answers exceed the end, both bets are worth one."""
    worth_above, worth_below = [], []
    for exceed in range(81):
        one = _Exceedance(rate)
        for answer in range(80):
            one.add(answer < exceed)
        worth_above.append(np.exp(np.logaddexp.reduce(one.above)))
        worth_below.append(np.exp(np.logaddexp.reduce(one.below)))
    chances = stats.binom.pmf(np.arange(81), 80, rate)

    assert float(chances @ worth_above) == pytest.approx(1.0, rel=1e-9)
    assert float(chances @ worth_below) == pytest.approx(1.0, rel=1e-9)


def test_what_a_range_gate_spends_is_shared_by_its_percentiles_and_sides() -> None:
    medians = (observed().ranges[0],) * 3  # the median's evidence grows in the smallest steps
    gate = ObservedRangeGate(ObservedRange(0.0, 1.0, 3, medians), alpha=0.01, both_sides=True)
    while all(report.verdict is Verdict.UNDECIDED for report in gate.report()):
        before = max(report.log_e for report in gate.report())
        gate.add(1e6)

    assert before < math.log(6 / 0.01) <= max(report.log_e for report in gate.report())


def test_one_hour_is_no_range() -> None:
    t_s, y = stable_day()

    with pytest.raises(
        ValueError, match="1 windows of 3600 s hold 50 answers, needed 3; choose dates further"
    ):
        observe_range(t_s, y, since_s=0.0, until_s=HOUR_S)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_values_are_refused_and_change_nothing(bad: float) -> None:
    gate = ObservedRangeGate(observed())

    with pytest.raises(ValueError, match="not a number of at least 0"):
        gate.add(bad)
    assert gate.n_canary == 0
