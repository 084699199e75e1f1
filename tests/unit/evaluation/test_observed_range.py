"""Observed ranges: the canary's percentiles against the range of stable's between two dates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evaluation.evaluator import Evaluator
from evaluation.observed_range import ObservedRange, RangeMonitor, log_wealth, observe_range
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.observed_ranges import PercentileRange, RangeGate
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.report import GateReport, Verdict
from tests.fakes.evidence_maker import ONE_STAGE, Columns, requests, sticky, streamed

HOUR_S = 3600.0
# Of lognormal(6, 0.4), as `requests` makes latencies: p50 403 ms, p90 674 ms, p95 779 ms.
RANGE = RangeGate(
    "latency_range",
    "latency_ms",
    (
        PercentileRange(0.5, 390.0, 420.0),
        PercentileRange(0.9, 650.0, 700.0),
        PercentileRange(0.95, 740.0, 830.0),
    ),
    alpha_share=0.1,
    since="2026-05-01",
    until="2026-05-02",
)


def stable_day(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t_s = np.sort(rng.uniform(0, 24 * HOUR_S, 12_000))
    wave = 0.2 * np.sin(2 * np.pi * t_s / (24 * HOUR_S))
    return t_s, np.exp(np.log(800) + wave + 0.5 * rng.standard_normal(len(t_s)))


def observed() -> ObservedRange:
    t_s, y = stable_day()
    return observe_range(t_s, y, since_s=0.0, until_s=24 * HOUR_S)


def monitor(sides: str = "both") -> RangeMonitor:
    return RangeMonitor(RangeGate("r", "latency_ms", observed().ranges, sides=sides), alpha=0.01)


def verdicts(of: RangeMonitor, values: np.ndarray) -> list[Verdict]:
    of.add(values)
    return [estimate.verdict for estimate in of.estimates()]


def canary(scale: float, n: int, seed: int = 1) -> np.ndarray:
    return np.asarray(scale * np.exp(np.log(800) + 0.5 * np.random.default_rng(seed).standard_normal(n)))


def test_the_range_spans_each_windows_percentile() -> None:
    t_s, y = stable_day()
    by_hour = [np.quantile(y[(t_s >= h * HOUR_S) & (t_s < (h + 1) * HOUR_S)], 0.9) for h in range(24)]

    p90 = observed().ranges[1]
    assert (p90.low, p90.high) == (min(by_hour), max(by_hour))


def test_a_canary_like_stable_passes_every_percentile() -> None:
    assert verdicts(monitor(), canary(1.0, 3000)) == [Verdict.PASS] * 3


def test_a_canary_twice_as_slow_is_outside_at_every_percentile() -> None:
    assert verdicts(monitor(), canary(2.0, 400)) == [Verdict.FAIL] * 3


def test_no_answers_decide_nothing() -> None:
    assert verdicts(monitor(), canary(1.0, 0)) == [Verdict.UNDECIDED] * 3


def test_a_faster_canary_is_inside_only_with_the_side_above() -> None:
    assert verdicts(monitor("above"), canary(0.4, 800)) == [Verdict.PASS] * 3
    assert verdicts(monitor("both"), canary(0.4, 800)) == [Verdict.FAIL] * 3


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("more", [True, False])
def test_at_the_end_of_the_range_the_wealth_has_mean_one(rate: float, more: bool) -> None:
    """Exact: over scipy's binomial of the number of 80 answers beyond the end."""
    hits = np.arange(81)
    wealth = np.exp(log_wealth(hits, np.full(81, 80), rate, more=more))

    assert float(stats.binom.pmf(hits, 80, rate) @ wealth) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.slow
def test_the_percentile_interval_inverts_the_range_test() -> None:
    """A range that begins above the interval is rejected, one that begins within it is not."""
    values = canary(1.0, 2000)
    range_monitor = monitor()
    range_monitor.add(values)
    p95 = range_monitor.estimates()[2]

    def is_outside(low: float) -> bool:
        moved = replace(p95.range, low=low, high=low * 2)
        ranges = (*observed().ranges[:2], moved)
        other = RangeMonitor(replace(range_monitor.gate, ranges=ranges), alpha=0.01)
        return verdicts(other, values)[2] is Verdict.FAIL

    assert p95.low < np.quantile(values, 0.95) < p95.high
    assert (is_outside(p95.high * 1.001), is_outside(p95.high / 1.02)) == (True, False)

    def is_above(high: float) -> bool:
        ranges = (*observed().ranges[:2], replace(p95.range, low=0.0, high=high))
        other = RangeMonitor(replace(range_monitor.gate, ranges=ranges), alpha=0.01)
        return verdicts(other, values)[2] is Verdict.FAIL

    assert (is_above(p95.low / 1.001), is_above(p95.low * 1.02)) == (True, False)


@pytest.mark.parametrize("value", [1000.5, 899.5])
def test_an_estimate_outside_lies_outside_the_range(value: float) -> None:
    """All values within the 1 % bin of the end of the range."""
    range_monitor = RangeMonitor(
        RangeGate("r", "latency_ms", (PercentileRange(0.5, 900.0, 1000.0),)), alpha=0.01
    )
    range_monitor.add(np.full(100, value))
    estimate = range_monitor.estimates()[0]

    assert estimate.verdict is Verdict.FAIL
    assert (estimate.low, estimate.high)[value < 900.0] == (1000.0 if value > 1000.0 else 900.0)


def test_the_alpha_of_a_range_is_split_over_its_percentiles_and_sides() -> None:
    limits = [
        RangeMonitor(RangeGate("r", "latency_ms", RANGE.ranges[:count], sides=sides), alpha=0.01).limit
        for count, sides in ((3, "both"), (3, "above"), (1, "above"))
    ]

    assert limits == [math.log(6 / 0.01), math.log(3 / 0.01), math.log(1 / 0.01)]


def test_one_window_is_not_enough_for_a_range() -> None:
    t_s, y = stable_day()

    with pytest.raises(
        ValueError, match="windows of 3600 s that hold 50 answers: 1, needed 3; choose dates further"
    ):
        observe_range(t_s, y, since_s=0.0, until_s=HOUR_S)


def test_a_rarer_percentile_needs_more_answers() -> None:
    t_s, y = stable_day()

    with pytest.raises(ValueError, match="windows of 3600 s that hold 2500 answers: 0"):
        observe_range(t_s, y, since_s=0.0, until_s=24 * HOUR_S, percentiles=[0.999])


def test_the_ends_of_few_windows_are_order_statistics() -> None:
    """Of 1..100 in each of 3 windows, at SHORT ** (1 / 3) = 0.0464: binomial tables give 42 and 59."""
    t_s, y = np.arange(300) * 36.0, np.tile(np.arange(1.0, 101.0), 3)

    p50 = observe_range(t_s, y, since_s=0.0, until_s=3 * HOUR_S).ranges[0]
    assert (p50.low, p50.high) == (42.0, 59.0)


def falsely_outside(windows: int, answers: int, seed: int) -> bool:
    """Whether a canary like stable is shown outside the range of so many windows of so many answers."""
    rng = np.random.default_rng(seed)
    t_s = (np.arange(windows * answers) + 0.5) * HOUR_S / answers
    y = 800 * np.exp(0.5 * rng.standard_normal((windows * answers) + 6000))
    ranges = observe_range(t_s, y[: windows * answers], since_s=0.0, until_s=windows * HOUR_S).ranges
    of = RangeMonitor(RangeGate("r", "latency_ms", ranges, on_outside="rollback"), alpha=0.0005)
    of.add(y[windows * answers :])
    return of.peak >= of.limit


@pytest.mark.slow
@pytest.mark.parametrize(("windows", "answers"), [(3, 80), (3, 300), (6, 100)])
def test_a_canary_like_stable_is_not_outside_the_range_of_few_windows(windows: int, answers: int) -> None:
    assert not any(falsely_outside(windows, answers, seed) for seed in range(40))


@pytest.mark.parametrize("bad", [float("nan"), -1.0])
def test_bad_values_are_refused_and_change_nothing(bad: float) -> None:
    range_monitor = monitor()

    with pytest.raises(ValueError, match="not a number of at least 0"):
        range_monitor.add(np.array([700.0, bad]))
    assert range_monitor.n == 0


def policy_of(**changes: object) -> GatePolicy:
    """The range and the default gates of latency and errors, without margins to prove."""
    base = GatePolicy.default().only("latency_ms", "error")
    rungs = (replace(base.rungs[0], margins={}),)
    return replace(base, rungs=rungs, observed_ranges=(replace(RANGE, **changes),))  # type: ignore[arg-type]


def judged(columns: Columns, **changes: object) -> tuple[BacktestResult, GateReport]:
    result = run(columns, policy_of(**changes), stages=ONE_STAGE)
    return result, next(report for report in result.gates if report.gate == RANGE.name)


def slower_both(factor: float, rows: int = 3000) -> Columns:
    """Both arms equal, and slower than the range: what every other gate cancels."""
    columns = requests(rows, before=500)
    return {**columns, "latency_ms": columns["latency_ms"] * factor}


@pytest.mark.slow
def test_a_canary_outside_the_range_holds_and_the_reason_has_both_ranges() -> None:
    result, report = judged(slower_both(1.6))

    assert result.decision == "invalid"
    assert report.verdict is Verdict.INVALID
    assert result.reasons == (f"latency_range: {report.reason}",)
    assert report.reason.startswith("p50 ")
    assert report.reason.endswith(" ms, stable showed 740..830 ms between 2026-05-01 and 2026-05-02")


@pytest.mark.slow
def test_a_range_rolls_back_with_on_outside_rollback() -> None:
    result, report = judged(slower_both(1.6), on_outside="rollback")

    assert (result.decision, result.metric) == ("rollback", "latency_ms")
    assert (report.side, report.verdict) == ("rollback", Verdict.FAIL)
    assert report.decided_canary == result.canary_requests < 150


@pytest.mark.slow
def test_a_canary_inside_the_range_neither_holds_nor_needs_a_proof() -> None:
    few, undecided = judged(requests(1000, before=500))
    many, inside = judged(requests(60_000, before=500))

    assert (undecided.verdict, inside.verdict) == (Verdict.UNDECIDED, Verdict.PASS)
    assert (few.decision, many.decision) == ("undecided", "undecided")
    assert not any("latency_range" in reason for reason in (*few.reasons, *many.reasons))


def test_a_range_holds_when_its_metric_stops_arriving() -> None:
    columns = requests(3000, before=500)
    columns["latency_ms"][1000:] = np.nan
    result, report = judged(columns)

    assert (result.decision, report.verdict) == ("invalid", Verdict.INVALID)
    assert "latency_range: stopped arriving" in " ".join(result.reasons)


@pytest.mark.slow
def test_failed_requests_do_not_count_as_fast() -> None:
    columns = requests(3000, before=500, error=(0.4, 0.4))
    columns["latency_ms"] = np.where(columns["error"] == 1.0, 1.0, columns["latency_ms"])

    assert judged(columns)[1].log_e < 3.0


@pytest.mark.slow
def test_a_unit_of_the_canary_counts_once() -> None:
    columns = sticky(3000, people=300, error=(0.0, 0.0))
    people = len(np.unique(columns["unit"][columns["arm"] == 1]))

    assert judged(columns)[1].n_canary == people


@pytest.mark.slow
def test_stables_values_are_not_tested_against_the_range() -> None:
    columns = requests(3000, before=500)
    slow = np.where(columns["arm"] == 0, 3.0, 1.0)

    assert judged({**columns, "latency_ms": columns["latency_ms"] * slow})[1].log_e < 3.0


def test_a_range_without_its_column_is_not_tested() -> None:
    columns = {name: column for name, column in requests(1000).items() if name != "latency_ms"}

    assert policy_of().only("error").observed_ranges == ()
    reports = run(columns, policy_of(), stages=ONE_STAGE).gates
    assert [report.gate for report in reports if "range" in report.gate] == []


TRAFFIC = {
    "inside": lambda: requests(2500, before=300),
    "slower": lambda: requests(2500, before=300, slower=1.3),
    "sticky": lambda: sticky(2500, people=400, before=0, slower=1.5),
}


@pytest.mark.calibration
@pytest.mark.parametrize("on_outside", ["hold", "rollback"])
@pytest.mark.parametrize("case", TRAFFIC)
def test_a_live_range_with_restarts_reports_the_same_as_a_backtest(case: str, on_outside: str) -> None:
    columns, policy = TRAFFIC[case](), policy_of(on_outside=on_outside)
    ranged = [
        [gate for gate in report.gates if gate.gate == RANGE.name]
        for report in (
            run(columns, policy, stages=ONE_STAGE),
            streamed(columns, policy, max_batch=50).report(),
            streamed(columns, policy, max_batch=300, reload_ratio=0.5).report(),
        )
    ]

    assert ranged[0] == ranged[1] == ranged[2]
    assert len(ranged[0]) == 1


@pytest.mark.slow
def test_a_snapshot_keeps_the_range_to_the_bit() -> None:
    policy = policy_of()
    before = streamed(TRAFFIC["slower"](), policy)
    after = Evaluator.restore(policy, ONE_STAGE, before.snapshot())

    assert after.report() == before.report()
    assert after.snapshot() == before.snapshot()


@pytest.mark.slow
def test_a_canary_outside_the_range_makes_a_live_stage_invalid() -> None:
    report = streamed(slower_both(1.6), policy_of()).report()

    assert report.stage_verdict is Verdict.INVALID
    assert any(reason.startswith("latency_range: p50 ") for reason in report.missing)


def test_a_policy_with_ranges_is_parsed_back_from_its_mapping() -> None:
    policy = policy_of(on_outside="rollback", sides="above")

    assert parse_gate_policy(policy.to_mapping()) == policy
    assert policy.digest() != policy_of().digest()


def test_a_policy_without_ranges_keeps_its_former_digest() -> None:
    assert "observed_ranges" not in GatePolicy.default().to_mapping()


def test_the_alpha_share_of_a_range_counts_towards_the_limit() -> None:
    with pytest.raises(
        PolicyError, match=r"gates\..*alpha_share and observed_ranges\..* add up to 1\.1, limit"
    ):
        replace(GatePolicy.default(), observed_ranges=(RANGE,))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"ranges": {"p50": [1, 2]}}, "observed_ranges.r.metric is missing"),
        ({"metric": "latency_ms"}, "observed_ranges.r.ranges is missing"),
        ({"metric": "error", "ranges": {"p50": [1, 2]}}, "'error' has no percentiles; use one of cost"),
        ({"metric": "cost", "ranges": {}}, "ranges is empty"),
        ({"metric": "cost", "ranges": {"q50": [1, 2]}}, "q50 is not a percentile; write p50"),
        ({"metric": "cost", "ranges": {"p0": [1, 2]}}, "percentile 0.0 is outside"),
        ({"metric": "cost", "ranges": {"p50": [2, 1]}}, r"p50 \[2, 1\] is not a range"),
        ({"metric": "cost", "ranges": {"p50": [1]}}, r"p50 \[1\] is not two values"),
        ({"metric": "cost", "ranges": {"p50": [1, float("nan")]}}, "p50 nan is not a finite number"),
        (
            {"metric": "cost", "ranges": {"p50": [1, 2]}, "alpha_share": 0},
            r"alpha_share 0 is outside \(0, 1\]",
        ),
        ({"metric": "cost", "ranges": {"p50": [1, 2]}, "on_outside": "page"}, "use hold or rollback"),
        ({"metric": "cost", "ranges": {"p50": [1, 2]}, "sides": "below"}, "use both or above"),
        ({"metric": "cost", "ranges": {"p50": [1, 2]}, "colour": 1}, "colour is unknown; use one of metric"),
    ],
)
def test_an_invalid_range_is_refused_by_its_key(entry: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_gate_policy({"observed_ranges": {"r": entry}})


def test_a_range_with_the_name_of_a_gate_is_refused() -> None:
    with pytest.raises(PolicyError, match="is the name of another gate"):
        replace(policy_of(), observed_ranges=(replace(RANGE, name="error"),))
