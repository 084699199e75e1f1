"""What a sticky unit asks after its first session: judged once a round, on its own part of alpha."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import Sampling, StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from tests.fakes.evidence_maker import Columns, draw_at
from tests.seeds import seeds

W = 0.25
STAGE = (StagePlan(W, 0),)
LATER = "by later requests"


def answers(columns: Columns, bad: np.ndarray, seed: int, loss: float = 0.3) -> Columns:
    """The columns with outcomes: of the `bad` requests, errors 10 %, latency x2, quality lower by `loss`."""
    rng = np.random.default_rng([seed, 1])
    size = len(bad)
    failed = rng.random(size) < np.where(bad & (loss > 0.1), 0.1, 0.01)
    latency = rng.lognormal(6.0, 0.5, size) * np.where(bad & (loss > 0.1), 2.0, 1.0)
    quality = np.clip(rng.normal(0.75, 0.15, size) - loss * bad, 0.0, 1.0)
    return {
        **columns,
        "error": failed.astype(float),
        "latency_ms": latency,
        "quality": np.where(failed, np.nan, quality),
    }


def conversations(
    seed: int,
    *,
    harm: bool,
    turns: tuple[int, int] = (24, 24),
    loss: float = 0.3,
    users: int = 400,
    from_turn: int = 11,
) -> Columns:
    """The users, each with one conversation of so many turns by arm; harm: from this one of the canary on."""
    rng = np.random.default_rng(seed)
    arm = (rng.random(users) < W).astype(int)
    size = np.where(arm == 1, turns[1], turns[0])
    user = np.repeat(np.arange(users), size)
    turn = np.concatenate([np.arange(n) for n in size])
    t_s = 10.0 * user + 20.0 * turn
    order = np.argsort(t_s, kind="stable")
    user, turn = user[order], turn[order]
    columns: Columns = {"t_s": t_s[order], "unit": user, "arm": arm[user], "w": np.full(len(user), W)}
    columns["assigned_by"] = np.full(len(user), "sticky")
    return answers(columns, harm & (arm[user] == 1) & (turn >= from_turn - 1), seed, loss)


def closed_group(seed: int, *, harm_from: int) -> Columns:
    """300 users who come back all the time; harm: of the canary, from this request on."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 300, 9000)
    arm = (rng.random(300) < W).astype(int)[user]
    columns: Columns = {"t_s": 4.0 * np.arange(9000), "unit": user, "arm": arm, "w": np.full(9000, W)}
    columns["assigned_by"] = np.full(9000, "sticky")
    return answers(columns, (arm == 1) & (np.arange(9000) >= harm_from), seed)


def judged(columns: Columns, policy: str | GatePolicy = "default") -> BacktestResult:
    return run(columns, policy, stages=STAGE)


@pytest.mark.slow
@seeds(3)
def test_harm_that_begins_with_the_eleventh_turn_is_rolled_back(seed: int) -> None:
    result = judged(conversations(seed, harm=True))

    assert result.decision == "rollback"
    [reason, *_] = [gate.reason for gate in result.gates if gate.verdict is Verdict.FAIL]
    assert reason.endswith("shown by later requests of the same units")


@pytest.mark.slow
@pytest.mark.parametrize(("from_turn", "turns"), [(21, 40), (31, 40), (61, 100), (91, 130)])
def test_harm_that_begins_later_in_a_conversation_is_rolled_back(from_turn: int, turns: int) -> None:
    """Within the first hour: the conversations begin in half an hour, and take up to a quarter."""
    columns = conversations(1, harm=True, turns=(turns, turns), from_turn=from_turn, users=600)
    columns["t_s"] = 0.3 * columns["t_s"]
    result = judged(columns)

    assert result.decision == "rollback"
    assert "shown by later requests of the same units" in str([gate.reason for gate in result.gates])


@pytest.mark.slow
def test_twins_with_long_conversations_are_promoted() -> None:
    columns = conversations(2, harm=False, turns=(60, 60), users=800)
    columns["t_s"] = 0.3 * columns["t_s"]
    result = judged(columns, GatePolicy.default().only("quality"))

    assert result.decision == "promote"


@pytest.mark.slow
@seeds(3)
def test_harm_that_begins_when_every_user_was_drawn_is_rolled_back(seed: int) -> None:
    columns = closed_group(seed, harm_from=4000)
    before = int(columns["arm"][:4000].sum())

    result = judged(columns)

    assert result.decision == "rollback"
    assert 0 < result.canary_requests - before < 400


@pytest.mark.parametrize("policy", ["default", "strict"])
@pytest.mark.slow
def test_later_requests_of_equal_versions_are_not_rolled_back(policy: str) -> None:
    for seed in range(3):
        for columns in (conversations(seed, harm=False), closed_group(seed, harm_from=9000)):
            assert judged(columns, policy).decision in ("promote", "undecided")


@pytest.mark.slow
def test_equal_versions_are_promoted_by_their_later_requests_too() -> None:
    result = judged(conversations(1, harm=False), GatePolicy.default().only("quality"))

    assert result.decision == "promote"


@pytest.mark.slow
@seeds(3)
def test_a_margin_is_not_proven_by_the_first_ten_turns_alone(seed: int) -> None:
    """Twice the margin from the eleventh turn on, and no other harm: the first ten prove it."""
    policy = GatePolicy.default().only("quality")
    result = judged(conversations(seed, harm=True, loss=0.1), policy)
    report = next(gate for gate in result.gates if gate.side == "promotion")

    assert report.verdict is not Verdict.PASS
    assert LATER in report.reason


@pytest.mark.slow
@seeds(3)
def test_a_margin_is_not_proven_by_the_first_twenty_turns_alone(seed: int) -> None:
    """Twice the margin from the 21st turn on, and no other harm: the first twenty prove it."""
    policy = GatePolicy.default().only("quality")
    columns = conversations(seed, harm=True, loss=0.1, turns=(40, 40), from_turn=21)
    report = next(gate for gate in judged(columns, policy).gates if gate.side == "promotion")

    assert report.verdict is not Verdict.PASS
    assert LATER in report.reason


@pytest.mark.slow
def test_the_part_of_a_conversation_with_a_fifth_of_the_values_must_prove_its_margin() -> None:
    """Of 160 turns, ten are of the session, and 10, 20, 40 and 80 of the parts, with a judged block each."""
    shares, unproven = {}, {}
    for turns in (11, 40, 160):
        evaluator = Evaluator.start(GatePolicy.default().only("error"), stages=STAGE, seed_latency_ms={})
        columns = conversations(1, harm=False, turns=(turns, turns), users=150)
        columns["t_s"] = columns["t_s"] / 4.0  # within the hour
        for row in range(len(columns["t_s"])):
            evaluator.add(draw_at(columns, row))
        evaluator.advance(1e9, 1e9)
        evaluator.report()
        later = evaluator.pipeline.metrics["error"].later_share
        shares[turns] = later.shares.tolist(), later.parts_of(0.2)
        unproven[turns] = later.unproven(0.2)

    assert shares[11] == (pytest.approx([1 / 11, 0, 0, 0, 0]), [])
    assert shares[40] == (pytest.approx([0.25, 0.5, 0, 0, 0], abs=0.04), [0, 1])
    assert shares[160] == (pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 0], abs=0.06), [0, 2, 3])
    assert unproven == {
        11: (pytest.approx(1 / 11), 1),
        40: (0.0, 4),
        160: (pytest.approx(1 / 8, abs=0.06), 2),
    }


@pytest.mark.slow
def test_a_proof_says_which_later_requests_it_does_not_cover() -> None:
    """Lengths fall as 1/k: five parts of about a ninth of the values each, of which none has a fifth."""
    parts = []
    for seed, length in enumerate((8, 11, 15, 21, 30, 42, 60, 85, 120)):
        of_length = conversations(seed, harm=False, turns=(length, length), users=1200 // length)
        of_length["unit"] = of_length["unit"] + 10_000 * seed
        parts.append(of_length)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns["t_s"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    result = judged(columns, GatePolicy.default().only("quality"))
    report = next(gate for gate in result.gates if gate.side == "promotion")

    assert report.verdict is Verdict.PASS
    assert "not of what comes after a unit's first 20 requests of an hour" in report.reason


@pytest.mark.slow
def test_where_few_requests_are_later_ones_they_need_no_proof() -> None:
    result = judged(conversations(1, harm=False, turns=(11, 11)), GatePolicy.default().only("quality"))

    assert result.decision == "promote"
    assert not any(LATER in gate.reason for gate in result.gates)


@pytest.mark.slow
def test_where_only_first_answers_are_scored_the_later_ones_prove_no_score() -> None:
    columns = conversations(1, harm=False, users=800)
    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    columns["quality"] = np.where(turn == 0, columns["quality"], np.nan)
    policy = GatePolicy.default().only("quality")
    gates = tuple(
        replace(gate, sampling=Sampling(stable=0.1, canary=0.1)) if gate.name == "quality" else gate
        for gate in policy.gates
    )
    result = judged(columns, replace(policy, gates=gates))

    assert result.decision == "promote"
    assert not any(LATER in gate.reason for gate in result.gates)


@pytest.mark.slow
@seeds(3)
def test_later_answers_to_what_stable_fails_are_no_harm_however_bad(seed: int) -> None:
    """From the eleventh turn on stable fails a fifth of the prompts; the canary answers them, as badly as can
    be."""
    columns = conversations(seed, harm=False)
    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    is_hard = (turn >= 10) & (np.random.default_rng([seed, 2]).random(len(turn)) < 0.2)
    on_canary = columns["arm"] == 1
    columns["error"] = np.where(is_hard, ~on_canary, columns["error"])
    columns["quality"] = np.where(is_hard, np.where(on_canary, 0.0, np.nan), columns["quality"])
    result = judged(columns, parse_gate_policy({"base": "strict"}).only("quality"))

    assert result.decision != "rollback"


@pytest.mark.slow
def test_units_that_come_back_more_often_on_one_arm_prove_nothing_by_it() -> None:
    """A tenth of stable's users leave after ten turns, and most of the canary's: whoever stays may differ."""
    columns = conversations(3, harm=False)
    gone = np.where(columns["arm"] == 1, 80, 10) > columns["unit"] % 100
    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    kept = ~(gone & (turn >= 10))
    result = judged({name: values[kept] for name, values in columns.items()})

    assert result.decision == "undecided"
    assert any("units of one arm come back more often" in reason for reason in result.reasons)


@pytest.mark.slow
def test_units_that_go_on_for_longer_on_one_arm_prove_nothing_by_their_last_turns() -> None:
    """Both arms' conversations have twenty turns; of stable a tenth go on to forty, of the canary most."""
    columns = conversations(3, harm=False, turns=(40, 40))
    gone = np.where(columns["arm"] == 1, 20, 90) > columns["unit"] % 100
    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    kept = ~(gone & (turn >= 20))
    result = judged({name: values[kept] for name, values in columns.items()})

    assert result.decision != "promote"
    assert any("units of one arm come back more often" in reason for reason in result.reasons)


@pytest.mark.slow
def test_more_turns_within_a_part_are_no_harm_where_each_turn_takes_longer() -> None:
    """Both arms' sessions are full, and each user comes back: only the blocks after that differ in length."""
    columns = conversations(3, harm=False, turns=(12, 20), users=200)
    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    columns["latency_ms"] = columns["latency_ms"] * 1.2**turn
    result = judged(columns, parse_gate_policy({"base": "strict"}).only("latency_ms"))

    assert result.decision == "undecided"


@pytest.mark.slow
def test_the_listener_of_settled_requests_hears_of_no_later_session() -> None:
    """Segment alarms bet each coin once."""
    columns = conversations(2, harm=False, turns=(14, 14))
    columns = {name: values[:600] for name, values in columns.items()}
    evaluator = Evaluator.start(GatePolicy.default().only("error"), stages=STAGE, seed_latency_ms={})
    heard: list[str] = []
    evaluator.on_settled = lambda requests, rows, raw, failed: heard.extend(requests)
    for row in range(600):
        evaluator.add(draw_at(columns, row))
    evaluator.advance(1e9, 1e9)
    evaluator.report()

    turn = (columns["t_s"] - 10.0 * columns["unit"]) / 20.0
    assert evaluator.pipeline.metrics["error"].later_share.later.tolist() == [
        int((turn >= 10).sum()),
        0,
        0,
        0,
        0,
    ]
    assert len(set(heard)) == int((turn < 10).sum())


def survivors(seed: int, *, fixes: bool = True, loss: float = 0.0, users: int = 2500) -> Columns:
    """Users who come back each hour. A fifth have hard prompts, and worse answers, on both arms; stable fails
    35 % of these (`fixes`: the canary 1 %), and most of whom it fails leave for good. loss: of the canary's
    quality from the second hour on."""
    rng = np.random.default_rng(seed)
    hard, arm = rng.random(users) < 0.2, (rng.random(users) < W).astype(int)
    alive = np.ones(users, dtype=bool)
    parts: list[Columns] = []
    for hour in range(4):
        user = np.repeat(np.flatnonzero(alive & ((hour == 0) | (rng.random(users) < 0.9))), 3)
        t_s = 3600.0 * hour + 1.2 * user + 0.1 * np.arange(len(user)) / users
        rate = np.where(hard[user] & ~((arm[user] == 1) & fixes), 0.35, 0.01)
        failed = rng.random(len(user)) < rate
        quality = np.clip(rng.normal(np.where(hard[user], 0.4, 0.75), 0.15), 0.0, 1.0)
        quality -= loss * ((arm[user] == 1) & (hour > 0)) * quality
        alive[user[failed & (rng.random(len(user)) < 0.8)]] = False
        parts.append({"t_s": t_s, "unit": user, "arm": arm[user], "error": failed * 1.0})
        parts[-1]["quality"] = np.where(failed, np.nan, quality)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["w"] = np.full(len(columns["unit"]), W)
    columns["assigned_by"] = np.full(len(columns["unit"]), "sticky")
    return columns


@pytest.mark.slow
@seeds(3)
def test_a_canary_that_keeps_hard_users_by_repairing_failures_is_not_rolled_back(seed: int) -> None:
    result = judged(survivors(seed), "strict")

    assert result.decision != "rollback"


@pytest.mark.slow
@seeds(2)
def test_later_harm_is_found_though_users_leave(seed: int) -> None:
    result = judged(survivors(seed, fixes=False, loss=0.3), "strict")

    assert (result.decision, result.metric) == ("rollback", "quality")


def seldom(seed: int, *, failing: float, users: int = 4000, back: float = 0.08) -> Columns:
    """Users of whom few come back in an hour, each for three requests. failing: errors of the canary from the
    second hour on."""
    rng = np.random.default_rng(seed)
    arm = (rng.random(users) < W).astype(int)
    parts: list[Columns] = []
    for hour in range(7):
        user = np.repeat(np.flatnonzero((hour == 0) | (rng.random(users) < back)), 3)
        rate = np.where((arm[user] == 1) & (hour > 0), failing, 0.01)
        t_s = 3600.0 * hour + 0.75 * user + 0.1 * np.arange(len(user)) / users
        parts.append(
            {"t_s": t_s, "unit": user, "arm": arm[user], "error": (rng.random(len(user)) < rate) * 1.0}
        )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["w"] = np.full(len(columns["unit"]), W)
    columns["assigned_by"] = np.full(len(columns["unit"]), "sticky")
    return columns


@pytest.mark.slow
@seeds(2, first=1)
def test_later_harm_is_found_where_few_come_back_in_an_hour(seed: int) -> None:
    """The noise of who happens to come drowns the harm of one hour, not of all hours so far."""
    policy = GatePolicy.default().only("error")

    assert judged(seldom(seed, failing=0.3), policy).decision == "rollback"
    assert judged(seldom(seed, failing=0.01), policy).decision != "rollback"
