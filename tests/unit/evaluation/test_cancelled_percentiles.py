"""Percentiles where clients leave before the answer: which requests are cancelled depends on the version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import BacktestResult, run
from evaluation.offline.columns import checked_table
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw
from tests.fakes.evidence_maker import Columns, draw_at

W = 0.2
STAGE = (StagePlan(W, 2700),)
BEFORE = 4000  # requests of stable before the canary
BUT_P99 = ("error", "latency_p99")


def leaving(
    seed: int,
    *,
    first_token: float = 1.0,
    slower: float = 1.0,
    slow: float = 0.03,
    first_ms: float = np.inf,
    whole_ms: float = np.inf,
    canary: int = 4000,
    knows_when: bool = True,
) -> Columns:
    """Requests whose clients leave where the first token takes longer than `first_ms`, or the whole answer
    longer than `whole_ms`. Long answers begin late, too.

    first_token: factor of the canary's times to the first token; slower: of its slowest latencies, a share
    `slow`. knows_when: the times at which clients left are recorded.
    """
    rng = np.random.default_rng([62, seed])
    rows = BEFORE + int(canary / W)
    w = np.where(np.arange(rows) < BEFORE, 0.0, W)
    arm = (rng.random(rows) < w).astype(int)
    z = rng.standard_normal(rows)
    latency = 2000.0 * np.exp(0.6 * z)
    ttft = 400.0 * np.exp(0.6 * (0.8 * z + 0.6 * rng.standard_normal(rows)))
    ttft = np.where(arm == 1, ttft * first_token, ttft)
    slowest = latency > np.quantile(latency, 1.0 - slow)
    latency = np.where((arm == 1) & slowest, latency * slower, latency)
    at_ms = np.minimum(
        np.where(ttft > first_ms, first_ms, np.inf), np.where(latency > whole_ms, whole_ms, np.inf)
    )
    left = at_ms < latency
    return {
        **answered(arm, w, left),
        "latency_ms": np.where(left, at_ms if knows_when else np.nan, latency),
        "ttft_ms": np.where(left, np.nan, ttft),
    }


def answered(arm: np.ndarray, w: np.ndarray, left: np.ndarray) -> dict[str, np.ndarray]:
    """Ten requests a second without errors, of which these were left."""
    rows = len(arm)
    return {
        "t_s": np.arange(rows) / 10.0,
        "unit": np.arange(rows),
        "arm": arm,
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": np.zeros(rows),
        "cancelled": left.astype(float),
    }


def p99_alone(policy: str = "default") -> GatePolicy:
    whole = GatePolicy.named(policy)
    return replace(whole, gates=tuple(gate for gate in whole.gates if gate.name in BUT_P99))


def judged(columns: Columns, policy: str | GatePolicy = "default") -> BacktestResult:
    return run(columns, policy, stages=STAGE)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("knows_when", [True, False])
def test_a_faster_first_token_is_no_slower_tail(seed: int, knows_when: bool) -> None:
    """12 % leave stable and 1 % the canary, whose answers take as long: it keeps the long ones."""
    columns = leaving(seed, first_token=0.5, first_ms=800.0, canary=2500, knows_when=knows_when)
    shares = [columns["cancelled"][columns["arm"] == arm].mean() for arm in (0, 1)]
    assert shares[0] > 0.1 > 0.02 > shares[1]

    assert judged(columns).decision != "rollback"


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("patience_ms", [6500.0, 7000.0])
@pytest.mark.parametrize("knows_when", [True, False])
def test_a_tail_that_clients_do_not_wait_for_is_not_proven(patience_ms: float, knows_when: bool) -> None:
    """The slowest 3 % take 1.3x, and their clients leave: of those who waited, it is faster."""
    result = judged(leaving(3, slower=1.3, whole_ms=patience_ms, knows_when=knows_when), p99_alone())

    assert "latency_p99" not in result.proofs
    assert result.decision == "undecided"


def of_two_kinds(seed: int, slower: float) -> Columns:
    """Half of the clients leave after 2.6 s, half wait for ever; the canary's slowest 2.5 % of the former's
    answers take `slower`. Stable's p99 is 2.4 s, and 22 % of its answers above it take 1.2 times as long."""
    rng = np.random.default_rng([63, seed])
    rows = BEFORE + int(2500 / W)
    w = np.where(np.arange(rows) < BEFORE, 0.0, W)
    arm = (rng.random(rows) < w).astype(int)
    z, is_chat = rng.standard_normal(rows), rng.random(rows) < 0.5
    latency = 800.0 * np.exp(0.5 * z) * np.where((arm == 1) & is_chat & (z > 1.96), slower, 1.0)
    left = is_chat & (latency > 2600.0)
    return {**answered(arm, w, left), "latency_ms": np.where(left, 2600.0, latency)}


@pytest.mark.slow
def test_slow_answers_of_clients_that_leave_are_no_faster_because_others_wait() -> None:
    """0.5 % leave stable and 1.4 % the canary, whose p99 is 2.5 times as long, if they had waited."""
    assert "latency_p99" in judged(of_two_kinds(1, 1.0), p99_alone()).proofs
    slower = judged(of_two_kinds(1, 3.0), p99_alone())

    assert "latency_p99" not in slower.proofs
    [reason] = [g.reason for g in slower.gates if g.gate == "latency_p99" and g.side == "promotion"]
    assert "if requests left late are slow, too; of those who waited" in reason


@pytest.mark.slow
def test_a_canary_that_hangs_for_few_is_not_proven_before_its_cancels_are_many() -> None:
    """It gives 1 % no first token, and clients leave after 2 s: the limit, of whole answers, is 2.6 s."""
    columns, rng = of_two_kinds(2, 1.0), np.random.default_rng(2)
    rows = len(columns["arm"])
    hangs = (columns["arm"] == 1) & (rng.random(rows) < 0.01)
    latency = 800.0 * np.exp(0.5 * rng.standard_normal(rows))
    columns |= {"cancelled": hangs.astype(float), "latency_ms": np.where(hangs, 2000.0, latency)}

    assert "latency_p99" not in judged(columns, p99_alone()).proofs


@pytest.mark.slow
@pytest.mark.parametrize("knows_when", [True, False])
def test_identical_versions_whose_clients_leave_are_promoted(knows_when: bool) -> None:
    """By the first token; or where nobody waits for more than the p95, which takes more of them to prove."""
    by_first_token = 4000 if knows_when else 9000
    for canary, more in ((by_first_token, {"first_ms": 1100.0}), (9000, {"whole_ms": 5400.0})):
        columns = leaving(1, canary=canary, knows_when=knows_when, **more)
        result = judged(columns, p99_alone())

        assert result.decision == "promote", more


def with_errors(columns: Columns, seed: int, share: float = 0.005, one_in: int = 0) -> Columns:
    """The same requests, some of which fail on both arms, and of which one in so many is cancelled."""
    rng = np.random.default_rng([64, seed])
    rows = len(columns["arm"])
    fails = (rng.random(rows) < share) & (columns["cancelled"] == 0.0)
    left = columns["cancelled"] == 1.0
    if one_in:
        left = left | ((np.arange(rows) % one_in == 1) & ~fails)
    return columns | {"error": fails.astype(float), "cancelled": left.astype(float)}


@pytest.mark.slow
def test_a_cancelled_request_in_thousands_asks_for_no_proof_that_errors_are_no_more() -> None:
    columns = leaving(1, canary=6000, knows_when=False)
    assert judged(with_errors(columns, 1), p99_alone()).decision == "promote"

    result = judged(with_errors(columns, 1, one_in=4000), p99_alone())
    assert result.decision == "promote"


@pytest.mark.slow
def test_errors_of_both_arms_hide_no_slow_answers_that_nobody_waits_for() -> None:
    """1.4 % leave the canary, whose p99 is 2.5 times as long, beside errors of 0.5 %."""
    assert "latency_p99" not in judged(with_errors(of_two_kinds(1, 3.0), 1), p99_alone()).proofs


@pytest.mark.slow
def test_the_text_says_whom_a_percentile_is_of() -> None:
    result = judged(leaving(1, first_ms=1100.0, canary=6000), p99_alone())
    reasons = {gate.side: gate.reason for gate in result.gates if gate.gate == "latency_p99"}

    assert "of those who waited" in reasons["promotion"]
    assert "of stable's requests and" in reasons["promotion"]
    plain = judged(leaving(1, canary=6000), p99_alone())
    assert all("waited" not in gate.reason for gate in plain.gates)


@pytest.mark.slow
def test_a_request_that_its_client_left_late_is_known_to_be_slow() -> None:
    """The canary hangs for 3 %: clients wait for 20 s, four times the p99 of those who are answered."""
    columns = leaving(2, canary=1500)
    hangs = (columns["arm"] == 1) & (np.random.default_rng(2).random(len(columns["arm"])) < 0.03)
    columns["latency_ms"] = np.where(hangs, 20_000.0, columns["latency_ms"])
    columns["ttft_ms"] = np.where(hangs, np.nan, columns["ttft_ms"])
    columns["cancelled"] = np.where(hangs, 1.0, columns["cancelled"])
    result = judged(columns, p99_alone())

    assert (result.decision, result.metric) == ("rollback", "latency_ms")
    unknown = {**columns, "latency_ms": np.where(hangs, np.nan, columns["latency_ms"])}
    assert judged(unknown, p99_alone()).decision == "undecided"


def test_the_time_until_a_client_left_is_kept_and_is_no_latency() -> None:
    columns = leaving(1, first_ms=1100.0, canary=200)
    left = columns["cancelled"] == 1.0
    table = checked_table(columns, GatePolicy.default().only("error", "latency_ms"))

    assert np.isnan(table.values["latency_ms"][left]).all()
    assert (table.values["left_ms"][left] == 1100.0).all()
    assert np.isnan(table.values["left_ms"][~left]).all()


@pytest.mark.slow
def test_a_live_rollout_knows_when_clients_left() -> None:
    columns = leaving(1, slower=1.3, whole_ms=6500.0, canary=300)
    del columns["ttft_ms"]
    policy = GatePolicy.default().only("error", "latency_ms")
    expected = run(columns, policy, stages=STAGE)
    evaluator = Evaluator.start(policy, stages=STAGE, seed_latency_ms={})
    for row in range(len(columns["t_s"])):
        evaluator.add(_live(columns, row))
        if row == 4500:
            evaluator.advance(float(row) / 10.0, float(row))
            evaluator = Evaluator.restore(policy, STAGE, evaluator.snapshot())
    evaluator.advance(1e9, 1e9)
    found = {(gate.gate, gate.side): gate.log_e for gate in evaluator.report().gates}

    for gate in expected.gates:
        if not gate.is_alarm and (gate.gate, gate.side) in found:
            assert found[gate.gate, gate.side] == gate.log_e


def _live(columns: Columns, row: int) -> Draw:
    draw = draw_at(columns, row)
    if columns["cancelled"][row] == 0.0:
        return replace(draw, flags={"cancelled": False})
    left_ms = float(columns["latency_ms"][row])
    return replace(draw, flags={"cancelled": True}, latency_ms=None, left_ms=left_ms)


@pytest.mark.slow
@pytest.mark.parametrize("left", [(), (13_700,), (100, 13_700)], ids=["none", "one", "two"])
def test_one_client_that_leaves_late_takes_no_proof_back(left: tuple[int, ...]) -> None:
    """One of the canary's few requests since the first that was left is many of those."""
    rng = np.random.default_rng(1)
    rows = 14_000
    w = np.where(np.arange(rows) < 4000, 0.0, 0.5)
    arm = (rng.random(rows) < w).astype(int)
    latency_ms, cancelled = 500.0 * np.exp(0.5 * rng.standard_normal(rows)), np.zeros(rows)
    for row in left:
        cancelled[row if row < 4000 else row + int(np.argmax(arm[row:]))] = 1.0
    latency_ms[cancelled == 1.0] = np.nan
    columns = {
        "t_s": np.arange(rows) / 10.0,
        "unit": np.arange(rows),
        "arm": arm,
        "w": w,
        "assigned_by": np.full(rows, "request"),
        "error": np.where(cancelled == 1.0, np.nan, 0.0),
        "latency_ms": latency_ms,
        "cancelled": cancelled,
    }
    policy = GatePolicy.default()
    gates = tuple(gate for gate in policy.gates if gate.name in ("error", "latency_p99"))

    result = run(columns, replace(policy, gates=gates), stages=(StagePlan(0.5, 4900),))

    assert "latency_p99" in result.proofs
