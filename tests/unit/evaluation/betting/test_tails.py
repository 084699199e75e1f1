"""The percentile of recent values, and the proof that counts only while stable's own share above it fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.betting.histogram import LogHistogram
from evaluation.betting.latency import Exceedance
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.tails import RecentValues, TailChannel, TailProof
from evaluation.betting.unit_block import UnitBlock
from evaluation.betting.wealth import Wealth
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, unit_block

W = 0.25


def block(above: float, rows: int, seed: int, *, canary: float = 0.0, first: int = 0) -> UnitBlock:
    """Units at W: `above` of stable's and `canary` of the canary's are above the threshold."""
    rng = np.random.default_rng(seed)
    arm = rng.random(rows) < W
    y = (rng.random(rows) < np.where(arm, canary, above)).astype(float)
    return unit_block(arm, np.full(rows, W), y, first=first)


def fed(parts: list[UnitBlock]) -> TailChannel:
    """A channel of a p99 fed with these epochs."""
    channel = TailChannel(TailProof(percentile=0.99), limit=3.0)
    for part in parts:
        channel.bet(part)
        channel.end_epoch(Stable(with_histogram=False))
    return channel


def test_old_values_are_forgotten() -> None:
    histogram, recent = LogHistogram(), RecentValues(1000.0)
    for level in (100.0, 200.0, 400.0):
        histogram.add(np.full(800, level))
        recent.end_epoch(histogram)

    assert recent.weights.sum() == pytest.approx(1000.0)
    assert recent.percentile(0.15, histogram) == pytest.approx(200.0, rel=0.02)  # 100 is a twentieth now
    assert recent.percentile(0.5, histogram) == pytest.approx(400.0, rel=0.02)
    assert histogram.upper_edges(np.array([0.5]))[0] == pytest.approx(200.0, rel=0.02)


def test_few_values_are_all_kept() -> None:
    values = np.random.default_rng(3).lognormal(6.0, 0.5, 900)
    histogram, recent = LogHistogram(), RecentValues(2000.0)
    for part in np.array_split(values, 5):
        histogram.add(part)
        recent.end_epoch(histogram)

    for share in (0.5, 0.9, 0.99):
        assert recent.percentile(share, histogram) == histogram.upper_edges(np.array([share]))[0]


def test_the_threshold_follows_stable() -> None:
    """Stable becomes twice as slow: its p99 is found again after some thousand values."""
    rng = np.random.default_rng(4)
    gate = Exceedance(percentile=0.99)
    gate.seed(rng.lognormal(6.0, 0.5, 6000))
    values = 2.0 * rng.lognormal(6.0, 0.5, 20_000)
    above = gate.of(values, values, np.zeros(20_000, dtype=np.bool_), (1.0,))[0]

    assert above[:400].mean() > 0.1
    assert 0.005 < above[10_000:].mean() < 0.016


@pytest.mark.parametrize("above", [0.03, 0.002])
def test_another_percentile_proves_nothing(above: float) -> None:
    """The canary has none above the threshold; that of stable is its p97, or its p99.8."""
    assert not fed([block(above, 4000, 1)]).decision.is_reached


def test_stable_above_its_p99_in_one_of_a_hundred_requests_proves_it() -> None:
    assert fed([block(0.01, 4000, 1)]).decision.is_reached


def test_what_was_won_at_another_percentile_is_given_up() -> None:
    """At the p97 the canary's thousand requests would prove it; later, at the p99, two hundred do not."""
    wrong, right = block(0.03, 2000, 2), block(0.01, 400, 3, first=2000)
    channel = fed([wrong])
    assert channel.wealth.log_e == 0.0

    channel.bet(right)

    assert not channel.decision.is_reached
    assert channel.tail.units < 400


def test_requests_without_an_answer_are_no_drift() -> None:
    """2 % of stable's have none, so 3 % are above the threshold: a failure is slowest."""
    part = block(0.01, 4000, 1)
    failed = ~part.arm & (np.arange(4000) % 50 == 0)
    y = np.maximum(part.y, failed)
    whole = unit_block(part.arm, part.w, y)
    without, with_them = TailProof(percentile=0.99), TailProof(percentile=0.99)
    without.bets(whole)
    with_them.bets(replace(whole, y=whole.y - failed, missing=failed.astype(float)))

    assert (without.is_fitting, with_them.is_fitting) == (False, True)


def test_a_wealth_below_one_is_not_given_up() -> None:
    wealth = Wealth(np.ones(2), restart_share=0.0)
    wealth.bet(np.array([[-1.0], [-2.0]]), np.array([0]))
    before = wealth.lw.copy()
    wealth.give_up()

    assert np.array_equal(wealth.lw, before)
    wealth.bet(np.array([[3.0], [1.0]]), np.array([0]))
    wealth.give_up()
    assert wealth.bet(np.zeros((2, 1)), np.array([0]))[0] == pytest.approx(0.0)


def test_a_slower_tail_is_not_proven_while_both_arms_become_slower() -> None:
    """x1 to x3 within the stage; the canary's slowest 2 % are 1.3x as slow, the margin is 1.2x."""
    proven = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = 12_000
        arm = (rng.random(rows) < W).astype(int)
        z = rng.standard_normal(rows)
        latency = 800.0 * np.exp(0.5 * z) * np.linspace(1.0, 3.0, rows)
        latency *= np.where((arm == 1) & (z > 2.054), 1.3, 1.0)
        columns = {"t_s": np.arange(rows) * 0.1, "arm": arm, "w": np.full(rows, W), "latency_ms": latency}
        columns["assigned_by"] = np.full(rows, "request")
        policy = GatePolicy.default().only("latency_ms")
        result = run(columns, policy, stages=(StagePlan(W, 0, {"latency_p99": 1.2}),))
        proven += "latency_p99" in result.proofs
        [report] = [gate for gate in result.gates if gate.side == "promotion"]
        assert result.proofs or "not proven yet" in report.reason

    assert proven == 0


def with_alike(
    seed: int, *, stable: float, canary: float, times: float = 1.0, unanswered: float = 0.005
) -> Columns:
    """12,000 requests, a quarter on the canary: shares of each arm end at 8 s, the canary's at `times` that;
    of the canary's, a share has no answer."""
    rng = np.random.default_rng(seed)
    size = 12_000
    on_canary = rng.random(size) < 0.25
    latency = rng.lognormal(np.log(800.0), 0.5, size)
    ends = 8000.0 * np.where(on_canary, times, 1.0) * np.exp(0.001 * rng.standard_normal(size))
    latency = np.where(rng.random(size) < np.where(on_canary, canary, stable), ends, latency)
    failed = rng.random(size) < np.where(on_canary, unanswered, 0.005)
    return {
        "t_s": np.arange(size) * 1.0,
        "arm": on_canary.astype(np.int64),
        "w": np.full(size, 0.25),
        "assigned_by": np.full(size, "request"),
        "error": failed * 1.0,
        "latency_ms": np.where(failed, 20.0, latency),
    }


def is_p99_proven(columns: Columns) -> bool:
    policy = GatePolicy.default().only("error", "latency_ms")
    result = run(columns, policy, stages=(StagePlan(0.25, 0, {"latency_p99": 1.2}),))
    return "latency_p99" in result.proofs


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.015, 0.03])
def test_where_the_slowest_answers_end_alike_the_p99_of_equal_versions_is_proven(share: float) -> None:
    assert all(is_p99_proven(with_alike(seed, stable=share, canary=share)) for seed in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.011, 0.03])
def test_where_the_slowest_answers_end_alike_a_p99_at_the_margin_is_not_proven(share: float) -> None:
    for seed in range(3):
        assert not is_p99_proven(with_alike(seed, stable=0.03, canary=share, times=1.2))


@pytest.mark.slow
def test_where_the_slowest_answers_end_alike_more_unanswered_ones_are_not_proven() -> None:
    for seed in range(3):
        assert not is_p99_proven(with_alike(seed, stable=0.03, canary=0.0, unanswered=0.02))


def test_a_percentile_among_equal_values_counts_in_part() -> None:
    histogram = LogHistogram()
    histogram.add(np.concatenate((np.linspace(100.0, 200.0, 970), np.full(30, 8000.0))))
    recent = RecentValues(2000.0)
    recent.end_epoch(histogram)
    limit = recent.limit(0.99, histogram)

    assert limit.lower < 8000.0 < limit.upper
    assert limit.inside == pytest.approx(1.0 / 3.0)
