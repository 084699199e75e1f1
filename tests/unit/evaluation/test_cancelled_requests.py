"""Requests whose client left before the answer: without an answer, so slowest on both arms, but no errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import BacktestResult, run
from evaluation.offline.columns import checked_table
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.evidence_maker import Columns, draw_at, requests
from tests.seeds import seeds

W = 0.25
STAGE = (StagePlan(W, 500),)
HOLD = "cancelled_share: more requests of the canary than of stable are cancelled by their clients"


def impatient(
    seed: int, *, slower: float = 1.0, hangs: float = 0.0, patience_ms: float = 10_000.0, rows: int = 8000
) -> Columns:
    """Requests whose clients leave after a while; the canary hangs for a share of them until they do."""
    rng = np.random.default_rng(seed)
    arm = (rng.random(rows) < W).astype(int)
    latency = rng.lognormal(6.7, 0.5, rows) * np.where(arm == 1, slower, 1.0)
    gone = (rng.exponential(patience_ms, rows) < latency) | ((arm == 1) & (rng.random(rows) < hangs))
    failed = ~gone & (rng.random(rows) < 0.01)
    return {
        "t_s": np.arange(rows) * 1.0,
        "unit": np.arange(rows),
        "arm": arm,
        "w": np.full(rows, W),
        "assigned_by": np.full(rows, "request"),
        "error": np.where(gone, np.nan, failed),
        "rejected": np.where(gone, np.nan, 0.0),
        "cancelled": gone.astype(float),
        "latency_ms": np.where(gone, np.nan, latency),
        "quality": np.where(gone | failed, np.nan, rng.beta(6.0, 2.0, rows)),
    }


def judged(columns: Columns, policy: str = "default") -> BacktestResult:
    return run(columns, policy, stages=STAGE)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("policy", "slower"), [("default", 0.5), ("default", 1.0), ("strict", 0.5)])
def test_a_canary_that_fewer_clients_leave_is_promoted(policy: str, slower: float) -> None:
    columns = impatient(0, slower=slower)
    shares = [columns["cancelled"][columns["arm"] == arm].mean() for arm in (0, 1)]
    assert shares[1] < (1.0 if slower < 1.0 else 1.5) * shares[0]

    assert judged(columns, policy).decision == "promote"


@pytest.mark.slow
@seeds(2)
def test_a_canary_that_answers_what_stable_fails_is_not_held_for_its_cancels(seed: int) -> None:
    """What fails at once cannot be cancelled. More are, but fewer lack an answer."""
    columns = impatient(seed, rows=40_000)
    fails = (columns["arm"] == 0) & (np.random.default_rng(100 + seed).random(len(columns["arm"])) < 0.4)
    columns["error"] = np.where(fails, 1.0, columns["error"])
    columns["cancelled"] = np.where(fails, 0.0, columns["cancelled"])
    columns["latency_ms"] = np.where(fails, 20.0, columns["latency_ms"])
    columns["rejected"] = np.where(fails, 0.0, columns["rejected"])
    columns["quality"] = np.where(fails, np.nan, columns["quality"])

    result = run(columns, "default", stages=(StagePlan(W, 8000),))
    assert (result.decision, HOLD in result.reasons) == ("promote", False)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("share", [0.15, 1.0])
def test_a_canary_that_hangs_until_its_clients_leave_is_rolled_back(share: float) -> None:
    result = judged(impatient(3, hangs=share, patience_ms=20_000.0, rows=4000))

    assert (result.decision, result.metric) == ("rollback", "latency_ms")


@pytest.mark.slow
def test_the_time_until_a_client_left_is_no_latency() -> None:
    """A canary that hangs would be as fast as its clients' patience."""
    columns = impatient(3, hangs=0.3, patience_ms=20_000.0, rows=3000)
    columns["latency_ms"] = np.where(columns["cancelled"] == 1.0, 50.0, columns["latency_ms"])

    assert judged(columns).decision == "rollback"


@pytest.mark.slow
@seeds(2)
def test_a_canary_that_hangs_for_few_is_held_and_its_evidence_stays_valid(seed: int) -> None:
    result = judged(impatient(seed, hangs=0.04, patience_ms=20_000.0))

    assert result.decision == "undecided"
    assert HOLD in result.reasons
    assert not any(gate.verdict is Verdict.INVALID for gate in result.gates)


def of_a_small_canary(cancelled: int) -> BacktestResult:
    """A twin at 5 %, of which so many clients leave; of stable's none."""
    columns = requests(12_000, w=0.05)
    which = np.flatnonzero(columns["arm"] == 1)[100 : 100 + cancelled]
    columns["cancelled"] = np.isin(columns["unit"], which).astype(float)
    columns["error"] = np.where(columns["cancelled"] == 1.0, np.nan, 0.0)
    return run(columns, GatePolicy.default().only("error"), stages=(StagePlan(0.05, 500),))


@pytest.mark.slow
def test_one_client_that_leaves_takes_no_promotion_back() -> None:
    assert of_a_small_canary(0).decision == "promote"
    assert of_a_small_canary(1).decision == "promote"
    assert HOLD in of_a_small_canary(4).reasons


def test_an_error_before_the_client_left_is_still_one() -> None:
    columns = impatient(1)
    columns["error"] = np.where(columns["arm"] == 1, 1.0, np.nan)
    columns["cancelled"] = np.ones(len(columns["arm"]))
    table = checked_table(columns, GatePolicy.default().only("error", "latency_ms", "rejected"))

    assert (table.values["error"] == (columns["arm"] == 1)).all()
    assert (table.cancelled == (columns["arm"] == 0)).all()
    assert table.failed.all()
    assert not table.values["rejected"].any()
    assert np.isnan(table.values["latency_ms"]).all()


def test_the_cancels_of_a_file_without_them_are_not_known() -> None:
    columns = impatient(1)
    left = columns.pop("cancelled") == 1.0
    table = checked_table(columns, GatePolicy.default().only("error"))

    assert np.isnan(table.cancelled).all()
    assert not table.failed[left].any()


def live(columns: Columns, restart_at: int = -1) -> Evaluator:
    """The same requests as a live rollout records them."""
    policy = GatePolicy.default().only("error", "rejected", "latency_ms")
    evaluator = Evaluator.start(policy, stages=STAGE, seed_latency_ms={})
    for row in range(len(columns["t_s"])):
        flags = {"cancelled": bool(columns["cancelled"][row])}
        if not np.isnan(columns["rejected"][row]):
            flags["rejected"] = bool(columns["rejected"][row])
        evaluator.add(replace(draw_at(columns, row), flags=flags))
        if row == restart_at:
            evaluator.advance(float(row), float(row))
            evaluator = Evaluator.restore(policy, STAGE, evaluator.snapshot())
    evaluator.advance(1e9, 1e9)
    return evaluator


@pytest.mark.slow
def test_a_live_rollout_decides_as_its_recording_does() -> None:
    columns = impatient(2, hangs=0.08, patience_ms=20_000.0, rows=4000)
    del columns["quality"]  # scores would be records of their own
    expected = run(columns, GatePolicy.default().only("error", "rejected", "latency_ms"), stages=STAGE)
    for restart_at in (-1, 1700):
        report = live(columns, restart_at).report()
        log_e = {
            gate.gate: gate.log_e for gate in report.gates if gate.side == "rollback" and not gate.is_alarm
        }

        assert HOLD in report.missing
        assert HOLD in report.notes
        for gate in expected.gates:
            if gate.gate in log_e and gate.side == "rollback":
                assert log_e[gate.gate] == gate.log_e


@pytest.mark.slow
def test_a_time_to_first_token_that_was_known_when_the_client_left_counts() -> None:
    """A canary whose readers stop often, once they have read enough, is not slow to begin."""
    columns = impatient(4)
    rng = np.random.default_rng(4)
    rows, canary = len(columns["arm"]), columns["arm"] == 1
    columns["ttft_ms"] = rng.lognormal(5.0, 0.3, rows)
    columns["cancelled"] = np.where(canary & (rng.random(rows) < 0.2), 1.0, 0.0)
    columns["error"], columns["rejected"] = np.zeros(rows), np.zeros(rows)
    result = run(columns, GatePolicy.default().only("error", "ttft_ms"), stages=(StagePlan(W, 0, {}),))

    assert result.decision == "undecided"
    assert result.log_e["ttft_ms"] < 3.0
    assert HOLD in result.reasons


@pytest.mark.slow
def test_cancelled_requests_are_counted_as_a_rate_of_their_own() -> None:
    columns = impatient(1, rows=2000)
    del columns["quality"]
    evaluator = live(columns)
    alarm = next(gate for gate in evaluator.report().gates if gate.metric == "cancelled")

    assert alarm.stable == pytest.approx(
        columns["cancelled"][(columns["arm"] == 0) & (columns["error"] != 1.0)].mean()
    )


@pytest.mark.slow
def test_users_that_leave_are_counted_once() -> None:
    """A tenth of the users never wait: no more on one arm than on the other, whatever their requests."""
    rng = np.random.default_rng(6)
    user = rng.integers(0, 400, 8000)
    columns = impatient(6, patience_ms=1e9)
    columns["unit"], columns["assigned_by"] = user, np.full(8000, "sticky")
    columns["arm"] = (rng.random(400) < W).astype(int)[user]
    gone = user % 10 == 0
    columns["cancelled"] = gone.astype(float)
    for name in ("error", "rejected", "latency_ms", "quality"):
        columns[name] = np.where(gone, np.nan, columns[name])
    result = judged(columns)

    assert result.decision in ("promote", "undecided")
    assert HOLD not in result.reasons


@pytest.mark.slow
def test_a_percentile_has_its_limit_from_those_who_waited() -> None:
    """Where 8 % leave, a p99 with them as slowest would be infinite. As they might hide what is slow on one
    arm, it takes longer to find a tail that is 1.6x as slow."""
    columns = impatient(5, rows=30_000)
    latency = columns["latency_ms"]
    slowest = latency > np.nanquantile(latency, 0.97)
    columns["latency_ms"] = np.where(slowest & (columns["arm"] == 1), 1.6 * latency, latency)
    policy = GatePolicy.default()
    gates = tuple(gate for gate in policy.gates if gate.name in ("error", "latency_p99"))
    result = run(columns, replace(policy, gates=gates), stages=STAGE)

    assert (result.decision, result.metric) == ("rollback", "latency_ms")
