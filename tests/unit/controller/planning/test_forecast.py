"""What `plan` says of time: lines that a person can act on."""

from __future__ import annotations

import re

import pytest

from controller.errors import BadInput
from controller.planning.baseline import Measured, Scored
from controller.planning.forecast import AskedTraffic, blind_stages, forecast, refusals, traffic_model
from controller.rollout.plan import Plan, Stage
from controller.spec.service import parse_policy
from controller.views.models import ForecastView
from evaluation.forecast.simulation import TrafficModel

POLICY = parse_policy(
    {
        "name": "quality only",
        "gates": dict.fromkeys(("error", "latency_p99", "latency_shape", "ttft_shape", "hallucination")),
        "stages": [{"weight": "10%", "min_canary": 150}],
    }
)


def plan(*, duration_s: float = 0.0) -> Plan:
    return Plan("medium", (), (Stage(1000, duration_s, 150, 900.0, 1),), 500, 7200.0)


def stage(traffic: TrafficModel, *, duration_s: float = 0.0) -> ForecastView:
    [only] = forecast(plan(duration_s=duration_s), POLICY, traffic, reps=8)
    return only


def test_a_stage_that_can_be_proven_says_when() -> None:
    line = str(stage(TrafficModel(5.0)))

    assert line.startswith("stage 1 at 10 %: proven after 5 min")
    assert line.endswith("last by quality")


def test_a_stage_that_can_prove_nothing_says_why_and_what_to_do() -> None:
    view = stage(TrafficModel(5.0, users=100))

    assert refusals([view]) == (f"stage 1: {view.refusal}",)
    assert "stage 1: at 10 % 100 returning users prove quality in 0 of 8 runs" in str(view)


def test_what_a_stage_finds_is_named_by_gate() -> None:
    [finds] = stage(TrafficModel(5.0)).finds

    assert finds.startswith("quality -0.")


def test_the_bake_is_not_forecast() -> None:
    assert len(forecast(plan(), POLICY, TrafficModel(5.0), reps=2)) == 1


def test_a_stage_that_sees_next_to_nothing_is_refused_without_simulating() -> None:
    assert blind_stages(plan(), POLICY, TrafficModel(10.0)) == ()

    [line] = blind_stages(plan(), POLICY, TrafficModel(0.01))

    assert line.startswith("stage 1: at 10 % of 0.01 requests/s it sees 0.9 canary requests by its deadline")
    assert line.endswith("raise its weight or its deadline")


MEASURED = Measured(
    4120,
    {"error": 37, "truncated": 4},
    420.0,
    2100.0,
    0.6,
    {"quality": Scored(3980, 0.7, 0.1, 0.97)},
    1.8,
)


def test_a_forecast_stands_on_what_was_measured() -> None:
    traffic = traffic_model(POLICY, MEASURED, 5.0, AskedTraffic())

    assert traffic.baseline.rate_of("error") == pytest.approx(37.5 / 4121)
    assert (traffic.baseline.score_mean, traffic.baseline.score_sd) == (0.7, 0.1)
    assert (traffic.baseline.log_sd, traffic.unit_requests) == (0.6, 1.8)
    assert traffic.judged_of("quality") == 0.97


def test_what_was_asked_goes_before_what_was_measured() -> None:
    traffic = traffic_model(POLICY, MEASURED, 5.0, AskedTraffic(unit_requests=4.0, users=900))

    assert (traffic.unit_requests, traffic.users) == (4.0, 900)


def test_too_few_requests_are_no_measurement_and_the_line_says_so() -> None:
    few = Measured(199, {"error": 100}, 420.0, 2100.0, 0.6, {}, 1.8)

    assert traffic_model(POLICY, few, 5.0, AskedTraffic()) == TrafficModel(5.0)
    [line] = few.lines({"error", "quality"})
    assert line.startswith("measured over 199 requests, 200 are needed: taken as typical (errors 1 %, ")


def test_the_lines_say_what_was_measured_and_what_is_typical() -> None:
    assert MEASURED.lines({"error", "quality", "hallucinated"}) == (
        "measured over 4,120 requests: errors 0.9 %, latency p50 420 ms, p99 2.1 s",
        "hallucinated: 0 scores, 100 are needed: taken as 3 %, every answer scored",
        "quality 0.7 (spread 0.1) over 3,980 scores, of 97 % of the answers",
    )


def test_scores_of_right_and_wrong_give_a_baseline_that_can_be() -> None:
    exact = Measured(500, scores={"quality": Scored(400, 0.9, 0.3, None)}).baseline({"quality"})

    assert exact.score_mean == 0.9
    assert 0.29 < exact.score_sd < 0.3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rate": -1}, "rate -1 is not above 0"),
        ({"users": 1}, "users 1 is no whole number from 2"),
        ({"users": 2.5}, "users 2.5 is no whole number"),
        ({"users": True}, "users True is no whole number"),
        ({"unit_requests": 0}, "unit_requests 0 is outside 1..10000"),
        ({"quick": "yes"}, "quick 'yes' is not true or false"),
    ],
)
def test_traffic_that_cannot_be_is_refused_by_name(body: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        AskedTraffic.of(body)
