"""Sticky units that come after a split of alpha for requests: their sessions are judged all the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, streamed
from tests.samples import runs

W = 0.25
STAGES = (StagePlan(W, 0, {"error": 5.0}, 0.01),)
POLICY = GatePolicy.default().only("error", "quality")


def conversations(seed: int, users: int, *, late: float, keyless: int = 1, turns: int = 40) -> Columns:
    """Conversations of so many turns after requests without a key; the canary fails from the 11th turn on."""
    rng = np.random.default_rng(seed)
    start_s = np.sort(rng.random(users)) * users * 13.0 + 10.0
    arm, turn = rng.random(users) < W, np.tile(np.arange(turns), users)
    unit = np.repeat(np.arange(users), turns)
    at_s = start_s[unit] + turn * 5.0
    order = np.argsort(at_s, kind="stable")
    unit, turn, at_s = unit[order], turn[order], at_s[order]
    of_canary = arm[unit]
    error = rng.random(len(unit)) < np.where(of_canary & (turn >= 10), late, 0.01)
    alone = rng.random(keyless) < W
    names = [f"alone{n}" for n in range(keyless)] + [f"u{u}" for u in unit.tolist()]
    rows = keyless + len(unit)
    error_of_all = np.concatenate((rng.random(keyless) < 0.01, error)).astype(float)
    return {
        "t_s": np.concatenate((np.linspace(0.0, 9.0, keyless), at_s)),
        "arm": np.concatenate((alone, of_canary)).astype(np.int64),
        "w": np.full(rows, W),
        "unit": np.array(names),
        "assigned_by": np.array(["request"] * keyless + ["sticky"] * len(unit)),
        "error": error_of_all,
        "quality": np.where(error_of_all == 1.0, np.nan, (rng.random(rows) < 0.9).astype(float)),
    }


def ids(columns: Columns) -> Columns:
    return columns | {"request_id": np.array([f"{row:09d}" for row in range(len(columns["t_s"]))])}


@pytest.mark.parametrize("keyless", [1, 400])
def test_harm_late_in_conversations_rolls_back_if_the_first_request_has_no_key(keyless: int) -> None:
    result = run(ids(conversations(1, 200, late=0.4, keyless=keyless)), POLICY, stages=STAGES)

    assert (result.decision, result.metric) == ("rollback", "error")


@pytest.mark.slow
def test_what_late_conversations_need_for_a_proof_can_be_proven() -> None:
    result = run(ids(conversations(2, 1000, late=0.01, turns=20)), POLICY, stages=STAGES)

    assert result.decision == "promote", result.reasons


def test_units_that_a_policy_states_are_not_changed_by_a_late_key() -> None:
    policy = replace(POLICY, units="request")

    assert run(ids(conversations(1, 200, late=0.4)), policy, stages=STAGES).decision == "undecided"


def test_a_late_key_opens_at_its_draw_however_records_come_and_over_restarts() -> None:
    columns = conversations(3, 24, late=0.1, keyless=100)
    whole = run(ids(columns), POLICY, stages=STAGES)
    evaluator: Evaluator = streamed(columns, POLICY, stages=STAGES, seed=5, reload_ratio=0.5)
    live = {(r.gate, r.side): (r.log_e, r.limit) for r in evaluator.report().gates if not r.is_alarm}

    assert evaluator.pipeline.late_keys.seq == 100
    assert {(r.gate, r.side): (r.log_e, r.limit) for r in whole.gates if not r.is_alarm} == live


@pytest.mark.calibration
def test_a_twin_with_late_keys_is_seldom_rolled_back() -> None:
    """What the first requests lend is not spent twice."""
    count, wrong = runs(12, whole=200), 0
    policy = GatePolicy.named("strict").only("error")
    for seed in range(count):
        columns = conversations(100 + seed, 60, late=0.01, keyless=600)
        wrong += run(ids(columns), policy, stages=STAGES).decision == "rollback"

    assert wrong <= int(np.quantile(np.random.default_rng(0).binomial(count, 0.01, 200_000), 0.999))
