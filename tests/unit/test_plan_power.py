"""Forecasts of a plan: how long, what it finds, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.plan_power import StageForecast, TrafficModel, simulate_plan
from evaluation.policy import GatePolicy, StagePlan

POLICY = GatePolicy.default()


def forecast(
    stage: StagePlan, traffic: TrafficModel, *, held_s: float = 0.0, policy: GatePolicy = POLICY
) -> StageForecast:
    [only] = simulate_plan(policy, [stage], traffic, durations_s=[held_s], reps=6)
    return only


def test_a_first_stage_is_proven_in_a_few_hundred_requests() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(5.0))

    assert got.refusal is None
    assert got.requests_median is not None
    assert 300 <= got.requests_median <= 500


def test_time_is_requests_at_the_stages_own_rate() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(5.0))

    assert got.requests_median is not None
    assert got.seconds_median == pytest.approx(got.requests_median / 0.5)


def test_a_stage_is_held_for_its_duration_even_when_proven_sooner() -> None:
    got = forecast(StagePlan(0.1, 300), TrafficModel(50.0), held_s=7200.0)

    assert (got.seconds_median, got.seconds_p90) == (7200.0, 7200.0)


def test_returning_users_that_cannot_carry_the_proof_are_refused_with_the_remedy() -> None:
    got = forecast(StagePlan(0.02, 100), TrafficModel(5.0, users=2000))

    assert got.proven_ratio < 0.5
    assert got.requests_median is None
    assert got.refusal is not None
    assert got.refusal.startswith("at 2 % 2000 returning users prove ")
    assert "draw per request (affinity off)" in got.refusal


def test_sticky_sessions_take_about_three_times_as_many_requests() -> None:
    quality = POLICY.only("quality")
    each = forecast(StagePlan(0.1, 50), TrafficModel(50.0), held_s=400.0, policy=quality)
    sticky = forecast(StagePlan(0.1, 50), TrafficModel(50.0, unit_requests=10), held_s=400.0, policy=quality)

    assert each.requests_median is not None
    assert sticky.requests_median is not None
    assert sticky.requests_median > 1.5 * each.requests_median


def test_a_tenth_of_the_answers_judged_delays_the_proof_of_quality() -> None:
    quality = POLICY.only("quality")
    whole = forecast(StagePlan(0.1, 50), TrafficModel(50.0), held_s=400.0, policy=quality)
    tenth = forecast(StagePlan(0.1, 50), TrafficModel(50.0, judged_ratio=0.1), held_s=400.0, policy=quality)

    assert whole.requests_median is not None
    assert tenth.requests_median is None or tenth.requests_median > 2 * whole.requests_median


def test_a_stage_that_has_nothing_to_prove_waits_for_its_requests_alone() -> None:
    got = forecast(StagePlan(0.1, 400, {}), TrafficModel(5.0))

    assert (got.proven_ratio, got.requests_p90, got.slowest_gate) == (1.0, 400.0, None)


def test_a_longer_stage_finds_smaller_harm() -> None:
    short = forecast(StagePlan(0.1, 300, {}), TrafficModel(5.0))
    long = forecast(StagePlan(0.1, 300, {}), TrafficModel(5.0), held_s=7200.0)

    for few, many in zip(short.finds, long.finds, strict=True):
        assert few.harm is not None
        assert many.harm is not None
        assert many.harm < few.harm


def test_the_same_question_has_the_same_answer() -> None:
    policy = POLICY.only("error")
    asked = [StagePlan(0.1, 50)], TrafficModel(5.0, unit_requests=3)

    assert simulate_plan(policy, *asked, reps=2) == simulate_plan(policy, *asked, reps=2)


def test_alarms_are_not_promised_to_find_anything() -> None:
    policy = replace(POLICY, gates=tuple(replace(g, alpha_share=0.0) for g in POLICY.gates))

    assert forecast(StagePlan(0.1, 200, {}), TrafficModel(5.0), policy=policy).finds == ()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"requests_per_s": 0.0}, "requests_per_s 0.0 is not above 0"),
        ({"requests_per_s": 1.0, "unit_requests": 0.5}, "unit_requests 0.5 is outside"),
        ({"requests_per_s": 1.0, "users": 1}, "users 1 is below 2"),
        ({"requests_per_s": 1.0, "judged_ratio": 0.0}, "judged_ratio 0.0 is outside"),
    ],
)
def test_traffic_that_cannot_be_is_refused(bad: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrafficModel(**bad)  # type: ignore[arg-type]


def test_a_duration_for_each_stage_is_asked_for() -> None:
    with pytest.raises(ValueError, match="1 durations for 2 stages"):
        simulate_plan(POLICY, [StagePlan(0.1, 1)] * 2, TrafficModel(1.0), durations_s=[0.0])
