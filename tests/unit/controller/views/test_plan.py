"""The view of a plan: warnings, gates and the shortest duration."""

from __future__ import annotations

from controller.planning.capacity import Fit
from controller.planning.risk import Assessment, Change, Risk
from controller.rollout.plan import Plan, Stage
from controller.views.plan import _finding_text, plan_view
from evaluation.forecast.detectable_effect import DetectableEffect
from evaluation.metrics import Kind
from evaluation.policy.policy import GatePolicy

STAGES = (Stage(1000, 60.0, 50, 300.0, 1), Stage(5000, 60.0, 100, 300.0, 1))
PLAN = Plan("medium", ("other tensors",), STAGES, 500, 120.0)


def test_a_plan_warns_of_changed_sampling_defaults_and_missing_memory() -> None:
    assessment = Assessment(Risk.LOW, ("x",), (Change("temperature", "0.0", "1.0"),), ())
    fit = Fit(False, 2, 1, "a second engine needs 2 GiB")

    view = plan_view(
        "chat", "v-old", "v-new", assessment=assessment, plan=PLAN, policy=GatePolicy.default(), fit=fit
    )

    assert view.warnings == (
        "sampling default changes: temperature: 0.0 -> 1.0",
        "a second engine needs 2 GiB",
    )
    assert view.shortest_s == 240.0
    assert "quality: rolls back at -0.05, tolerates -0.025 (alpha 0.002)" in view.gates


def test_a_ratio_of_a_detectable_effect_is_no_plain_one() -> None:
    """A slowdown of 4 % was printed as `x1`."""
    effect = DetectableEffect("latency_shape", Kind.SHAPE, 1.04)

    assert _finding_text(effect) == "latency_shape x1.04"
