"""What `plan` says of time: lines that a person can act on."""

from __future__ import annotations

from controller.forecast import blind_stages, forecast, refusals
from controller.spec import parse_policy
from controller.state import Plan, Stage
from controller.view import ForecastView
from evaluation.plan_power import TrafficModel

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
    assert "stage 1: at 10 % 100 returning users prove quality in 0% of runs" in str(view)


def test_what_a_stage_finds_is_named_by_gate() -> None:
    [finds] = stage(TrafficModel(5.0)).finds

    assert finds.startswith("quality -0.")


def test_the_bake_is_not_forecast() -> None:
    assert len(forecast(plan(), POLICY, TrafficModel(5.0), reps=2)) == 1


def test_a_stage_that_sees_next_to_nothing_is_refused_without_simulating() -> None:
    assert blind_stages(plan(), POLICY, 10.0) == ()

    [line] = blind_stages(plan(), POLICY, 0.01)

    assert line.startswith("stage 1: at 10 % of 0.01 requests/s it sees 0.9 canary requests by its deadline")
    assert line.endswith("raise its weight or its deadline")
