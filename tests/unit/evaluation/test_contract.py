"""Contract of the evidence: each rule, and the test that fails without it.

The harm done without a rule is measured in `tests/calibration/test_evidence_traps.py`.

- unit, counted once: test_a_unit_counts_once_at_one_weight_and_its_requests_join_its_session
- tokens belong to their draw: test_a_request_under_a_token_belongs_to_the_draw_of_the_token
- tokens reveal nothing: test_a_token_reveals_nothing_new_of_its_bucket
- tokens are not units of a stage: test_requests_under_tokens_do_not_fill_the_floor_of_a_stage
- bucket intervals: test_a_unit_last_seen_on_stable_returns_at_the_conditional_probability
- returning canary users: test_a_unit_seen_on_the_canary_is_not_bet_again_at_a_higher_weight
- intention to treat, fallback: test_a_fallback_stays_the_assigned_arms_failure
- intention to treat, after the coin: test_nothing_after_the_draw_removes_a_unit
- left out before the coin: test_requests_assigned_without_the_coin_never_count
- left out for both arms alike: test_an_assignment_whose_canary_is_withdrawn_before_confirmation_is_fenced
- a canary with all traffic is not evidence: test_a_canary_with_all_traffic_is_not_evidence
- error, 5xx, its own 429, a 2xx without text: test_a_canarys_status_that_is_no_answer_is_replaced_by_stable
- refused, reset: test_a_failed_canary_is_replaced_by_stable_and_the_error_counts_against_the_canary
- error, cut streams: test_a_stream_cut_by_the_canary_is_its_error_and_ends_with_an_error_event
- error, empty answers: test_an_empty_answer_is_an_error_of_its_arm_and_a_canarys_is_replaced_by_stable
- error, the first attempt by one rule: test_the_first_attempts_outcome_is_recorded_by_one_rule_on_both_arms
- other 4xx reject: test_stables_4xx_is_a_rejection_by_the_same_rule_and_reaches_the_client
- a canary's 4xx is answered by stable: test_a_canarys_4xx_is_replaced_by_stable_and_is_a_rejection
- cancelled by the client, a separate rate: test_a_cancelled_request_is_no_error_and_has_its_own_flag
- latency is what the user waited: test_latency_includes_the_failed_attempt
- failed units are slowest: test_a_canary_that_answers_what_stable_fails_is_not_slower
- failed units, a tolerated excess: test_a_tolerated_excess_of_failures_is_not_latencys_business
- rejected units: test_a_fast_rejection_makes_neither_arm_look_faster
- missing scores, margins: test_a_canary_that_fixes_errors_is_promoted
- missing scores, at random: test_quality_judged_on_a_stated_share_of_the_answers_is_valid
- missing values count a unit once: test_missing_values_of_a_user_count_once
- the served rate counts units: test_users_that_always_fall_back_are_counted_once
- guards count units: test_one_client_that_always_fails_is_one_unit
- a coin is bet once: test_a_channel_refuses_to_bet_a_coin_twice
- conversations of unequal length: test_longer_conversations_are_no_harm
- conversations, outcomes that change with depth: test_turns_that_differ_leave_the_proof_to_first_requests
- the first request speaks: test_the_first_request_speaks_for_the_unit_and_not_the_first_event
- equal times: test_the_order_within_one_time_stamp_does_not_depend_on_the_arm
- a metric that stops: test_a_metric_that_stops_is_named_with_its_last_time
- a gate without a source: test_a_presets_gate_without_a_source_shares_out_its_alpha
- missing differently by arm: test_scores_missing_differently_by_arm_make_the_metric_invalid
- order of assignment: test_draws_settle_in_order_of_assignment_behind_the_watermark
- scores at their deadline: test_a_score_after_its_deadline_is_missing
- silent units, error: test_a_silent_answer_is_an_error_and_slowest
- silent units, latency: test_silent_answers_are_in_the_slowest_bin
- lost records, both arms: test_a_span_with_lost_records_is_dropped_for_both_arms
- lost records are not timeouts: test_a_lost_record_is_missing_and_not_a_failure
- sampled metrics: test_a_judged_sample_is_bet_at_the_odds_of_being_judged
- presence gated: test_feedback_that_one_arm_gives_more_often_is_invalid
- pairs, their part of alpha: test_mirrored_pairs_have_a_quarter_of_alpha_and_live_answers_the_rest
- pairs, one a conversation: test_mirrored_pairs_roll_back_on_their_own_part_of_alpha
- pairs are never multiplied into the live channel: test_mirrored_pairs_leave_the_live_channels_as_they_were
- arms loaded differently: test_arms_under_different_load_are_not_compared
- warm-up: test_a_cold_cache_is_excluded_by_the_warm_up_of_the_plan
- interference: test_a_canary_that_slows_both_arms_holds
- sample ratio counts units: test_users_with_many_requests_are_no_sample_ratio_mismatch
- sample ratio mismatch freezes: test_a_sample_ratio_mismatch_freezes_statistics
- first events never promote: test_sticky_units_never_promote_by_first_requests
- a stage proves on its own units: test_proofs_restart_with_each_stage
- floors count the stage's own requests: test_the_floor_counts_the_requests_of_the_stage_alone
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.alpha_split import channel_alphas
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, Pair
from evaluation.report import EvaluationReport, GateReport
from tests.fakes.evidence_maker import Columns, draw_at, requests, scores_at, settings_of

ERRORS = GatePolicy.default().only("error")
STAGE = (StagePlan(0.5, 0),)
BEFORE_THE_COIN = (
    "force", "no-capacity", "no-lease", "fenced", "shed", "excess", "lost", "mirror", "smoke", "audience-all",
)  # fmt: skip


def judged(draws: list[Draw], policy: GatePolicy) -> Evaluator:
    """An evaluator that has settled these records."""
    evaluator = Evaluator.start(policy, stages=STAGE, seed_latency_ms={})
    for draw in draws:
        evaluator.add(draw)
    evaluator.advance(float("inf"), float("inf"))
    return evaluator


def gate_of(report: EvaluationReport, name: str) -> GateReport:
    return next(r for r in report.gates if (r.gate, r.side) == (name, "rollback"))


def all_bad(columns: Columns) -> Columns:
    """Every answer of the canary fails, none of stable's."""
    return {**columns, "error": columns["arm"].astype(np.float64)}


def test_every_rule_names_tests_that_are_there() -> None:
    here = Path(__file__).parents[2]
    found = "".join(path.read_text(encoding="utf-8") for path in here.rglob("test_*.py"))
    named = [line.split(": ")[-1] for line in (__doc__ or "").splitlines() if line.startswith("- ")]

    assert len(named) == len(set(named)) > 30
    assert [name for name in named if f"def {name}(" not in found] == []


@pytest.mark.parametrize("word", BEFORE_THE_COIN)
def test_requests_assigned_without_the_coin_never_count(word: str) -> None:
    columns = all_bad(requests(400, w=0.5))
    columns["assigned_by"] = np.full(400, word)
    report = judged([draw_at(columns, row) for row in range(400)], ERRORS).report()

    assert (report.n_canary, report.n_stable, report.rollback) == (0, 0, None)


@pytest.mark.slow
@pytest.mark.parametrize("word", ["request", "sticky"])
def test_a_canary_with_all_traffic_is_not_evidence(word: str) -> None:
    columns = requests(800, w=0.2)
    columns["assigned_by"] = np.full(800, word)
    columns["arm"][400:], columns["w"][400:] = 1, 1.0
    columns["error"] = np.where(np.arange(800) < 400, 0.0, 1.0)
    error = gate_of(judged([draw_at(columns, row) for row in range(800)], ERRORS).report(), "error")

    assert (error.log_e, error.canary) == (0.0, 0.0)


def test_requests_under_tokens_do_not_fill_the_floor_of_a_stage() -> None:
    columns = requests(300, w=0.5)
    columns["unit"], columns["arm"] = np.arange(300) // 3, columns["arm"][np.arange(300) // 3 * 3]
    columns["assigned_by"] = np.where(np.arange(300) % 3 == 0, "sticky", "pin")

    report = judged([draw_at(columns, row) for row in range(300)], ERRORS).report()

    assert (report.n_canary, report.stage_canary) == (columns["arm"].sum(), columns["arm"].sum() / 3)


@pytest.mark.slow
def test_silent_answers_are_in_the_slowest_bin() -> None:
    columns = requests(1500, before=500, w=0.3)
    silent = (columns["arm"] == 1) & (np.arange(1500) % 5 == 0)
    draws = [draw_at(columns, row) for row in range(1500)]
    for row in np.flatnonzero(silent).tolist():
        draws[row] = replace(draws[row], error=None, latency_ms=None, flags={"censored": True})

    rollback = judged(draws, GatePolicy.default().only("latency_ms")).report().rollback

    assert rollback is not None
    assert rollback.metric == "latency_ms"


@pytest.mark.slow
def test_a_lost_record_is_missing_and_not_a_failure() -> None:
    columns = requests(1200, before=200, error=(0.0, 0.0))
    draws = [draw_at(columns, row) for row in range(1200)]
    lost = [replace(d, error=None, latency_ms=None) if i % 20 == 0 else d for i, d in enumerate(draws)]
    error = gate_of(judged(lost, ERRORS).report(), "error")

    assert (error.stable, error.canary, error.n_stable + error.n_canary) == (0.0, 0.0, 950)


def test_feedback_that_one_arm_gives_more_often_is_invalid() -> None:
    """Where the arrival of a value is an outcome, the rarer case is tested: votes, not missing votes."""
    columns = requests(3000, before=300, w=0.3)
    votes = np.random.default_rng(8).random(3000) < np.where(columns["arm"] == 1, 0.09, 0.03)
    columns["quality"][~votes] = np.nan
    gate = {**settings_of(GatePolicy.default(), "quality"), "presence_gated": True}
    result = run(columns, parse_gate_policy({"gates": {"quality": gate}}))

    assert result.decision == "invalid"
    assert any(r.startswith("quality: values are missing differently by arm") for r in result.reasons)


def mirrored(**more: object) -> GatePolicy:
    gate = {**settings_of(GatePolicy.default(), "quality"), "mirrored": True, **more}
    return parse_gate_policy({"gates": {"quality": gate}})


@pytest.mark.parametrize(("sticky", "live"), [(False, (0.0015, 0.0)), (True, (0.000675, 0.000675))])
def test_mirrored_pairs_have_a_quarter_of_alpha_and_live_answers_the_rest(
    sticky: bool, live: tuple[float, float]
) -> None:
    parts = channel_alphas(mirrored(), mirrored().gate("quality"), sticky=sticky)

    assert (parts.first, parts.session) == pytest.approx(live)
    assert parts.pairs == pytest.approx(0.0005)


@pytest.mark.slow
def test_mirrored_pairs_leave_the_live_channels_as_they_were() -> None:
    columns = requests(600, before=100)

    def live(pairs: int) -> tuple[list[tuple[float, float]], float]:
        evaluator = Evaluator.start(mirrored(), stages=STAGE, seed_latency_ms={})
        for number in range(pairs):
            evaluator.add(Pair(f"c{number}", "quality", 0.95, 0.05, number - 300.0))
        evaluator.advance(0.0, 0.0)
        evaluator.report()
        for row in range(600):
            evaluator.add(draw_at(columns, row))
            for score in scores_at(columns, row):
                evaluator.add(score)
        evaluator.advance(float("inf"), float("inf"))
        log_e = gate_of(evaluator.report(), "quality").log_e
        tracks = [t for t in evaluator.pipeline.metrics["quality"].tracks if t.use != "pairs"]
        return [(t.channel.decision.peak, t.channel.decision.log_e) for t in tracks], log_e

    with_pairs, without = live(300), live(0)

    assert with_pairs[0] == without[0]
    assert with_pairs[1] > 7.0 > without[1]


@pytest.mark.slow
def test_users_with_many_requests_are_no_sample_ratio_mismatch() -> None:
    """26 of 40 users on the canary at w = 0.5 are plausible; 260 of 400 requests would not be."""
    columns = requests(400, w=0.5)
    columns["unit"] = np.arange(400) // 10
    columns["arm"] = (columns["unit"] * 13 % 20 < 13).astype(np.int64)

    def is_frozen(assigned_by: str) -> bool:
        columns["assigned_by"] = np.full(400, assigned_by)
        return judged([draw_at(columns, row) for row in range(400)], ERRORS).report().frozen

    assert (is_frozen("sticky"), is_frozen("request")) == (False, True)
