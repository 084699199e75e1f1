"""What `plan` says of time and power: when each stage will be proven at this traffic, and what harm it finds.

Invariant: a forecast decides nothing; the gate does. It is simulated (`evaluation.plan_power`), a few seconds
of CPU for a whole ladder, so it is made when somebody asks and never in a tick.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.plan import gate_stages
from controller.spec import PolicySpec
from controller.state import FULL_BP, Plan
from controller.units import duration, percent
from controller.view import ForecastView
from evaluation.detectable import Baseline, Finding, finds_nothing
from evaluation.metrics import Kind
from evaluation.plan_power import StageForecast, TrafficModel, simulate_plan

RUNS = 10  # simulated runs of a stage: the ninth is the 90th percentile


def forecast(
    plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, reps: int = RUNS
) -> tuple[ForecastView, ...]:
    """A forecast for each stage of the plan. traffic: the service's rate and unit size."""
    stages = gate_stages(plan, policy)[: len(plan.stages)]
    held_s = [stage.duration_s for stage in plan.stages]
    ends_s = [stage.deadline_s for stage in plan.stages]
    found = simulate_plan(
        policy.gate_policy(), stages, traffic, durations_s=held_s, deadlines_s=ends_s, reps=reps
    )
    return tuple(_view(one, plan.stages[one.stage].weight_bp) for one in found)


def blind_stages(
    plan: Plan, policy: PolicySpec, requests_per_s: float, *, unit_requests: float = 1.0
) -> tuple[str, ...]:
    """One line for each stage too short at this traffic for any gate to find the worst harm."""
    judged, baseline = policy.gate_policy(), Baseline()
    lines = []
    for number, stage in enumerate(plan.stages, 1):
        w = stage.weight_bp / FULL_BP
        requests = requests_per_s * w * stage.deadline_s
        if finds_nothing(
            judged, w=w, canary_requests=requests, unit_requests=unit_requests, baseline=baseline
        ):
            lines.append(
                f"stage {number}: at {percent(stage.weight_bp)} of {requests_per_s:.3g} requests/s it sees "
                f"{requests:.2g} canary requests by its deadline, {duration(round(stage.deadline_s))}, which "
                "show no harm at all; raise its weight or its deadline"
            )
    return tuple(lines)


def refusals(views: Sequence[ForecastView]) -> tuple[str, ...]:
    """One line for each stage that can prove nothing. Empty: the plan can be run."""
    return tuple(str(view) for view in views if view.refusal is not None)


def _view(found: StageForecast, weight_bp: int) -> ForecastView:
    return ForecastView(
        number=found.stage + 1,
        weight_bp=weight_bp,
        proven_ratio=found.proven_ratio,
        requests_median=found.requests_median,
        requests_p90=found.requests_p90,
        seconds_median=found.seconds_median,
        seconds_p90=found.seconds_p90,
        slowest_gate=found.slowest_gate,
        finds=tuple(_finding(one) for one in found.finds),
        refusal=found.refusal,
    )


def _finding(found: Finding) -> str:
    if found.harm is None:
        return f"{found.gate}: nothing"
    if found.kind is Kind.SCORE:
        return f"{found.gate} -{found.harm:.2g}"
    return f"{found.gate} x{found.harm:.2g}"
