"""A conversation drawn while it is under way: its first request finds a cold prefix cache if it was moved."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.evidence_maker import Columns
from tests.seeds import seeds

USERS, TURNS = 2000, 6
RAISE_S = 400.0


def under_way(
    seed: int, *, moved: float = 1.0, all_later: float = 1.0, gap_s: float = 60.0, w: float = 0.25
) -> Columns:
    """Conversations of six turns, three before the raise at RAISE_S. On the canary the first request after
    it is `moved` times as slow, and every one `all_later` times."""
    rng = np.random.default_rng(seed)
    arm = (rng.random(USERS) < w).astype(np.int64)
    user, turn = np.repeat(np.arange(USERS), TURNS), np.tile(np.arange(TURNS), USERS)
    t_s = RAISE_S + 0.01 * (user - USERS) + gap_s * (turn - 3) + np.where(turn >= 3, 20.0, 0.0)
    weight = np.where(turn >= 3, w, 0.0)
    on_canary = (arm[user] == 1) & (turn >= 3)
    latency = rng.lognormal(6.0, 0.5, len(user)) * np.where(on_canary, all_later, 1.0)
    latency = latency * np.where(on_canary & (turn == 3), moved, 1.0)
    order = np.argsort(t_s, kind="stable")
    columns: Columns = {
        "t_s": t_s,
        "unit": user,
        "arm": on_canary.astype(np.int64),
        "w": weight,
        "assigned_by": np.full(len(user), "sticky"),
        "error": (rng.random(len(user)) < 0.01).astype(np.float64),
        "latency_ms": latency,
    }
    return {name: values[order] for name, values in columns.items()}


def judged(columns: Columns) -> BacktestResult:
    policy = GatePolicy.named("strict").only("error", "latency_ms")
    return run(columns, policy, stages=(StagePlan(0.25, 0),))


@pytest.mark.slow
@seeds(3)
def test_a_cold_first_request_of_a_conversation_that_moved_is_no_harm(seed: int) -> None:
    result = judged(under_way(seed, moved=1.5))

    assert result.decision != "rollback"


@pytest.mark.slow
@seeds(2)
def test_its_other_requests_are_judged(seed: int) -> None:
    result = judged(under_way(seed, all_later=1.5))

    assert result.decision == "rollback"
    assert any(gate.verdict is Verdict.FAIL and gate.gate == "latency_shape" for gate in result.gates)


@pytest.mark.slow
def test_a_conversation_that_has_ended_is_warm_on_neither_arm() -> None:
    """Its last request was more than a session before the raise: the first one counts."""
    result = judged(under_way(1, moved=1.5, gap_s=700.0))

    assert result.decision == "rollback"
