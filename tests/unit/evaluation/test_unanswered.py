"""Requests without an answer (errors, rejections): slowest in latency, and their missing scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from evaluation.units.answered import AnsweredGap, ScoredShare
from tests.fakes.evidence_maker import Columns, requests, settings_of, streamed

PRESETS = ("default", "strict")
ROWS = 24_000


def unanswered(columns: Columns, bad: np.ndarray, *, metric: str = "error", after_ms: float = 5.0) -> Columns:
    """The same requests, of which these had no answer; they ended fast, and nobody graded them."""
    columns[metric] = bad.astype(np.float64)
    columns["latency_ms"] = np.where(bad, after_ms, columns["latency_ms"])
    for name in ("quality", "hallucinated"):
        columns[name] = np.where(bad, np.nan, columns[name])
    return columns


def answered(seed: int = 3) -> Columns:
    return requests(ROWS, before=4000, w=0.1, seed=seed, error=(0.0, 0.0))


def by_arm(columns: Columns, stable: float, canary: float) -> np.ndarray:
    chance = np.where(columns["arm"] == 1, canary, stable)
    return np.random.default_rng(7).random(ROWS) < chance


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_canary_that_answers_what_stable_fails_is_not_slower(preset: str) -> None:
    """Stable fails its slowest 2 %, in 5 ms; the canary answers them, as slowly as they are."""
    columns = answered()
    slowest = columns["latency_ms"] > np.quantile(columns["latency_ms"], 0.98)

    result = run(unanswered(columns, slowest & (columns["arm"] == 0)), preset)

    assert (result.decision, result.reasons) == ("promote", ())


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("errors", [0.05, 0.1])
def test_a_canary_that_fixes_errors_is_promoted(preset: str, errors: float) -> None:
    """Its answers have scores where stable's failures have none: not "missing differently"."""
    columns = answered()

    result = run(unanswered(columns, by_arm(columns, errors, 0.01)), preset)

    assert (result.decision, result.reasons) == ("promote", ())


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("preset", PRESETS)
def test_additional_answers_to_hard_prompts_are_no_loss_of_quality(preset: str) -> None:
    """The canary answers the 5 % that stable fails; on those it scores 0.3 less, and hallucinates more."""
    columns = answered()
    hard = np.random.default_rng(8).random(ROWS) < 0.05
    canary = columns["arm"] == 1
    columns["quality"] = np.clip(columns["quality"] - 0.3 * (hard & canary), 0.0, 1.0)
    columns["hallucinated"] = np.maximum(
        columns["hallucinated"], hard & canary & (np.random.default_rng(9).random(ROWS) < 0.15)
    )

    assert run(unanswered(columns, hard & ~canary), preset).decision in ("promote", "undecided")


@pytest.mark.slow
def test_a_tolerated_excess_of_failures_is_not_latencys_business() -> None:
    """Errors 5 % beside 6.2 %, which `default` tolerates: latency must not roll back for them."""
    columns = answered()

    gates = run(unanswered(columns, by_arm(columns, 0.05, 0.062))).gates

    assert [g.gate for g in gates if g.verdict is Verdict.FAIL] == []


@pytest.mark.slow
def test_many_failures_are_slowness_too() -> None:
    """Far beyond what is tolerated, failing fast must not look fast."""
    columns = answered()

    gates = run(unanswered(columns, by_arm(columns, 0.01, 0.3))).gates

    failed = {g.gate for g in gates if g.verdict is Verdict.FAIL}
    assert {"error", "latency_shape"} <= failed


@pytest.mark.calibration
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05])
def test_spurious_rejections_of_both_arms_are_no_harm(preset: str, rate: float) -> None:
    columns = answered()

    result = run(unanswered(columns, by_arm(columns, rate, rate), metric="rejected", after_ms=2.0), preset)

    assert (result.decision, result.reasons) == ("promote", ())


@pytest.mark.slow
def test_a_fast_rejection_makes_neither_arm_look_faster() -> None:
    """Slower by half and rejected in 2 ms half of the time: the rejected ones hide nothing."""
    columns = answered()
    columns["latency_ms"] = columns["latency_ms"] * np.where(columns["arm"] == 1, 1.5, 1.0)
    bad = by_arm(columns, 0.5, 0.5)

    result = run(
        unanswered(columns, bad, metric="rejected", after_ms=2.0),
        GatePolicy.default().only("latency_ms", "rejected"),
    )

    assert (result.decision, result.metric) == ("rollback", "latency_ms")


@pytest.mark.slow
def test_a_canary_that_rejects_everything_is_rolled_back_within_fifty_units() -> None:
    columns = answered()

    result = run(unanswered(columns, columns["arm"] == 1, metric="rejected", after_ms=2.0))

    assert result.decision == "rollback"
    assert result.canary_requests <= 50


@pytest.mark.slow
def test_a_record_without_the_flag_was_not_rejected() -> None:
    columns = requests(1500, before=300, w=0.3)
    report = streamed(columns, GatePolicy.default().only("error", "rejected")).report()
    rejected = next(g for g in report.gates if g.gate == "rejected")

    assert (rejected.verdict, rejected.stable) == (Verdict.UNDECIDED, 0.0)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_quality_judged_on_a_stated_share_of_the_answers_is_valid(share: float) -> None:
    """At random, on both arms: fewer scores, and no reason to doubt them."""
    columns = answered()
    columns["quality"] = np.where(np.random.default_rng(5).random(ROWS) < share, columns["quality"], np.nan)
    gate = {**settings_of(GatePolicy.default(), "quality"), "sampling": {"stable": share, "canary": share}}

    assert run(columns, {"gates": {"quality": gate}}).decision == "promote"


@pytest.mark.slow
def test_few_scores_without_a_stated_sampling_name_it() -> None:
    columns = answered()
    columns["quality"] = np.where(np.random.default_rng(5).random(ROWS) < 0.2, columns["quality"], np.nan)

    result = run(columns)

    assert result.decision == "undecided"
    assert any("`sampling`" in reason for reason in result.reasons)


@pytest.mark.slow
def test_scores_missing_by_arm_name_the_sampling() -> None:
    columns = answered()
    judged = np.random.default_rng(5).random(ROWS) < np.where(columns["arm"] == 1, 0.9, 0.3)
    columns["quality"] = np.where(judged, columns["quality"], np.nan)

    result = run(columns)

    assert result.decision == "invalid"
    assert any("`sampling`" in reason for reason in result.reasons)


@pytest.mark.slow
def test_a_loss_of_quality_hidden_behind_failures_is_not_promoted() -> None:
    """The canary fails 4 % more: its worst answers. The others look 0.04 better than they are."""
    columns = answered()
    canary = columns["arm"] == 1
    columns["quality"] = np.clip(columns["quality"] - np.where(canary, 0.06, 0.0), 0.0, 1.0)
    worst = canary & (columns["quality"] < np.quantile(columns["quality"][canary], 0.06))
    policy = replace(GatePolicy.default().only("quality"), restart_share=0.0)
    columns = unanswered(columns, worst)

    proofs = run(columns, policy, stages=(StagePlan(0.1, 0, {"quality": 0.05}),)).proofs

    assert proofs == {}


@pytest.mark.calibration
def test_a_canary_at_the_margin_whose_worst_answers_fail_is_seldom_proven() -> None:
    """All its answers have a mean 0.05 below stable's; the worst 5 % fail, and the others look better."""
    proven = 0
    for seed in range(24):
        columns = requests(4000, before=1000, w=0.25, seed=seed, error=(0.0, 0.0))
        rng, canary = np.random.default_rng(seed), columns["arm"] == 1
        columns["quality"] = np.where(canary, rng.beta(2.8, 1.2, 4000), rng.beta(2.8, 0.933, 4000))
        worst = canary & (columns["quality"] < np.quantile(columns["quality"][canary], 0.05))
        policy = GatePolicy.default().only("error", "quality")
        stages = (StagePlan(0.25, 0, {"quality": 0.05}),)
        proven += "quality" in run(unanswered(columns, worst), policy, stages=stages).proofs

    assert proven <= 2


def test_failures_count_half_where_a_judge_scores_half_of_the_answers() -> None:
    """After the first 64 requests, of which 32 were answered, 16 of them scored."""
    rows = np.arange(128)
    answered = rows % 2 == 0

    share = ScoredShare().of(rows % 4 == 0, answered)

    assert set(share[:64]) == {1.0}
    assert share[64:] == pytest.approx(17 / 33)


def test_the_gap_of_answered_shares_is_of_the_units_before_without_its_noise() -> None:
    """Updated after 64 drawn units: 16 of the canary, all answered, and 48 of stable, 32 or 44 of them
    answered. The 10 units from before the canary do not count."""
    rows = np.arange(80) - 10
    arm, w = (rows >= 0) & (rows % 4 == 0), np.where(rows >= 0, 0.25, 0.0)
    many = AnsweredGap().of(arm, w, np.where(rows % 4 == 1, 0.0, 1.0))
    few = AnsweredGap().of(arm, w, np.where(rows % 16 == 1, 0.0, 1.0))

    assert set(many[:74]) == {0.0}
    assert many[74] == pytest.approx(1 - 32 / 48 - 2 * (16 * 0.25 * 0.75) ** 0.5 / (64 * 0.25 * 0.75))
    assert few.tolist() == [0.0] * 80  # so few are chance


def test_clients_at_a_higher_weight_that_fail_on_both_arms_make_no_gap() -> None:
    """A tenth of the traffic at w = 0.5 fails in half of its requests, the rest at w = 0.05 never: the
    canary's answered share is lower by 0.2, and not for anything that it does."""
    rng = np.random.default_rng(5)
    is_staff = rng.random(20_000) < 0.1
    w = np.where(is_staff, 0.5, 0.05)
    arm = rng.random(20_000) < w
    answered = np.where(is_staff & (rng.random(20_000) < 0.5), 0.0, 1.0)

    gap = AnsweredGap().of(arm, w, answered)

    assert answered[arm].mean() - answered[~arm].mean() < -0.2
    assert abs(gap).max() < 0.02


def test_a_shared_outage_at_a_higher_weight_makes_no_gap() -> None:
    rng = np.random.default_rng(6)
    w = np.repeat([0.05, 0.5], 4000)
    arm = rng.random(8000) < w
    answered = np.where((np.arange(8000) >= 5000) & (np.arange(8000) < 5300), 0.0, 1.0)

    gap = AnsweredGap().of(arm, w, answered)

    assert abs(gap[-1]) < 0.01
