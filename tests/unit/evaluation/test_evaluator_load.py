"""Overload: latency of units assigned while a canary replica carried more load than a stable one."""

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport, Verdict
from tests.fakes.evidence_maker import ONE_STAGE, Columns, draw_at, requests

POLICY = GatePolicy.default().only("error", "latency_ms")
LOST_S, BACK_S = 1000.0, 2000.0


def slow_while_one_is_lost(errors: float = 0.02) -> Columns:
    """One of two canary replicas is lost from 1000 s to 2000 s: the other answers half as fast."""
    columns = requests(4000, before=500, error=(errors, errors))
    lost = (columns["arm"] == 1) & (columns["t_s"] >= LOST_S) & (columns["t_s"] < BACK_S)
    columns["latency_ms"][lost] *= 2.0
    return columns


def live(columns: Columns, ratio: float, *, policy: GatePolicy = POLICY, step_s: float = 50.0) -> Evaluator:
    """An evaluator fed in order of time, with the load set at each step as by the controller."""
    evaluator = Evaluator.start(policy, stages=ONE_STAGE, seed_latency_ms={})
    row, rows = 0, len(columns["t_s"])
    for now_s in np.arange(step_s, float(columns["t_s"][-1]) + step_s, step_s).tolist():
        while row < rows and columns["t_s"][row] < now_s:
            evaluator.add(draw_at(columns, row))
            row += 1
        load = ratio if LOST_S <= now_s < BACK_S else 1.0
        evaluator.set_current_load(load, since_s=now_s - step_s, at_s=now_s)
        evaluator.advance(now_s, now_s)
    evaluator.advance(float("inf"), float("inf"))
    return evaluator


def latency_sides(report: EvaluationReport) -> dict[tuple[str, str], tuple[Verdict, str]]:
    return {(g.gate, g.side): (g.verdict, g.reason) for g in report.gates if g.metric == "latency_ms"}


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("ratio", "rolled_back"), [(2.0, False), (1.2, True), (1.0, True), (0.5, True)])
def test_slowness_is_excused_only_under_a_higher_load(ratio: float, rolled_back: bool) -> None:
    report = live(slow_while_one_is_lost(), ratio).report()

    assert (report.rollback is not None and report.rollback.metric == "latency_ms") is rolled_back


@pytest.mark.slow
def test_harm_in_the_other_metrics_is_found_under_any_load() -> None:
    columns = slow_while_one_is_lost()
    columns["error"][(columns["arm"] == 1) & (columns["t_s"] < BACK_S)] = 1.0

    report = live(columns, 2.0).report()

    assert report.rollback is not None
    assert report.rollback.metric == "error"


@pytest.mark.slow
def test_an_overload_excludes_exactly_its_units_of_both_arms() -> None:
    columns = slow_while_one_is_lost(errors=0.0)
    left_out = (columns["t_s"] >= LOST_S - 50.0) & (columns["t_s"] < BACK_S)
    expected = {k: v.copy() for k, v in columns.items()}
    expected["latency_ms"][left_out] = np.nan

    reported, wanted = (
        [(g.gate, g.side, g.log_e, g.n_canary, g.n_stable) for g in gates if not g.is_alarm]
        for gates in (live(columns, 2.0).report().gates, run(expected, POLICY, stages=ONE_STAGE).gates)
    )

    assert reported == wanted


@pytest.mark.slow
def test_an_overload_excludes_the_same_units_after_a_restart() -> None:
    columns = slow_while_one_is_lost()
    evaluator = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={})
    evaluator.set_current_load(2.0, since_s=LOST_S, at_s=LOST_S)
    evaluator = Evaluator.restore(POLICY, ONE_STAGE, evaluator.snapshot())
    for row in range(len(columns["t_s"])):
        evaluator.add(draw_at(columns, row))
    evaluator.advance(BACK_S, BACK_S)
    evaluator = Evaluator.restore(POLICY, ONE_STAGE, evaluator.snapshot())
    sides = latency_sides(evaluator.report())

    assert evaluator.pipeline.metrics["latency_ms"].counts[1] == np.sum(
        (columns["arm"] == 1) & (columns["t_s"] < LOST_S) & (columns["error"] == 0.0)
    )
    assert set(sides.values()) == {(Verdict.INVALID, "not comparable: canary load 2.0x stable's")}


@pytest.mark.slow
def test_an_overload_does_not_change_settled_units() -> None:
    columns = slow_while_one_is_lost()
    evaluator = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={})
    for row in range(len(columns["t_s"])):
        evaluator.add(draw_at(columns, row))
    evaluator.advance(LOST_S, LOST_S)
    evaluator.advance(1200.0, 1200.0)  # too few for a block: buffered, but settled
    evaluator.set_current_load(2.0, since_s=LOST_S, at_s=1200.0)
    evaluator.advance(BACK_S, BACK_S)
    evaluator.report()

    assert evaluator.pipeline.metrics["latency_ms"].counts[1] == np.sum(
        (columns["arm"] == 1) & (columns["t_s"] < 1200.0) & (columns["error"] == 0.0)
    )


@pytest.mark.slow
def test_harm_shown_before_an_overload_stays() -> None:
    columns = requests(1000, slower=2.0)
    evaluator = live(columns, 1.0)
    evaluator.set_current_load(float("inf"), since_s=float("inf"), at_s=float("inf"))
    report = evaluator.report()

    assert report.rollback is not None
    assert latency_sides(report)["latency_shape", "promotion"] == (
        Verdict.INVALID,
        "not comparable: no canary replica is ready",
    )


def test_flapping_adds_no_span_where_the_windows_touch() -> None:
    evaluator = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={})
    for now_s in range(100, 1100):
        evaluator.set_current_load(1.0 + now_s % 2, since_s=now_s - 10.0, at_s=float(now_s))

    assert evaluator.overloads == [[91.0, 1098.0 if evaluator.load_now == 1.0 else float("inf")]]
