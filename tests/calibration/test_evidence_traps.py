"""Rules of the evidence contract, each removed: the same traffic then decides wrongly in many runs.

First with the rule; then without it, on what a tool without the rule would have recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, requests, settings_of, sticky
from tests.samples import runs

pytestmark = pytest.mark.calibration
RUNS = runs(12, whole=24)  # 12 fail in 99 of 100 cases where half of the runs go wrong
ERRORS = replace(GatePolicy.default().only("error"), restart_share=0.0)
LATENCY = replace(GatePolicy.default().only("latency_ms"), restart_share=0.0)
FIVE_TIMES = (StagePlan(0.1, 0, margins={"error": 5.0}, floor=0.001),)


def share_of_runs(happened: Callable[[int], bool]) -> float:
    return sum(happened(seed) for seed in range(RUNS)) / RUNS


def each_its_own(rows: int) -> Columns:
    """The mistake: each request of a user is recorded as a unit of its own."""
    return {"assigned_by": np.full(rows, "request"), "request_id": np.arange(rows)}


def without(columns: Columns, **changed: np.ndarray) -> Columns:
    return {**columns, **changed}


def held_traffic(seed: int) -> tuple[Columns, Columns]:
    """Errors exactly 5x; after a raise from 5 to 20 % half of the requests are under tokens of stage one.

    The second columns are those of a tool without tokens: each request at its stage's weight, bet again.
    """
    rng = np.random.default_rng(seed)
    half, people = 6000, 3000
    first = rng.permutation(np.repeat(np.arange(people), 2))
    holds = rng.random(half) < 0.5
    later = np.where(holds, rng.integers(0, people, half), people + rng.integers(0, people, half))
    unit, pinned = np.concatenate((first, later)), np.concatenate((np.zeros(half, dtype=bool), holds))
    stage_w = np.repeat([0.05, 0.2], half)
    drawn_w = np.where(pinned, 0.05, stage_w)
    arm = (rng.random(2 * people)[unit] < drawn_w).astype(np.int64)
    right = {
        "t_s": np.arange(2.0 * half),
        "unit": unit,
        "arm": arm,
        "w": drawn_w,
        "assigned_by": np.where(pinned, "pin", "sticky"),
        "error": (rng.random(2 * half) < np.where(arm == 1, 0.25, 0.05)).astype(float),
    }
    return right, without(right, w=stage_w, **each_its_own(2 * half))


def test_tokens_that_are_bet_again_prove_a_canary_that_is_five_times_worse() -> None:
    def proves(which: int) -> Callable[[int], bool]:
        def is_proven(seed: int) -> bool:
            gates = run(held_traffic(seed)[which], ERRORS, stages=FIVE_TIMES).gates
            return next(gate.log_e >= gate.limit for gate in gates if gate.side == "promotion")

        return is_proven

    assert share_of_runs(proves(0)) <= 0.1
    assert share_of_runs(proves(1)) >= 0.5


def outages(seed: int) -> tuple[Columns, Columns]:
    """Outages of both arms; stable takes 31 s to answer, the canary 1 s. Second: in order of completion."""
    rows = 12_000
    columns = requests(rows, seed=seed, w=0.1)
    columns["t_s"] = columns["t_s"] / 10.0
    rng = np.random.default_rng(seed + 900)
    down = columns["t_s"] % 400.0 < 30.0
    columns["error"] = (rng.random(rows) < np.where(down, 0.7, 0.005)).astype(float)
    done_s = columns["t_s"] + np.where(columns["arm"] == 1, 1.0, 31.0)
    order = np.argsort(done_s, kind="stable")
    return columns, {**{name: values[order] for name, values in columns.items()}, "t_s": done_s[order]}


def rolled_back(result: BacktestResult) -> bool:
    return result.decision == "rollback"


def test_the_order_of_completion_rolls_back_a_good_canary() -> None:
    assert share_of_runs(lambda seed: rolled_back(run(outages(seed)[0], ERRORS))) <= 0.05
    assert share_of_runs(lambda seed: rolled_back(run(outages(seed)[1], ERRORS))) >= 0.25


def slow_tail(seed: int, *, leave_out: bool) -> Columns:
    """The canary's p99 is exactly 1.2x; leave_out: without its slowest 5 %, which stable took over."""
    columns = requests(24_000, seed=seed, w=0.1, before=4000)
    canary = columns["arm"] == 1
    columns["latency_ms"][canary] *= 1.2
    slowest = canary & (columns["latency_ms"] > np.quantile(columns["latency_ms"][canary], 0.95))
    return {name: values[~slowest] for name, values in columns.items()} if leave_out else columns


def test_excluding_takeovers_proves_a_false_tail() -> None:
    stages = (StagePlan(0.1, 0, margins={"latency_p99": 1.2}),)

    def proven(leave_out: bool) -> Callable[[int], bool]:
        return lambda seed: bool(run(slow_tail(seed, leave_out=leave_out), LATENCY, stages=stages).proofs)

    assert share_of_runs(proven(False)) <= 0.1
    assert share_of_runs(proven(True)) >= 0.4


def test_counting_requests_instead_of_units_reports_a_sample_ratio_mismatch() -> None:
    def is_frozen(columns: Columns) -> bool:
        return any("sample ratio mismatch" in reason for reason in run(columns, ERRORS).reasons)

    def users(seed: int) -> Columns:
        return sticky(10_000, people=120, seed=seed, w=0.2)

    assert share_of_runs(lambda seed: is_frozen(users(seed))) == 0.0
    assert share_of_runs(lambda seed: is_frozen(without(users(seed), **each_its_own(10_000)))) >= 0.25


def users_with_habits(seed: int, *, by_unit: bool) -> Columns:
    """Equal arms; a few users cause most errors. Not by_unit: each of their requests is bet."""
    rows, people = 8_000, 30
    columns = sticky(rows, people=people, seed=seed, w=0.3)
    rng = np.random.default_rng(seed + 70)
    habit = rng.gamma(0.15, 1 / 0.15, people)[columns["unit"]]
    columns["error"] = (rng.random(rows) < np.minimum(0.03 * habit, 1.0)).astype(float)
    return columns if by_unit else without(columns, **each_its_own(rows))


def test_betting_each_request_of_a_user_shows_false_harm() -> None:
    def shows_harm(by_unit: bool) -> Callable[[int], bool]:
        return lambda seed: run(users_with_habits(seed, by_unit=by_unit), ERRORS).log_e["error"] > 5.81

    assert share_of_runs(shows_harm(True)) <= 0.05
    assert share_of_runs(shows_harm(False)) >= 0.2


def judged(seed: int) -> Columns:
    """Half of stable's answers and all of the canary's are judged; hallucinations are equally rare."""
    columns = requests(20_000, seed=seed, w=0.1)
    rng = np.random.default_rng(seed + 33)
    skipped = rng.random(20_000) > np.where(columns["arm"] == 1, 1.0, 0.3)
    columns["hallucinated"][skipped] = np.nan
    return columns


def test_a_sampled_metric_bet_at_plain_w_shows_false_harm() -> None:
    raw = settings_of(GatePolicy.default(), "hallucination")
    ours = parse_gate_policy(
        {"gates": {"hallucination": {**raw, "sampling": {"stable": 0.3, "canary": 1.0}}}}
    )
    plain = parse_gate_policy({"gates": {"hallucination": {**raw, "presence_gated": True}}})

    def log_e(seed: int, policy: GatePolicy) -> float:
        return run(judged(seed), policy).log_e["hallucinated"]

    assert share_of_runs(lambda seed: log_e(seed, ours) > 6.2) <= 0.05
    # Not in all: the channel that counts unanswered requests as harm must fire as well.
    assert share_of_runs(lambda seed: log_e(seed, plain) > 6.2) >= 0.8


def test_late_onset_restarts_keep_the_whole_alpha() -> None:
    policy = GatePolicy.default()

    def rolled(seed: int) -> bool:
        return rolled_back(run(requests(10_000, seed=seed + 400, w=0.2, before=2000), policy))

    assert share_of_runs(rolled) <= 0.05
