"""Latencies that are recorded in steps (ends of buckets, whole seconds), which hide what was waited."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.histogram import NO_STEPS, LogHistogram, Steps
from evaluation.betting.latency import ShapeProof
from evaluation.betting.stable_baseline import Stable
from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw
from tests.fakes.evidence_maker import Columns

Floats = np.ndarray
Recorded = Callable[[Floats], Floats]
BUCKETS = np.array([5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000.0])  # ms, Prometheus' default
POLICY = GatePolicy.default().only("error", "latency_ms")


def exact(ms: Floats) -> Floats:
    return ms


def to_buckets(ms: Floats) -> Floats:
    out: Floats = BUCKETS[np.minimum(np.searchsorted(BUCKETS, ms), len(BUCKETS) - 1)]
    return out


def to_seconds(ms: Floats) -> Floats:
    out: Floats = np.round(ms / 1000.0) * 1000.0
    return out


def to_tenths(ms: Floats) -> Floats:
    out: Floats = np.round(ms / 100.0) * 100.0
    return out


def rollout(
    times: float, recorded: Recorded, *, seed: int, canary: int = 500, median: float = 2000.0
) -> Columns:
    rng, n = np.random.default_rng(seed), canary * 10
    arm = (rng.random(n) < 0.1).astype(np.int64)
    ms = median * np.exp(0.4 * rng.standard_normal(n)) * np.where(arm == 1, times, 1.0)
    t_s = np.arange(n, dtype=np.float64)
    return {"t_s": t_s, "arm": arm, "w": np.full(n, 0.1), "latency_ms": recorded(ms), "error": np.zeros(n)}


def proven(result: BacktestResult) -> bool:
    return "latency_shape" in result.proofs


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [exact, to_buckets, to_seconds])
@pytest.mark.parametrize("times", [1.25, pytest.param(1.3, marks=pytest.mark.slow)])
def test_a_canary_beyond_the_margin_is_not_proven(times: float, recorded: Recorded) -> None:
    """1.25x and 1.3x slower, in the same buckets as stable or the next."""
    results = [run(rollout(times, recorded, seed=seed), POLICY) for seed in range(6)]

    assert sum(map(proven, results)) == 0


def at_ticks(every_ms: float, late: float) -> Recorded:
    """Answers end at the next tick, and up to `late` of the time between two later."""

    def recorded(ms: Floats) -> Floats:
        later = np.random.default_rng(len(ms)).random(len(ms)) * late
        out: Floats = (np.ceil(ms / every_ms) + later) * every_ms
        return out

    return recorded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "every_ms", "late"),
    [(1.2, 300.0, 0.02), (1.25, 300.0, 0.1), (1.25, 300.0, 0.3), (1.4, 1000.0, 0.05)],
)
def test_a_canary_beyond_the_margin_is_not_proven_at_ticks(
    times: float, every_ms: float, late: float
) -> None:
    """Answers that come in clusters with nearly nothing in between: its quotient fell into the gaps."""
    recorded = at_ticks(every_ms, late)
    results = [
        run(rollout(times, recorded, seed=seed, median=600.0, canary=800), POLICY) for seed in range(4)
    ]

    assert sum(map(proven, results)) == 0


@pytest.mark.slow
def test_a_twin_at_ticks_below_the_margin_is_proven_and_at_wider_ones_says_why_not() -> None:
    narrow, wide = (
        run(rollout(1.0, at_ticks(every_ms, 0.1), seed=2, median=600.0, canary=800), POLICY)
        for every_ms in (50.0, 300.0)
    )

    assert proven(narrow)
    assert not proven(wide)
    assert "recorded at ticks (" in wide.notes[0]
    assert wide.notes[0] in wide.reasons[0]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.98, 0.6])
def test_exact_values_among_the_steps_do_not_hide_them(share: float) -> None:
    """Two routers, one of which records exactly: at the margin, what was rounded up by both is not faster."""

    def mixed(ms: Floats) -> Floats:
        is_step = np.random.default_rng(len(ms)).random(len(ms)) < share
        out: Floats = np.where(is_step, np.ceil(ms / 500.0) * 500.0, ms)
        return out

    results = [run(rollout(1.2, mixed, seed=seed, median=800.0), POLICY) for seed in range(6)]
    twins = [run(rollout(1.0, mixed, seed=seed, median=800.0, canary=1500), POLICY) for seed in range(2)]

    assert sum(map(proven, results)) == 0
    assert all("recorded in steps" in twin.notes[0] for twin in twins)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("times", [1.2, 1.3])
def test_a_recorder_that_changes_to_steps_hides_no_harm(times: float) -> None:
    """Exact for 1000 requests, then in steps of 500 ms on both arms: at the margin, nothing is proven."""

    def changed(ms: Floats) -> Floats:
        out: Floats = np.where(np.arange(len(ms)) < 1000, ms, np.ceil(ms / 500.0) * 500.0)
        return out

    def with_start(seed: int) -> Columns:
        columns = rollout(times, exact, seed=seed, median=800.0, canary=300)
        columns["w"][:1000] = 0.0
        before = np.flatnonzero((columns["arm"] == 1) & (np.arange(3000) < 1000))
        columns["latency_ms"][before] /= times
        columns["arm"][:1000] = 0
        return {**columns, "latency_ms": changed(columns["latency_ms"])}

    results = [run(with_start(seed), POLICY) for seed in range(6)]

    assert sum(map(proven, results)) <= 1


def test_what_most_values_of_a_bin_are_is_its_step_whenever_it_began() -> None:
    """Ten exact values lie in the bin before the first of thirty on the step."""
    bin_ = 1000.0 * np.linspace(1.0, 1.004, 10)
    values = np.concatenate((np.full(32, 500.0), bin_, np.full(30, 1003.0)))

    assert histogram_of(values).steps().points.tolist() == [500.0, 1003.0]


@pytest.mark.slow
def test_a_twin_in_wide_buckets_cannot_be_proven_and_says_the_remedy() -> None:
    result = run(rollout(1.0, to_buckets, seed=1, canary=1500), POLICY)

    assert result.decision == "undecided"
    assert result.notes == (
        "latency_ms is recorded in steps (5 distinct values): 1.2x cannot be proven by such values; "
        "record it in milliseconds",
    )
    assert result.notes[0] in result.reasons[0]


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("recorded", [exact, to_tenths])
def test_a_twin_in_steps_below_the_margin_is_proven(recorded: Recorded) -> None:
    result = run(rollout(1.0, recorded, seed=2), POLICY)

    assert proven(result)
    assert bool(result.notes) is (recorded is to_tenths)


def polled_when_slow(
    seed: int, share: float, *, every_ms: float = 2000.0, times: float = 1.8, of: float = 0.03
) -> Columns:
    """Exact up to 1 s; the slower ones, such a share of stable's, are polled. Of the canary's slowest, the
    part `of` takes `times` as long. 7000 canary requests."""
    rng, n, before = np.random.default_rng([seed, 12]), 14_000, 4000
    w = np.where(np.arange(n + before) < before, 0.0, 0.5)
    arm = (rng.random(n + before) < w).astype(np.int64)
    ms = rng.lognormal(0.0, 0.3, n + before)
    ms *= 1000.0 / np.quantile(ms, 1.0 - share)
    is_slow = (arm == 1) & (ms > np.quantile(ms, 1.0 - min(share, of)))
    ms = np.where(is_slow, ms * times, ms)
    recorded = np.where(ms > 1000.0, 1000.0 + np.ceil((ms - 1000.0) / every_ms) * every_ms, ms)
    t_s = np.arange(n + before) * 0.2
    how = np.full(n + before, "request")
    return {"t_s": t_s, "arm": arm, "w": w, "assigned_by": how, "latency_ms": recorded}


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("share", "every_ms", "times"),
    [
        (0.02, 2000.0, 1.8),
        pytest.param(0.05, 2000.0, 1.8, marks=pytest.mark.slow),
        (0.09, 2000.0, 1.8),
        pytest.param(0.011, 1000.0, 1.45, marks=pytest.mark.slow),
    ],
)
def test_a_tail_that_steps_of_the_slow_answers_hide_is_not_proven(
    share: float, every_ms: float, times: float
) -> None:
    """A p99 of 1.8 times stable's is recorded as the same: it was proven below 1.2x in 10 of 10."""
    policy = GatePolicy.default().only("latency_ms")
    stages = (StagePlan(0.5, 2700, margins={"latency_p99": 1.2, "latency_shape": 1.2}),)
    for seed in range(2):
        columns = polled_when_slow(seed, share, every_ms=every_ms, times=times)
        result = run(columns, policy, stages=stages)
        assert "latency_p99" not in result.proofs, seed
        assert "partly recorded in steps" in result.notes[0]


def test_a_shape_counts_slow_answers_in_steps_as_the_next_step_up() -> None:
    past = Stable(with_histogram=True, with_steps=True)
    past.learn(polled_when_slow(3, 0.05)["latency_ms"])
    proof = ShapeProof(margin=1.2)

    proof.end_epoch(past)

    assert proof.steps.get().points.tolist() == [3000.0]


@pytest.mark.slow
def test_harm_is_found_in_buckets_as_before() -> None:
    assert run(rollout(1.7, to_buckets, seed=3), POLICY).decision == "rollback"


@pytest.mark.slow
def test_a_live_rollout_in_steps_has_the_bits_of_the_file() -> None:
    columns = rollout(1.1, to_tenths, seed=4, canary=200)
    stages = (StagePlan(0.1, 0),)
    evaluator = Evaluator.start(POLICY, stages=stages, seed_latency_ms={})
    names = ("t_s", "arm", "w", "latency_ms")
    for row, (t_s, arm, w, ms) in enumerate(zip(*(columns[name].tolist() for name in names), strict=True)):
        evaluator.add(
            Draw(
                request_id=str(row), at_s=t_s, unit=str(row), assigned_by="request", arm=arm, w=w,
                error=False, latency_ms=ms,
            )
        )  # fmt: skip
        if row % 37 == 0:
            evaluator.advance(t_s, t_s)
        if row == 900:
            evaluator.report()
            evaluator = Evaluator.restore(POLICY, stages, evaluator.snapshot())
    evaluator.advance(float("inf"), float("inf"))
    live = {(gate.gate, gate.side): gate.log_e for gate in evaluator.report().gates}

    requests: Columns = {
        **columns,
        "unit": np.arange(len(columns["arm"])),
        "assigned_by": np.full(len(columns["arm"]), "request"),
    }
    filed = {(gate.gate, gate.side): gate.log_e for gate in run(requests, POLICY, stages=stages).gates}
    assert {key: live[key] for key in filed} == filed
    assert live["latency_shape", "promotion"] > 0.0


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [
        (1000.0, 1.2, 1000.0),
        (1000.0, 2.0, 500.0),
        (500.0, 1.2, 500.0),
        (100.0, 1.2, 500.0),
        (9000.0, 2.0, 4500.0),
    ],
)
def test_a_quotient_is_recorded_as_the_next_step_up(value: float, divisor: float, expected: float) -> None:
    steps = Steps(np.array([500.0, 1000.0]), is_mixed=False)

    assert steps.divided(np.array([value]), divisor) == pytest.approx([expected])


def histogram_of(values: Floats, cut: int = 0) -> LogHistogram:
    histogram = LogHistogram(with_steps=True)
    histogram.add(values[:cut])
    histogram.add(values[cut:])
    return histogram


def test_exact_values_have_no_steps_and_rounded_ones_theirs() -> None:
    ms = 400.0 * np.exp(0.5 * np.random.default_rng(5).standard_normal(3000))

    assert histogram_of(ms).steps() is NO_STEPS
    assert histogram_of(np.round(ms)).steps() is NO_STEPS  # a millisecond is below the bins' 1 %
    assert histogram_of(to_buckets(ms)).steps().points.tolist() == np.unique(to_buckets(ms)).tolist()


@pytest.mark.parametrize("cut", [5, 31, 32, 700])
def test_the_steps_do_not_depend_on_the_blocks(cut: int) -> None:
    ms = to_tenths(2000.0 * np.exp(0.4 * np.random.default_rng(6).standard_normal(1500)))
    whole, parts = histogram_of(ms).steps(), histogram_of(ms, cut).steps()

    assert whole.points.tolist() == parts.points.tolist()
    assert whole.is_mixed == parts.is_mixed


def test_differences_of_time_stamps_are_in_steps_although_they_are_not_exact() -> None:
    rng = np.random.default_rng(7)
    start = 1.78e9 + np.floor(rng.random(2000) * 1e5) / 10.0
    end = start + to_tenths(2000.0 * np.exp(0.4 * rng.standard_normal(2000))) / 1000.0

    steps = histogram_of((end - start) * 1000.0).steps()

    assert 20 < len(steps.points) < 90
    assert steps.divided(np.array([3000.0]), 1.2) == pytest.approx([2500.0], abs=0.01)


def test_an_exceedance_in_steps_needs_a_whole_step() -> None:
    """Stable's p99 is 1000 ms; the next step, 1100 ms, may have been 1000 ms and more."""
    rng = np.random.default_rng(8)
    past = rng.choice([800.0, 900.0, 1000.0, 1100.0], size=6000, p=[0.5, 0.4, 0.095, 0.005])
    gate = Exceedance(percentile=0.99, with_steps=True)
    gate.seed(past)
    canary = np.array([1000.0, 1100.0, 1300.0, 900.0])

    events = gate.of(canary, canary, np.ones(4, dtype=np.bool_), (1.0, 1.05))

    assert events.tolist() == [[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
