"""Forecasts of stages: duration, detectable effects, refusals and their remedies."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from evaluation.forecast import simulation
from evaluation.forecast.detectable_effect import Baseline
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast, simulate_plan
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

POLICY = GatePolicy.default()


def forecast(
    stage: StagePlan, traffic: TrafficModel, *, held_s: float = 0.0, policy: GatePolicy = POLICY
) -> StageForecast:
    [only] = simulate_plan(policy, [stage], traffic, durations_s=[held_s], reps=6)
    return only


@pytest.mark.parametrize(("unit_requests", "times"), [(1.0, 1.0), (3.0, 1.0), (20.0, 3.490), (12.0, 2.387)])
def test_later_requests_of_long_conversations_need_more_units(unit_requests: float, times: float) -> None:
    """Of 20 turns, 60 % reach the second ten, 36 or 21 % the judged block of the next twenty."""
    assert simulation.units_for_later(unit_requests, 10) == pytest.approx(times, abs=1e-3)


def test_a_service_of_which_nothing_is_known_is_not_taken_to_reject_many() -> None:
    """At 2 %, "rejected < 3x" is proven in a third of what a service without rejections needs."""
    assert Baseline().rate_of("rejected") <= 0.001


@pytest.mark.slow
def test_a_first_stage_is_proven_in_a_few_hundred_requests() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(5.0))

    assert got.refusal is None
    assert got.requests_median is not None
    assert 450 <= got.requests_median <= 750  # "rejected < +0.01" of a service that rejects few


@pytest.mark.slow
def test_seconds_are_requests_at_the_stages_own_rate() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(5.0))

    assert got.requests_median is not None
    assert got.seconds_median == pytest.approx(got.requests_median / 0.5)


@pytest.mark.calibration
def test_a_stage_lasts_its_duration_even_when_proven_sooner() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(50.0), held_s=7200.0)

    assert (got.seconds_median, got.seconds_p90) == (7200.0, 7200.0)


@pytest.mark.calibration
def test_too_few_returning_users_for_a_proof_are_refused_with_a_remedy() -> None:
    got = forecast(StagePlan(0.02, 100), TrafficModel(5.0, users=2000))

    assert got.proven_ratio < 0.5
    assert got.requests_median is None
    assert got.refusal is not None
    assert got.refusal.startswith(
        "at 2 % 2000 returning users prove error in 0 of 6 runs within 50 min; raise"
    )
    assert got.refusal.endswith("let each request be its own unit, for a user counts once")


@pytest.mark.slow
def test_the_refusal_of_a_stage_below_min_canary_has_its_request_count() -> None:
    quality = POLICY.only("quality")
    [got] = simulate_plan(quality, [StagePlan(0.1, 900)], TrafficModel(5.0), deadlines_s=[1200.0], reps=6)

    assert got.refusal == (
        "at 10 % its units send 600 canary requests that count within 20 min, min_canary is 900; "
        "lower it to 600, or give it a deadline of 30 min, or raise its weight to 15 %"
    )


@pytest.mark.calibration
def test_the_published_example_is_refused() -> None:
    # 2000 returning users at 2 % prove quality in 8 % of runs (40 on the canary, five requests each).
    quality, day_s = POLICY.only("quality"), 86_400.0
    traffic = TrafficModel(5.0, users=2000, unit_requests=5)
    [got] = simulate_plan(
        quality, [StagePlan(0.02, 100)], traffic, durations_s=[day_s], deadlines_s=[3 * day_s]
    )

    assert 0 < got.proven_ratio < 0.2
    assert got.refusal is not None
    assert got.refusal.startswith(
        f"at 2 % 2000 returning users prove quality in {got.proven_runs} of {got.runs} "
    )


@pytest.mark.calibration
@pytest.mark.parametrize("way", ["deadline", "weight", "margins"])
def test_each_proposed_remedy_is_sufficient(way: str) -> None:
    def run(deadline_s: float, weight: float, margin: float) -> StageForecast:
        stage, policy = StagePlan(weight, 100, {"quality": margin}), POLICY.only("quality")
        [only] = simulate_plan(policy, [stage], TrafficModel(17.0), deadlines_s=[deadline_s], seed=7)
        return only

    refusal = run(240.0, 0.03, 0.03).refusal or ""
    proposed = {
        "deadline": re.search(r"give it a deadline of ([0-9.]+) min", refusal),
        "weight": re.search(r"raise its weight to ([0-9.]+) %", refusal),
        "margins": re.search(r"widen its margins to quality: ([0-9.]+)", refusal),
    }[way]
    assert proposed is not None, refusal
    value = float(proposed[1])
    better = {
        "deadline": (value * 60, 0.03, 0.03),
        "weight": (240.0, value / 100, 0.03),
        "margins": (240.0, 0.03, value),
    }[way]

    assert run(*better).proven_ratio > 0.7


@pytest.mark.calibration
def test_a_stage_that_was_not_simulated_to_its_deadline_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> StageForecast:
        quality, tight = POLICY.only("quality"), StagePlan(0.1, 100, {"quality": 0.015})
        [only] = simulate_plan(quality, [tight], TrafficModel(5.0), deadlines_s=[7200.0], reps=4)
        return only

    monkeypatch.setattr(simulation, "RUN_ROWS", 3000)
    short = run()

    assert (short.proven_runs, short.refusal) == (0, None)
    assert short.cut_at is not None
    assert 200 <= short.cut_at < 720
    monkeypatch.undo()
    assert run().proven_runs > 0


@pytest.mark.calibration
def test_runs_that_all_agree_are_not_repeated() -> None:
    sure = StagePlan(0.1, 2000, {"quality": 0.05})
    [got] = simulate_plan(POLICY.only("quality"), [sure], TrafficModel(5.0))
    open_stage = StagePlan(0.1, 100, {"quality": 0.05})
    [more] = simulate_plan(POLICY.only("quality"), [open_stage], TrafficModel(5.0))

    assert (got.runs, got.proven_runs) == (20, 20)
    assert more.runs > 20


@pytest.mark.calibration
def test_the_forecast_of_sticky_units_includes_the_end_of_their_sessions() -> None:
    quality = POLICY.only("quality")
    fast = forecast(StagePlan(0.1, 50), TrafficModel(5000.0, unit_requests=10), held_s=1.0, policy=quality)

    assert fast.seconds_median is None  # its deadline is a minute
    [slow] = simulate_plan(
        quality, [StagePlan(0.1, 50)], TrafficModel(5000.0, unit_requests=10), deadlines_s=[3600.0], reps=2
    )
    assert slow.seconds_median is not None
    assert 600 < slow.seconds_median < 620


@pytest.mark.calibration
def test_sticky_sessions_take_about_three_times_as_many_requests() -> None:
    quality = POLICY.only("quality")
    each = forecast(StagePlan(0.1, 50), TrafficModel(50.0), held_s=400.0, policy=quality)
    sticky = forecast(StagePlan(0.1, 50), TrafficModel(50.0, unit_requests=10), held_s=1200.0, policy=quality)

    assert each.requests_median is not None
    assert sticky.requests_median is not None
    assert sticky.requests_median > 1.5 * each.requests_median


@pytest.mark.calibration
def test_scores_of_some_answers_only_take_longer_to_prove() -> None:
    quality = POLICY.only("quality")
    whole, some = (
        forecast(StagePlan(0.1, 50), TrafficModel(50.0, judged_ratio=share), held_s=7200.0, policy=quality)
        for share in (1.0, 0.4)
    )

    assert whole.refusal is None
    assert some.refusal is None
    assert (whole.requests_p90 or 0.0) * 1.5 < (some.requests_p90 or 0.0)


@pytest.mark.calibration
def test_the_forecast_includes_the_wait_for_missing_scores() -> None:
    quality = POLICY.only("quality")
    stage, judged = StagePlan(0.1, 50), {"quality": 0.95}
    whole, some = (
        simulate_plan(quality, [stage], TrafficModel(5.0, judged=j), deadlines_s=[7200.0], reps=6)[0]
        for j in ({}, judged)
    )

    assert whole.seconds_median is not None
    assert some.seconds_median is not None
    assert some.seconds_median - whole.seconds_median > 500  # quality's deadline is 600 s


@pytest.mark.slow
def test_a_stage_without_proofs_only_needs_its_requests() -> None:
    got = forecast(StagePlan(0.1, 400, {}), TrafficModel(5.0))

    assert (got.proven_ratio, got.requests_p90, got.slowest_gate) == (1.0, 400.0, None)


@pytest.mark.slow
def test_a_stage_without_proofs_is_not_refused_for_its_length() -> None:
    [test] = simulate_plan(POLICY, [StagePlan(0.5, 10**9, {})], TrafficModel(5.0), deadlines_s=[3600.0])

    assert (test.refusal, test.proven_runs, test.seconds_median) == (None, 0, None)


@pytest.mark.slow
def test_a_longer_stage_detects_smaller_harm() -> None:
    short = forecast(StagePlan(0.1, 300, {}), TrafficModel(5.0))
    long = forecast(StagePlan(0.1, 300, {}), TrafficModel(5.0), held_s=7200.0)

    for few, many in zip(short.detectable, long.detectable, strict=True):
        assert few.harm is not None
        assert many.harm is not None
        assert many.harm < few.harm


@pytest.mark.calibration
def test_the_forecast_is_deterministic() -> None:
    policy = POLICY.only("error")
    plan = [StagePlan(0.1, 50)], TrafficModel(5.0, unit_requests=3)

    once, again = (simulate_plan(policy, *plan, deadlines_s=[900.0], reps=2) for _ in range(2))
    assert once == again


def test_alarms_have_no_detectable_effect() -> None:
    policy = replace(POLICY, gates=tuple(replace(g, alpha_share=0.0) for g in POLICY.gates))

    assert forecast(StagePlan(0.1, 200, {}), TrafficModel(5.0), policy=policy).detectable == ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"requests_per_s": 0.0}, "requests_per_s 0.0 is not above 0"),
        ({"requests_per_s": 1.0, "unit_requests": 0.5}, "unit_requests 0.5 is outside"),
        ({"requests_per_s": 1.0, "users": 1}, "users 1 is below 2"),
        ({"requests_per_s": 1.0, "judged_ratio": 0.0}, "judged_ratio 0.0 is outside"),
    ],
)
def test_invalid_traffic_is_refused(bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrafficModel(**bad)  # type: ignore[arg-type]


def test_each_stage_needs_a_duration() -> None:
    with pytest.raises(ValueError, match="1 durations for 2 stages"):
        simulate_plan(POLICY, [StagePlan(0.1, 1)] * 2, TrafficModel(1.0), durations_s=[0.0])
