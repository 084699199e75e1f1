"""What `plan` says of time and power: when each stage will be proven at this traffic, and what harm it finds.

Invariant: a forecast decides nothing; the gate does. It is simulated (`evaluation.plan_power`), a few seconds
of CPU for a whole ladder, so it is made when somebody asks and never in a tick.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from controller.plan import gate_stages
from controller.spec import PolicySpec
from controller.state import Plan
from controller.units import duration, percent
from evaluation.detectable import Finding
from evaluation.metrics import Kind
from evaluation.plan_power import REPS, StageForecast, TrafficModel, simulate_plan


class ForecastView(BaseModel):
    """One stage with a harmless canary. Seconds from the stage's weight; null: not by its deadline."""

    model_config = ConfigDict(frozen=True)

    number: int  # from 1
    weight_bp: int
    proven_ratio: float  # of simulated runs, by the deadline
    requests_median: float | None
    requests_p90: float | None
    seconds_median: float | None
    seconds_p90: float | None
    slowest_gate: str | None
    finds: tuple[str, ...]  # the smallest harm that nine runs in ten find, by gate
    refusal: str | None  # why the stage can prove nothing, and the remedy

    def __str__(self) -> str:
        """The stage as one line."""
        at = f"stage {self.number} at {percent(self.weight_bp)}"
        if self.refusal is not None:
            return f"stage {self.number}: {self.refusal}"
        if self.seconds_median is None:
            return f"{at}: proven in {self.proven_ratio:.0%} of runs by its deadline"
        late = "later than its deadline" if self.seconds_p90 is None else duration(round(self.seconds_p90))
        last = f", last by {self.slowest_gate}" if self.slowest_gate else ""
        return f"{at}: proven after {duration(round(self.seconds_median))}, nine in ten {late}{last}"


def forecast(
    plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, reps: int = REPS
) -> tuple[ForecastView, ...]:
    """A forecast for each stage of the plan. traffic: the service's rate and unit size."""
    stages = gate_stages(plan, policy)[: len(plan.stages)]
    held_s = [stage.duration_s for stage in plan.stages]
    found = simulate_plan(policy.gate_policy(), stages, traffic, durations_s=held_s, reps=reps)
    return tuple(_view(one, plan.stages[one.stage].weight_bp) for one in found)


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
