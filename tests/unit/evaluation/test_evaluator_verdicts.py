"""Verdicts on a stage: PASS, FAIL, UNDECIDED, INVALID, and their reasons."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.gates import Rung, StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.records import Pair
from evaluation.report import EvaluationReport, GateReport, Verdict
from tests.fakes.evidence_maker import Columns, draw_at, requests, scores_at, settings_of, sticky, streamed

FOUR = ("error", "latency_ms", "quality", "hallucinated")
POLICY = GatePolicy.default().only(*FOUR)
ERRORS = GatePolicy.default().only("error")


def gate_of(report: EvaluationReport, name: str, side: str = "rollback") -> GateReport:
    return next(r for r in report.gates if (r.gate, r.side) == (name, side))


def rollback_of(report: EvaluationReport) -> GateReport:
    assert report.rollback is not None
    return report.rollback


def staged(
    columns: Columns, starts: list[float], stages: tuple[StagePlan, ...], policy: GatePolicy = POLICY
) -> Evaluator:
    """A rollout that enters stage i at starts[i]."""
    evaluator = Evaluator.start(policy, stages=stages, seed_latency_ms={})
    for row in range(len(columns["t_s"])):
        at_s = float(columns["t_s"][row])
        if at_s in starts:
            evaluator.advance(at_s, at_s)
            evaluator.enter_stage(starts.index(at_s), at_s)
        evaluator.add(draw_at(columns, row))
        for score in scores_at(columns, row):
            evaluator.add(score)
    evaluator.advance(float("inf"), float("inf"))
    return evaluator


@pytest.mark.slow
def test_a_harmless_canary_passes_its_stage() -> None:
    report = streamed(requests(3000, before=500), POLICY, stages=(StagePlan(0.2, 200),)).report()

    assert (report.stage_verdict, report.rollback, report.missing) == (Verdict.PASS, None, ())


@pytest.mark.slow
def test_a_proof_without_enough_requests_of_the_stage_is_undecided() -> None:
    report = streamed(
        requests(3000, before=500), POLICY, stages=(StagePlan(0.2, 500_000, margins={"error": 5.0}),)
    ).report()

    assert report.stage_verdict is Verdict.UNDECIDED
    assert "of 500000 canary requests in this stage" in report.missing[-1]


@pytest.mark.slow
def test_harm_fails_the_stage_permanently() -> None:
    columns = requests(3000, error=(0.02, 0.2))
    columns["error"][2000:] = 0.0  # no harm from then on
    report = streamed(columns, POLICY).report()

    assert (report.stage_verdict, rollback_of(report).gate) == (Verdict.FAIL, "error")


def test_missing_proofs_are_named_while_undecided() -> None:
    report = streamed(requests(40), POLICY).report()

    assert report.stage_verdict is Verdict.UNDECIDED
    assert {text.split(":")[0] for text in report.missing} == {
        "error",
        "latency_shape",
        "quality",
        "hallucination",
    }


@pytest.mark.slow
def test_proofs_restart_with_each_stage() -> None:
    """Every gate's: what an earlier stage proved says nothing of harm that begins in this one."""
    columns = requests(3000, before=500)
    stages = (StagePlan(0.2, 0), StagePlan(0.2, 0))
    before, after = (staged(columns, starts, stages).report() for starts in ([0.0], [0.0, 2990.0]))
    gates = ("error", "quality", "hallucination", "latency_shape")

    assert [gate_of(before, name, "promotion").verdict for name in gates] == [Verdict.PASS] * 4
    assert [gate_of(after, name, "promotion").verdict for name in gates] == [Verdict.UNDECIDED] * 4


@pytest.mark.calibration
def test_a_rung_with_an_own_margin_proves_the_narrower_one_over_the_whole_rollout() -> None:
    """At 50 % a stage cannot prove errors < 1.5x on its own units: it proves < 3x, and the rollout < 1.5x."""
    rungs = (Rung(0, {"error": 2.2}, floor=0.0, own={"error": 5.0}),)
    policy = replace(GatePolicy.default().only("error"), rungs=rungs)
    columns = requests(9000, before=500, error=(0.1, 0.1))
    stages = (StagePlan(0.2, 0), StagePlan(0.2, 0))
    late, last = (
        gate_of(staged(columns, starts, stages, policy).report(), "error", "promotion")
        for starts in ([0.0, 6000.0], [0.0, 8900.0])
    )

    assert late.verdict is Verdict.PASS
    assert late.reason == "error < 2.2x or < +0 over the rollout and error < 5x or < +0 over the stage proven"
    assert last.verdict is Verdict.UNDECIDED  # so few units of the stage itself
    assert last.reason == "error < 5x or < +0 over the stage not proven yet"


@pytest.mark.slow
def test_the_proof_of_a_stage_does_not_count_for_the_next_before_it_has_units() -> None:
    evaluator = staged(requests(3000, before=500), [0.0], (StagePlan(0.2, 0), StagePlan(0.2, 0)))
    first = evaluator.report()
    evaluator.enter_stage(1, 3000.0)

    verdicts = [gate_of(r, "latency_shape", "promotion").verdict for r in (first, evaluator.report())]

    assert verdicts == [Verdict.PASS, Verdict.UNDECIDED]


@pytest.mark.slow
def test_the_floor_counts_the_requests_of_the_stage_alone() -> None:
    columns = requests(3000, before=500)
    report = staged(columns, [0.0, 2000.0], (StagePlan(0.2, 0), StagePlan(0.2, 0))).report()

    assert report.stage_canary == int(columns["arm"][2000:].sum())


@pytest.mark.slow
def test_a_higher_rung_requires_more_evidence() -> None:
    columns = requests(3000, before=500)
    reports = [streamed(columns, ERRORS, stages=(StagePlan(0.2, n),)).report() for n in (0, 10_000)]

    assert [gate_of(r, "error", "promotion").verdict for r in reports] == [Verdict.PASS, Verdict.UNDECIDED]


@pytest.mark.slow
def test_arms_under_different_load_are_not_compared() -> None:
    evaluator = streamed(requests(3000, before=500), POLICY)
    evaluator.set_stage_load(stable=10.0, canary=4.0)

    report = evaluator.report()

    assert gate_of(report, "latency_shape", "promotion").reason == "not comparable: canary load 0.4x stable's"
    assert (report.stage_verdict, report.only_load) == (Verdict.INVALID, True)


@pytest.mark.slow
def test_what_else_is_invalid_is_told_from_unequal_load() -> None:
    columns = requests(3000, before=500)
    columns["error"][:] = np.nan
    evaluator = streamed(columns, POLICY)
    evaluator.set_stage_load(stable=10.0, canary=4.0)

    report = evaluator.report()

    assert (report.stage_verdict, report.only_load) == (Verdict.INVALID, False)


@pytest.mark.slow
def test_a_latency_that_is_missing_stays_the_reason_under_unequal_load() -> None:
    columns = requests(3000, before=500)
    columns["latency_ms"][columns["arm"] == 1] = np.nan
    evaluator = streamed(columns, POLICY)
    evaluator.set_stage_load(stable=10.0, canary=4.0)

    report = evaluator.report()

    assert "not comparable" not in gate_of(report, "latency_shape", "promotion").reason
    assert (report.stage_verdict, report.only_load) == (Verdict.INVALID, False)


@pytest.mark.slow
def test_a_sample_ratio_mismatch_freezes_statistics() -> None:
    columns = requests(4000, w=0.2, error=(0.02, 0.5))
    columns["w"][:] = 0.4  # not the probability of the toss
    report = streamed(columns, ERRORS).report()

    assert report.frozen
    assert report.stage_verdict is not Verdict.PASS
    assert gate_of(report, "served_share", "guard").verdict is Verdict.INVALID


@pytest.mark.slow
def test_harm_shown_before_the_sample_ratio_mismatch_stays() -> None:
    columns = requests(3000, w=0.2, error=(0.02, 0.5))
    columns["w"][1500:] = 0.5
    report = streamed(columns, ERRORS).report()

    assert (report.frozen, rollback_of(report).gate) == (True, "error")


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("served", "verdict"), [(1.0, Verdict.PASS), (0.93, Verdict.UNDECIDED), (0.7, Verdict.FAIL)]
)
def test_a_canary_that_does_not_serve_its_requests_is_not_promoted(served: float, verdict: Verdict) -> None:
    columns = requests(3000, before=500)
    fell_back = np.random.default_rng(1).random(3000) > served
    evaluator = Evaluator.start(ERRORS, stages=(StagePlan(0.2, 0),), seed_latency_ms={})
    for row in range(3000):
        evaluator.add(replace(draw_at(columns, row), flags={"fell_back": bool(fell_back[row])}))
    evaluator.advance(float("inf"), float("inf"))

    assert evaluator.report().stage_verdict is verdict


@pytest.mark.slow
def test_scores_missing_differently_by_arm_make_the_metric_invalid() -> None:
    columns = requests(3000, before=500)
    silent = (columns["arm"] == 1) & (np.arange(3000) % 12 == 0)
    columns["quality"][silent] = np.nan
    report = streamed(columns, POLICY).report()

    assert gate_of(report, "quality", "promotion").verdict is Verdict.INVALID
    assert gate_of(report, "quality").reason == (
        "values are missing differently by arm; if the arms are judged at different rates, state both in the "
        "gate's `sampling`"
    )
    assert report.stage_verdict is Verdict.INVALID


@pytest.mark.slow
def test_an_invalid_metric_never_rolls_back() -> None:
    columns = requests(3000, before=500)
    low = (columns["arm"] == 0) & (columns["quality"] < 0.6)  # stable's bad answers are never judged
    columns["quality"][low] = np.nan
    report = streamed(columns, POLICY).report()

    assert gate_of(report, "quality").verdict is Verdict.INVALID


@pytest.mark.slow
def test_a_judged_sample_is_bet_at_the_odds_of_being_judged() -> None:
    rng = np.random.default_rng(2)
    columns = requests(30_000, w=0.1, seed=4)
    share = np.where(columns["arm"] == 1, 1.0, 0.2)
    columns["quality"][rng.random(30_000) > share] = np.nan
    raw = settings_of(GatePolicy.default(), "quality")
    judged = parse_gate_policy({"gates": {"quality": {**raw, "sampling": {"stable": 0.2, "canary": 1.0}}}})
    plain = parse_gate_policy({"gates": {"quality": {**raw, "presence_gated": True}}})

    assert run(columns, judged).decision == "promote"
    assert run(columns, plain).decision == "invalid"  # at plain w the sample itself looks like an effect


@pytest.mark.slow
def test_mirrored_pairs_roll_back_on_their_own_part_of_alpha() -> None:
    raw = settings_of(GatePolicy.default(), "quality")
    policy = parse_gate_policy({"gates": {"quality": {**raw, "mirrored": True}}})
    evaluator = Evaluator.start(policy, stages=(StagePlan(0.2, 0),), seed_latency_ms={})
    rng = np.random.default_rng(3)
    for number in range(400):
        for _ in range(2):  # the second pair of a conversation is not counted
            canary = float(np.clip(rng.normal(0.65, 0.2), 0, 1))
            evaluator.add(Pair(f"c{number}", "quality", 0.8, canary, float(number)))
    evaluator.advance(1000.0, 1000.0)

    report = evaluator.report()

    assert rollback_of(report).reason.endswith("shown by mirrored pairs")
    assert evaluator.pipeline.metrics["quality"].pairs[0].rows == 400


@pytest.mark.slow
def test_sticky_units_never_promote_by_first_requests() -> None:
    """Harm from the second request on: the first requests alone look perfect."""
    columns = sticky(20_000, people=2000, w=0.2)
    order = np.zeros(20_000, dtype=int)
    seen: dict[int, int] = {}
    for row, unit in enumerate(columns["unit"].tolist()):
        order[row] = seen[unit] = seen.get(unit, 0) + 1
    rng = np.random.default_rng(5)
    rate = np.where((columns["arm"] == 1) & (order > 1), 0.2, 0.02)
    columns["error"] = (rng.random(20_000) < rate).astype(float)
    columns["t_s"] = columns["t_s"] / 100.0  # so that sessions hold several requests

    result = run(columns, ERRORS)

    assert (result.proofs, result.decision) == ({}, "rollback")


@pytest.mark.slow
def test_effective_units_count_each_unit_once() -> None:
    columns = sticky(3000, people=300, w=0.2)
    columns["t_s"] = columns["t_s"] / 100.0
    report = streamed(columns, ERRORS).report()

    assert gate_of(report, "error").effective_units == 300


@pytest.mark.slow
def test_late_harm_is_found_with_restarts_and_missed_without() -> None:
    columns = requests(40_000, before=1000, w=0.3, error=(0.02, 0.02))
    late = (columns["arm"] == 1) & (np.arange(40_000) > 30_000)
    columns["error"][late] = (np.random.default_rng(6).random(int(late.sum())) < 0.06).astype(float)

    found = [run(columns, replace(ERRORS, restart_share=share)).decision for share in (0.3, 0.0)]

    assert found == ["rollback", "promote"]


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("warmup_s", "rolled_back"), [(0.0, True), (300.0, False)])
def test_a_cold_cache_is_excluded_by_the_warm_up_of_the_plan(warmup_s: float, rolled_back: bool) -> None:
    columns = requests(3000, before=500)
    cold = (columns["arm"] == 1) & (columns["t_s"] < 800.0)
    columns["latency_ms"][cold] *= 3.0
    report = streamed(columns, POLICY, stages=(StagePlan(0.2, 0, warmup_s=warmup_s),)).report()

    assert (report.rollback is not None) is rolled_back


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("slower", "verdict"), [(1.0, Verdict.PASS), (2.0, Verdict.UNDECIDED)])
def test_a_canary_that_slows_both_arms_holds(slower: float, verdict: Verdict) -> None:
    columns = requests(3000, before=500)
    columns["latency_ms"][500:] *= slower
    report = streamed(columns, POLICY).report()

    assert report.stage_verdict is verdict
    assert (len(report.notes), report.rollback) == (int(slower > 1.0), None)
