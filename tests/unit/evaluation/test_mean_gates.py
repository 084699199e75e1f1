"""Means of tokens and costs: gates, the budget alarm, and requests that have no answer, and so no size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.metrics import Kind
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.report import GateReport, Verdict
from evaluation.units.capped import WINDOW, Capped
from tests.fakes.evidence_maker import ONE_STAGE, Columns, requests, streamed
from tests.fakes.priced_maker import GATE, policy, priced

ROWS = 8_000


def report_of(result: BacktestResult, gate: str, side: str = "rollback") -> GateReport:
    return next(one for one in result.gates if (one.gate, one.side) == (gate, side))


def alarm_of(columns: Columns, metric: str = "cost") -> GateReport:
    return report_of(run(columns), f"{metric}_alarm")


@pytest.mark.parametrize("metric", ["cost", "tokens"])
def test_an_expected_cost_of_a_third_more_raises_the_budget_alarm(metric: str) -> None:
    alarm = alarm_of(priced(1.33, metric=metric), metric)

    assert alarm.decided_canary is not None
    assert alarm.verdict is Verdict.UNDECIDED  # it never decides
    assert "x, limit 1.2x" in alarm.reason
    assert alarm.statistic == "mean"


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.1])
def test_what_is_within_the_budget_raises_none(ratio: float) -> None:
    assert alarm_of(priced(ratio)).decided_canary is None


def test_what_is_no_chance_and_below_the_limit_raises_none() -> None:
    """15 % more is above the tolerance, and the coin shows it; the budget is 20 %."""
    alarm = alarm_of(priced(1.15, rows=40_000))

    assert alarm.log_e >= alarm.limit
    assert alarm.decided_canary is None
    assert "below the budget, 1.2x" in alarm.reason


def test_the_alarms_figures_are_means_in_the_metrics_unit() -> None:
    columns = priced(1.33)
    canary = columns["arm"] == 1

    alarm = alarm_of(columns)

    assert alarm.stable == pytest.approx(columns["cost"][~canary].mean(), rel=1e-6)
    assert alarm.canary == pytest.approx(columns["cost"][canary].mean(), rel=1e-6)


@pytest.mark.parametrize("kind", ["mean", "shape", "percentile"])
def test_a_failed_request_has_no_cost(kind: str) -> None:
    """A canary that fails 10 % of its requests, each answer as dear as stable's: error's business alone.

    Counted as the slowest, as a time is, the failures alone raised the alarm.
    """
    columns = priced(1.0)
    failed = (columns["arm"] == 1) & (np.random.default_rng(5).random(ROWS) < 0.1)
    columns["error"] = failed.astype(np.float64)
    columns["cost"] = np.where(failed, np.nan, columns["cost"])
    more = {"percentile": 0.95} if kind == "percentile" else {}

    result = run(columns, policy(kind=kind, alpha_share=0.0, **more).only("cost"))

    found = report_of(result, "cost")
    assert found.decided_canary is None
    assert found.log_e < found.limit / 2
    assert found.unanswered is None


def test_costs_of_failed_requests_do_not_count_where_a_file_has_some() -> None:
    columns = priced(1.0)
    failed = (columns["arm"] == 1) & (np.random.default_rng(5).random(ROWS) < 0.2)
    columns["error"] = failed.astype(np.float64)
    columns["cost"] = np.where(failed, 1.0, columns["cost"])

    assert alarm_of(columns).decided_canary is None


def test_a_gate_on_the_mean_rolls_back() -> None:
    result = run(priced(1.5), policy())

    assert (result.decision, result.metric) == ("rollback", "cost")
    assert report_of(result, "cost").reason == "cost above 1.1x shown by first requests"


def test_a_gate_on_the_mean_proves_its_margin() -> None:
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 1.2}),)

    cheap, dear = (run(priced(ratio), policy(), stages=stage) for ratio in (1.0, 1.19))

    assert (cheap.decision, list(cheap.proofs)) == ("promote", ["cost"])
    assert report_of(cheap, "cost", "promotion").limits == "< 1.2x"
    assert dear.decision != "promote"


def test_one_answer_that_costs_a_million_times_as_much_decides_nothing() -> None:
    columns = priced(1.0)
    columns["cost"][np.flatnonzero(columns["arm"] == 1)[500]] = 1000.0

    assert alarm_of(columns).decided_canary is None


def test_additional_answers_of_the_canary_are_no_harm() -> None:
    """Stable fails the dearest 8 %, the canary answers them."""
    columns = priced(1.0, rows=30_000)
    failed = (columns["arm"] == 0) & (columns["cost"] > np.quantile(columns["cost"], 0.92))
    columns["error"] = failed.astype(np.float64)
    columns["cost"] = np.where(failed, np.nan, columns["cost"])

    assert run(columns, policy()).decision != "rollback"


def test_a_canary_that_fails_the_dear_requests_is_not_proven_cheap() -> None:
    columns = priced(1.3)
    failed = (columns["arm"] == 1) & (columns["cost"] > np.quantile(columns["cost"], 0.9))
    columns["error"] = failed.astype(np.float64)
    columns["cost"] = np.where(failed, np.nan, columns["cost"])
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 1.2}),)

    assert "cost" not in run(columns, policy(), stages=stage).proofs


def test_a_mean_and_a_percentile_of_one_metric_are_gated_side_by_side() -> None:
    both = gate_policy_of(
        {
            "gates": {
                "quality": {"alpha_share": 0.1},
                "cost_p95": {**GATE, "kind": "percentile", "percentile": 0.95},
                "cost": GATE,
                "cost_shape": {**GATE, "kind": "shape", "alpha_share": 0.0},
            }
        }
    )

    result = run(priced(1.0), both)

    mean, tail = report_of(result, "cost"), report_of(result, "cost_p95")
    assert (mean.statistic, tail.statistic) == ("mean", "p95")
    assert mean.stable == report_of(run(priced(1.0), policy()), "cost").stable
    assert mean.log_e == report_of(run(priced(1.0), policy()), "cost").log_e


def test_a_mean_is_of_tokens_and_costs_alone() -> None:
    with pytest.raises(PolicyError, match="kind mean does not fit latency_ms; use shape or percentile"):
        gate_policy_of({"gates": {"slow": {**GATE, "metric": "latency_ms", "alpha_share": 0.0}}})


def test_unequal_load_makes_no_cost_incomparable() -> None:
    evaluator = Evaluator.start(policy(), stages=ONE_STAGE, seed_latency_ms={})
    evaluator.set_current_load(4.0, since_s=0.0, at_s=1.0)

    gates = {one.gate: one.verdict for one in evaluator.report().gates}

    assert (gates["cost"], gates["latency_p99"]) == (Verdict.UNDECIDED, Verdict.INVALID)


def test_the_caps_are_of_stables_values_before_however_blocks_are_cut() -> None:
    rng = np.random.default_rng(1)
    raw, arm = rng.lognormal(0.0, 1.0, 1500), rng.random(1500) < 0.3
    raw[::7], raw[500], raw[900:] = np.nan, 1e6, 30.0 * raw[900:]
    whole, cut = Capped(), Capped()

    at_once = whole.parts(raw, arm)
    in_parts = np.hstack([cut.parts(raw[i : i + 37], arm[i : i + 37]) for i in range(0, 1500, 37)])

    np.testing.assert_array_equal(at_once, in_parts)
    of_stable = np.flatnonzero(~arm & ~np.isnan(raw))[:WINDOW]
    first = 2 * np.sort(raw[of_stable])[int(np.ceil(0.99 * WINDOW)) - 1]
    assert np.isnan(at_once[:, : of_stable[-1] + 1]).all()
    np.testing.assert_array_equal(at_once[0, 499:502], np.minimum(raw[499:502] / first, 1.0))
    assert whole.cap > 10.0 * first


def test_values_beyond_the_cap_are_missing_on_both_arms_until_it_is_learned_anew() -> None:
    capped, window = Capped(), np.linspace(1.0, WINDOW, WINDOW)
    arm = np.arange(3 * WINDOW) % 2 == 0
    capped.seed(window)

    parts = capped.parts(np.full(3 * WINDOW, 1000.0), arm)[0]

    compared = np.flatnonzero(~np.isnan(parts))
    assert len(compared[compared < WINDOW]) == 18  # nine of stable are more than 4 % of a window
    assert np.isnan(parts[20 : 2 * WINDOW]).all()
    assert set(parts[2 * WINDOW :]) == {0.5}


def test_of_nothing_but_zeros_there_is_no_cap() -> None:
    capped = Capped()

    assert np.isnan(capped.parts(np.zeros(3 * WINDOW), np.zeros(3 * WINDOW, dtype=bool))).all()


def short_first(ratio: float, *, short: int = 300, rows: int = ROWS) -> Columns:
    """A batch client's short answers at first, then answers ten times as dear."""
    columns = priced(ratio, rows=rows)
    columns["cost"][short:] *= 10.0
    return columns


def test_a_start_of_short_answers_hides_no_dearer_canary() -> None:
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 1.3}),)

    dear, equal = (run(short_first(ratio), policy(), stages=stage) for ratio in (1.5, 1.0))

    assert (dear.decision, dear.metric) == ("rollback", "cost")
    assert (equal.decision, list(equal.proofs)) == ("promote", ["cost"])


def test_a_start_of_short_answers_silences_no_alarm() -> None:
    assert alarm_of(short_first(1.5)).decided_canary is not None


def test_nothing_is_proven_while_an_arms_values_are_at_the_cap() -> None:
    """The canary's rare long answers alone are twice as long; up to the cap, both arms are alike."""
    columns = priced(1.0)
    is_long = np.random.default_rng(3).random(ROWS) < 0.03
    is_canary = columns["arm"] == 1
    columns["cost"][is_long & is_canary] *= 60.0
    stage = (replace(ONE_STAGE[0], weight=0.2, margins={"cost": 4.0}),)

    proof = report_of(run(columns, policy(), stages=stage), "cost", "promotion")

    assert proof.verdict is not Verdict.PASS
    assert "of the canary's values are above the cap" in proof.reason


def test_a_cheaper_canary_that_mends_rare_runaways_is_not_rolled_back() -> None:
    """Stable runs on in 0.8 % of its answers, at 50 usual ones each; the others of the canary are 1.25x."""
    columns = priced(1.25, rows=20_000)
    runs_on = (np.random.default_rng(4).random(20_000) < 0.008) & (columns["arm"] == 0)
    columns["cost"][runs_on] = 0.05

    result = run(columns, policy())

    found = report_of(result, "cost")
    assert found.canary is not None
    assert found.stable is not None
    assert found.canary < found.stable
    assert result.decision != "rollback"


def test_rate_limits_are_counted_though_such_a_request_has_no_answer() -> None:
    columns = requests(ROWS, error=(0.01, 0.01))
    del columns["quality"], columns["hallucinated"], columns["latency_ms"]
    limited = (columns["arm"] == 1) & (np.random.default_rng(3).random(ROWS) < 0.05)
    columns["rate_limited"] = limited.astype(np.float64)
    columns["error"] = np.maximum(columns["error"], limited)

    alarm = alarm_of(columns, "rate_limited")

    assert alarm.decided_canary is not None
    assert alarm.canary == pytest.approx(limited[columns["arm"] == 1].mean())
    assert alarm.stable == 0.0


def test_the_alarms_of_sizes_are_of_means() -> None:
    kinds = {gate.metric: gate.kind for gate in GatePolicy.default().with_alarms().gates}

    assert (kinds["tokens"], kinds["cost"], kinds["itl_ms"]) == (Kind.MEAN, Kind.MEAN, Kind.SHAPE)


def test_a_snapshot_goes_on_with_the_same_bits() -> None:
    columns = priced(1.2, rows=1500)
    whole = streamed(columns, policy())
    again = Evaluator.restore(policy(), ONE_STAGE, whole.snapshot())

    assert again.report() == whole.report()


def test_a_gate_of_the_users_with_another_limit_takes_the_alarms_place() -> None:
    own = policy(alpha_share=0.0, threshold=0.5, tolerance=0.25)

    assert report_of(run(priced(1.33), own), "cost").decided_canary is None
    assert "cost_alarm" not in {one.gate for one in run(priced(1.33), own).gates}
