"""Forecasts: when stages are proven, which are refused, and the traffic that they assume."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from controller.errors import BadInput
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from controller.planning.forecast import (
    TrafficOverrides,
    forecast,
    keyed_caution,
    refusals,
    traffic_model,
    underpowered_stages,
)
from controller.rollout.plan import Plan, Stage
from controller.spec.service import dump, parse_policy
from controller.views.plan import forecast_view
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

POLICY = parse_policy(
    {
        "name": "quality only",
        "gates": dict.fromkeys(
            ("error", "rejected", "latency_p99", "latency_shape", "ttft_shape", "hallucination")
        ),
        "stages": [{"weight": "10%", "min_canary": 150}],
    }
)


def plan(*, duration_s: float = 0.0) -> Plan:
    return Plan("medium", (), (Stage(1000, duration_s, 150, 900.0, 1),), 500, 7200.0)


def stage_forecast(traffic: TrafficModel, *, duration_s: float = 0.0) -> StageForecast:
    [only] = forecast(plan(duration_s=duration_s), POLICY, traffic, reps=8)
    return only


@pytest.mark.slow
def test_a_provable_stage_has_its_time_and_last_gate() -> None:
    stage = stage_forecast(TrafficModel(5.0))

    assert stage.seconds_median is not None
    assert 300 <= stage.seconds_median < 360
    assert (stage.slowest_gate, refusals([stage], plan(), POLICY, TrafficModel(5.0))) == ("quality", ())


@pytest.mark.slow
def test_a_stage_that_can_prove_nothing_is_refused_with_the_reason() -> None:
    traffic = TrafficModel(5.0, users=100)

    [line] = refusals([stage_forecast(traffic)], plan(), POLICY, traffic)

    assert line.startswith("stage 1: at 10 % 100 returning users prove quality in 0 of 8 runs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("session", "line"),
    [
        (
            "15m",
            "a user's requests count once the session has ended, session is 15 min and the deadline 15 min",
        ),
        ("5m", "prove quality in .*; 5 min of the 15 min to the deadline pass before a session ends"),
    ],
)
def test_a_refusal_of_sticky_units_names_the_session(session: str, line: str) -> None:
    policy, traffic = parse_policy({**dump(POLICY), "session": session}), TrafficModel(5.0, 3.0, 100)
    [stage] = forecast(plan(), policy, traffic, reps=8)

    [refusal] = refusals([stage], plan(), policy, traffic)

    assert re.search(line, refusal)
    assert "shorten session or raise the deadline in the policy" in refusal
    assert "units: request" not in refusal


@pytest.mark.slow
def test_users_who_ask_once_count_when_their_session_is_over() -> None:
    """With a session of 10 minutes and a deadline of two nothing counts in time, one request each or not."""
    policy = parse_policy({**dump(POLICY), "session": "15m"})
    keyed = replace(MEASURED, unit_requests=1.0, keyed_share=1.0)
    traffic = traffic_model(policy, keyed, 5.0, TrafficOverrides())
    [stage] = forecast(plan(), policy, traffic, reps=4)

    [refusal] = refusals([stage], plan(), policy, traffic)
    assert "a user's requests count once the session has ended" in refusal
    alone = traffic_model(policy, replace(keyed, keyed_share=0.2), 5.0, TrafficOverrides())
    assert not alone.is_sticky


def test_units_request_in_a_policy_counts_no_keyed_request_sooner() -> None:
    """The coin of a keyed request is its key's, whatever the policy calls it: it counts with its session."""
    by_request = parse_policy({**dump(POLICY), "units": "request", "session": "15m"})
    keyed = replace(MEASURED, unit_requests=1.0, keyed_share=0.6)

    assert traffic_model(by_request, keyed, 5.0, TrafficOverrides()).has_keys

    assert keyed_caution(by_request, keyed) == (
        "units: request does not change how the 60 % of requests whose unit is a key are drawn or counted: "
        "once their session has ended (15 min); leave it out, or shorten session",
    )
    assert keyed_caution(POLICY, keyed) == ()
    assert keyed_caution(by_request, replace(keyed, keyed_share=0.0)) == ()


@pytest.mark.slow
def test_a_refusal_of_single_requests_does_not_name_the_session() -> None:
    traffic = TrafficModel(0.05)
    [stage] = forecast(plan(), POLICY, traffic, reps=8)

    [refusal] = refusals([stage], plan(), POLICY, traffic)

    assert "session" not in refusal


@pytest.mark.slow
def test_the_minimum_detectable_effect_is_named_by_gate() -> None:
    [finds] = forecast_view(stage_forecast(TrafficModel(5.0)), 1000).finds

    assert finds.startswith("quality -0.")


def test_the_bake_is_not_forecast() -> None:
    assert len(forecast(plan(), POLICY, TrafficModel(5.0), reps=2)) == 1


def test_a_stage_with_too_few_requests_is_refused_without_a_simulation() -> None:
    assert underpowered_stages(plan(), POLICY, TrafficModel(10.0)) == ()

    [line] = underpowered_stages(plan(), POLICY, TrafficModel(0.01))

    assert line.startswith("stage 1: 10 % of 0.01 requests/s gives the canary 0.9 requests by the deadline")
    assert line.endswith("raise its weight or its deadline")


MEASURED = MeasuredBaseline(
    4120,
    {"error": 37, "truncated": 4},
    420.0,
    2100.0,
    0.6,
    {"quality": ScoreStats(3980, 0.7, 0.1, 0.97)},
    1.8,
)


def test_a_forecast_uses_the_measured_baseline() -> None:
    traffic = traffic_model(POLICY, MEASURED, 5.0, TrafficOverrides())

    assert traffic.baseline.rate_of("error") == pytest.approx(37.5 / 4121)
    assert (traffic.baseline.score_mean, traffic.baseline.score_sd) == (0.7, 0.1)
    assert (traffic.baseline.log_sd, traffic.unit_requests) == (0.6, 1.8)
    assert traffic.judged_of("quality") == 0.97


def test_given_traffic_takes_precedence_over_measured_traffic() -> None:
    traffic = traffic_model(POLICY, MEASURED, 5.0, TrafficOverrides(unit_requests=4.0, users=900))

    assert (traffic.unit_requests, traffic.users) == (4.0, 900)


def test_with_too_few_requests_typical_figures_are_used_and_the_summary_says_so() -> None:
    few = MeasuredBaseline(199, {"error": 100}, 420.0, 2100.0, 0.6, {}, 1.8)

    assert traffic_model(POLICY, few, 5.0, TrafficOverrides()) == TrafficModel(5.0)
    [line] = few.summary({"error", "quality"})
    assert line == (
        "measured over 199 requests, 200 are needed: typical figures are used (errors 1 %, quality 0.8)"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rate": -1}, "rate -1 is outside 1e-06..1e+06 requests/s"),
        ({"rate": 1e-320}, "rate 1e-320 is outside 1e-06..1e+06 requests/s"),
        ({"users": 1}, "users 1 is not a whole number from 2"),
        ({"users": 2.5}, "users 2.5 is not a whole number"),
        ({"users": True}, "users True is not a whole number"),
        ({"unit_requests": 0}, "unit_requests 0 is outside 1..10000"),
        ({"quick": "yes"}, "quick 'yes' is not true or false"),
    ],
)
def test_invalid_traffic_figures_are_refused_by_name(body: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        TrafficOverrides.parse(body)
