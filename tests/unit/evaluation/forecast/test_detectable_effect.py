"""Minimum detectable effects agree with simulations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evaluation.betting.bettors import LossBettor, loss_bettor
from evaluation.forecast import detectable_effect
from evaluation.forecast.detectable_effect import Baseline, _beta_grid, detectable_effects, units_to_detect
from evaluation.metrics import Kind
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units import gate_channels

FOUR = ("error", "latency_shape", "quality", "hallucination")
BASELINE = Baseline(score_mean=0.75)


def equal_four(policy: GatePolicy) -> GatePolicy:
    return replace(policy, gates=tuple(replace(g, alpha_share=0.25) for g in policy.gates if g.name in FOUR))


@pytest.mark.parametrize(
    ("name", "gate", "harm", "simulated_p90"),
    [
        ("strict", "hallucination", 14 / 3, 140),
        ("default", "hallucination", 14 / 3, 180),
        ("strict", "error", 5.0, 370),
        ("strict", "error", 2.0, 3700),
        ("default", "error", 2.0, 7800),
        ("strict", "latency_shape", 1.2, 240),
        ("default", "latency_shape", 1.2, 1100),
        ("strict", "quality", 0.05, 380),
    ],
)
def test_the_random_walk_agrees_with_simulated_p90s(
    name: str, gate: str, harm: float, simulated_p90: float
) -> None:
    policy = equal_four(GatePolicy.named(name))

    units = units_to_detect(policy, policy.gate(gate), harm, w=0.05, unit_requests=1, baseline=BASELINE)
    assert units == pytest.approx(simulated_p90, rel=0.25)


@pytest.mark.parametrize("name", FOUR)
def test_the_forecast_bets_as_the_gate_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[object, ...]] = []

    def noted(kind: Kind, **settings: Any) -> LossBettor:
        made.append((kind, *(settings.get(one) for one in ("tolerance", "threshold", "failures"))))
        return loss_bettor(kind, **settings)

    for module in (detectable_effect, gate_channels):
        monkeypatch.setattr(module, "loss_bettor", noted)
    policy = GatePolicy.default()
    gate = policy.gate(name)
    units_to_detect(
        policy, gate, 0.1 if name == "quality" else 2.0, w=0.05, unit_requests=1, baseline=BASELINE
    )
    forecast, made[:] = set(made), []
    Pipeline(policy, (StagePlan(0.05, 0),))

    assert len(forecast) == 1
    assert forecast <= set(made)


def test_tolerated_harm_is_never_detected() -> None:
    policy = equal_four(GatePolicy.default())

    for gate, harm in (("quality", 0.02), ("error", 1.2), ("latency_shape", 1.08)):
        units = units_to_detect(policy, policy.gate(gate), harm, w=0.05, unit_requests=1, baseline=BASELINE)
        assert units == float("inf")


def harms(requests: float, *, unit: float = 1.0, w: float = 0.05) -> dict[str, float]:
    effects = detectable_effects(
        GatePolicy.default(), w=w, canary_requests=requests, unit_requests=unit, baseline=Baseline()
    )
    return {e.gate: e.harm if e.harm is not None else float("inf") for e in effects}


@pytest.mark.slow
def test_more_requests_detect_smaller_harm_in_every_gate() -> None:
    few, many = harms(500), harms(5000)

    assert all(many[gate] < few[gate] for gate in few)


@pytest.mark.slow
def test_sticky_units_detect_less_with_as_many_requests() -> None:
    each, sticky = harms(500), harms(500, unit=10)

    assert all(sticky[gate] > each[gate] for gate in each)


@pytest.mark.slow
def test_a_canary_request_at_50_percent_is_less_informative_than_at_5_percent() -> None:
    small, half = harms(500), harms(500, w=0.5)

    assert all(half[gate] > small[gate] for gate in small)


@pytest.mark.slow
def test_eight_requests_cannot_show_a_loss_of_quality() -> None:
    assert harms(8)["quality"] == float("inf")


@pytest.mark.slow
def test_no_harm_within_the_tolerance_is_detectable() -> None:
    smallest = harms(1e9)
    policy = GatePolicy.default()

    assert smallest["quality"] >= policy.gate("quality").tolerance
    assert smallest["error"] >= 1 + policy.gate("error").tolerance


@pytest.mark.parametrize(
    "bad", [{"rate": 1.0}, {"rates": {"error": -0.1}}, {"score_mean": 0.5, "score_sd": 0.6}, {"log_sd": 0.0}]
)
def test_an_invalid_baseline_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="baseline"):
        Baseline(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [0.98, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("mean", [0.5, 0.86, 0.97])
def test_the_grid_of_scores_has_the_mean_and_variance_of_the_baseline(mean: float, part: float) -> None:
    max_variance = mean * (1 - mean)  # of scores that are 0 or 1
    baseline = Baseline(score_mean=mean, score_sd=(part * max_variance) ** 0.5)

    y, probability = _beta_grid(*baseline.score_shape(mean))

    grid_mean = float(probability @ y)
    assert grid_mean == pytest.approx(mean, abs=0.002)
    assert float(probability @ (y - grid_mean) ** 2) == pytest.approx(part * max_variance, rel=0.01)
