"""Sticky units: one coin, one bet, whatever the number of their requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.backtest import feed, run
from evaluation.offline.columns import checked_table
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.evidence_maker import Columns
from tests.seeds import seeds

PRESETS = ("default", "strict")


def users(
    *, turns: tuple[float, float] = (3.0, 3.0), people: int = 6000, w: float = 0.2, seed: int = 1
) -> tuple[Columns, np.ndarray]:
    """Conversations, a second between two requests, and the depth of each request. The first tenth comes from
    before the canary. Same answers on both arms; `turns`: mean requests of stable's and the canary's."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(people) < people // 10, 0.0, w)
    arm = (rng.random(people) < weight).astype(np.int64)
    size = np.minimum(rng.geometric(1 / np.where(arm == 1, turns[1], turns[0])), 40)
    unit = np.repeat(np.arange(people), size)
    depth = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
    t_s = unit * 4.0 + depth * 1.001
    order = np.argsort(t_s, kind="stable")
    unit, depth = unit[order], depth[order]
    rows = len(unit)
    slow = rng.lognormal(0.0, 0.5, people)[unit]
    return {
        "t_s": t_s[order],
        "unit": unit,
        "arm": arm[unit],
        "w": weight[unit],
        "assigned_by": np.full(rows, "sticky"),
        "error": (rng.random(rows) < 0.01).astype(np.float64),
        "latency_ms": rng.lognormal(6.0, 0.4, rows) * slow,
        "quality": np.clip(rng.normal(0.75, 0.15, rows), 0.0, 1.0),
        "hallucinated": (rng.random(rows) < 0.03).astype(np.float64),
    }, depth


def some(columns: Columns, share: float) -> np.ndarray:
    """The requests of this share of the users."""
    chosen: np.ndarray = np.random.default_rng(6).random(int(columns["unit"].max()) + 1) < share
    return chosen[columns["unit"]]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["never streams", "always fails", "is never judged"])
def test_missing_values_of_a_user_count_once(case: str) -> None:
    """Half of the users never stream; 3 % fail always; 70 % are never judged: on both arms alike."""
    columns, _ = users()
    columns["ttft_ms"] = columns["latency_ms"] / 10.0
    if case == "never streams":
        columns["ttft_ms"][some(columns, 0.5)] = np.nan
    elif case == "always fails":
        columns["error"][some(columns, 0.03)] = 1.0
    else:
        for name in ("quality", "hallucinated"):
            columns[name][some(columns, 0.7)] = np.nan

    result = run(columns)

    assert result.decision in ("promote", "undecided")
    assert not any("missing differently" in reason for reason in result.reasons)


@pytest.mark.slow
def test_a_canary_that_drops_values_is_found() -> None:
    columns, _ = users()
    lost = (columns["arm"] == 1) & (np.random.default_rng(2).random(len(columns["arm"])) < 0.1)
    columns["latency_ms"][lost] = np.nan

    assert any("missing differently" in reason for reason in run(columns).reasons)


@pytest.mark.slow
def test_users_that_always_fall_back_are_counted_once() -> None:
    """5 % of the users: their requests would look like one in three, in a row."""
    columns, _ = users(turns=(8.0, 8.0))
    columns["fell_back"] = np.where(columns["arm"] == 1, some(columns, 0.05).astype(float), np.nan)

    result = run(columns)

    assert result.decision == "undecided"  # 95 % are too few to promote, and no harm
    assert any("served less than 98% of its units" in reason for reason in result.reasons)


@pytest.mark.calibration
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("turns", [(3.0, 4.5), (3.0, 6.0), (1.3, 8.0), (6.0, 3.0)])
def test_longer_conversations_are_no_harm(preset: str, turns: tuple[float, float]) -> None:
    """The same answers, only more (or fewer) of them: not worse per answer."""
    columns, _ = users(turns=turns, people=4000)

    assert run(columns, preset).decision in ("promote", "undecided")


@pytest.mark.slow
@pytest.mark.parametrize("turns", [(2.0, 7.0), (7.0, 2.0)])
def test_the_first_request_speaks_for_the_unit_and_not_the_first_event(turns: tuple[float, float]) -> None:
    """A version that makes people ask more has more conversations with some event."""
    columns, _ = users(turns=turns)
    columns["error"] = (np.random.default_rng(4).random(len(columns["arm"])) < 0.1).astype(np.float64)
    policy = replace(GatePolicy.strict().only("error"), restart_share=0.0)

    [harm] = [g for g in run(columns, policy).gates if (g.gate, g.side) == ("error", "rollback")]

    assert harm.verdict is Verdict.UNDECIDED


@pytest.mark.slow
def test_turns_that_differ_leave_the_proof_to_first_requests() -> None:
    """Latency grows by a tenth a turn and the canary, exactly at the margin, has half of the turns: by
    sessions it looks faster than it is."""
    columns, depth = users(turns=(4.0, 2.0), people=12_000)
    columns["latency_ms"] *= 1.1**depth * np.where(columns["arm"] == 1, 1.2, 1.0)
    policy = GatePolicy.default().only("latency_ms")
    stages = (StagePlan(0.2, 0, {"latency_shape": 1.2}),)

    result = run(columns, policy, stages=stages)

    assert result.proofs == {}
    [report] = [g for g in result.gates if g.side == "promotion"]
    assert report.reason.endswith("(by first requests: conversations differ in length)")


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_turns_void_sessions_only_where_they_differ(ratio: float) -> None:
    columns, _ = users(turns=(4.0, 4.0 / ratio))
    policy = GatePolicy.default().only("error")
    pipeline = Pipeline(policy, (StagePlan(0.2, 0),))
    feed(pipeline, checked_table(columns, policy))
    for lane in pipeline.lanes:
        lane.close_through(float("inf"))

    assert pipeline.split.turns_differ.is_reached == (ratio > 1.0)


@seeds(3)
def test_the_order_within_one_time_stamp_does_not_depend_on_the_arm(seed: int) -> None:
    """A twin logged to ten seconds and sorted by arm within them: the coin must not look unfair."""
    rng = np.random.default_rng(seed)
    rows = 6000
    t_s = np.floor(np.arange(rows) / 10.0) * 10.0
    arm = (rng.random(rows) < 0.2).astype(np.int64)
    error = (rng.random(rows) < 0.05).astype(np.float64)
    order = np.lexsort((arm, t_s))
    columns = {"t_s": t_s[order], "arm": arm[order], "w": np.full(rows, 0.2), "error": error[order]}

    result = run(columns, GatePolicy.default().only("error"))

    assert not any("sample ratio" in reason for reason in result.reasons)
    assert result.decision == "promote"


def one_score_each(
    seed: int, before: float, after: float, which: str, *, people: int = 3000, lost: float = 0.0
) -> Columns:
    """Conversations of `before` and `after` mean turns, each with one score, of its first or last answer;
    `lost`: share of the canary's conversations without any."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(people) < 500, 0.0, 0.2)
    arm = (rng.random(people) < weight).astype(np.int64)
    turns = 1 + rng.poisson(np.where(arm == 1, after, before) - 1.0)
    unit = np.repeat(np.arange(people), turns)
    turn = np.arange(len(unit)) - np.repeat(np.cumsum(turns) - turns, turns)
    is_scored = turn == (turns[unit] - 1 if which == "last" else 0)
    is_scored &= ~((arm == 1) & (rng.random(people) < lost))[unit]
    t_s = 10.0 * unit + turn
    order = np.argsort(t_s, kind="stable")
    columns = {
        "t_s": t_s,
        "unit": unit,
        "arm": arm[unit],
        "w": weight[unit],
        "assigned_by": np.full(len(unit), "sticky"),
        "error": np.zeros(len(unit)),
        "quality": np.where(is_scored, rng.beta(6.0, 2.0, len(unit)), np.nan),
    }
    return {name: values[order] for name, values in columns.items()}


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("which", "after"), [("first", 3.0), ("first", 4.5), ("first", 6.0), ("last", 3.0), ("last", 4.5)]
)
def test_one_score_a_conversation_is_valid_however_long_they_are(after: float, which: str) -> None:
    for seed in range(3):
        result = run(one_score_each(seed, 3.0, after, which), GatePolicy.default().only("error", "quality"))

        assert result.decision in ("undecided", "promote")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "last"])
def test_one_score_a_conversation_proves_quality_as_soon_as_one_for_each_answer(which: str) -> None:
    columns = one_score_each(1, 3.0, 3.0, which, people=2500)

    assert "quality" in run(columns, GatePolicy.default().only("error", "quality")).proofs


@pytest.mark.slow
def test_conversations_without_their_only_score_on_one_arm_are_invalid() -> None:
    columns = one_score_each(1, 3.0, 4.5, "first", lost=0.2)

    assert run(columns, GatePolicy.default().only("error", "quality")).decision == "invalid"


@pytest.mark.slow
@pytest.mark.parametrize("canary_is_wide", [True, False])
def test_conversations_of_the_same_mean_and_another_spread_are_no_harm(canary_is_wide: bool) -> None:
    """Three turns in the mean, the first 1.5x slower, as no prefix is cached: 1 + Poisson, or 1 and 5."""
    rng = np.random.default_rng(4)
    people, w = 2400, 0.5
    weight = np.where(np.arange(people) < people // 10, 0.0, w)
    arm = (rng.random(people) < weight).astype(np.int64)
    is_wide = arm == canary_is_wide
    size = np.where(is_wide, rng.choice([1, 5], people), 1 + rng.poisson(2.0, people))
    unit = np.repeat(np.arange(people), size)
    turn = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
    order = np.argsort(unit * 4.0 + turn * 1.001, kind="stable")
    unit, turn = unit[order], turn[order]
    columns = {
        "t_s": unit * 4.0 + turn * 1.001,
        "unit": unit,
        "arm": arm[unit],
        "w": weight[unit],
        "assigned_by": np.full(len(unit), "sticky"),
        "latency_ms": rng.lognormal(6.0, 0.4, len(unit)) * np.where(turn == 0, 1.5, 1.0),
    }
    policy = GatePolicy.named("strict").only("latency_ms")
    result = run(columns, policy, stages=(StagePlan(w, 0, {"latency_shape": 1.2}),))

    assert result.decision != "rollback"
    assert all("by first requests" in gate.reason for gate in result.gates if gate.side == "promotion")
