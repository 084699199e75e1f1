"""What `plan` says of time and power: when each stage will be proven at this traffic, and what harm it finds.

Invariant: a forecast decides nothing; the gate does. It is simulated (`evaluation.forecast.stages`), a few
seconds of CPU for a whole ladder, so it is made when somebody asks and never in a tick.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.errors import BadInput, CanaryctlError
from controller.planning.baseline import Measured
from controller.planning.ladder import gate_stages
from controller.quantities import FULL_BP, duration, percent
from controller.rollout.plan import Plan
from controller.spec.service import PolicySpec
from controller.views.models import ForecastView
from evaluation.forecast.detectable_effect import DetectableEffect, detects_nothing
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import MAX_RUNS, StageForecast, simulate_plan
from evaluation.metrics import Kind

FORECAST_KEYS = ("rate", "unit_requests", "users", "quick")
MAX_RATE = 1e6


class NotSimulated(CanaryctlError):
    """The simulation failed, took too long, or others had their turn first: nothing is known."""

    problem = "not-simulated"
    status = 503


@dataclass(frozen=True, slots=True)
class AskedTraffic:
    """What somebody said of the traffic. None: not said, so it is measured."""

    rate: float | None = None
    unit_requests: float | None = None
    users: int | None = None
    is_quick: bool = False  # no simulation

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> AskedTraffic:
        """From a request's FORECAST_KEYS. Raises BadInput."""
        rate, unit, users = (body.get(key) for key in FORECAST_KEYS[:3])
        is_quick = body.get("quick", False)
        if rate is not None and not (_is_number(rate) and 0 < rate <= MAX_RATE):
            raise BadInput(
                f"rate {rate!r} is not above 0 and at most {MAX_RATE:g} requests/s; give --rate 50"
            )
        if unit is not None and not (_is_number(unit) and 1 <= unit <= 10_000):
            raise BadInput(f"unit_requests {unit!r} is outside 1..10000; 1 means no sticky units")
        if users is not None and not (isinstance(users, int) and _is_number(users) and 2 <= users <= 1e9):
            raise BadInput(f"users {users!r} is no whole number from 2 to 1e9; leave it out if new ones come")
        if not isinstance(is_quick, bool):
            raise BadInput(f"quick {is_quick!r} is not true or false; leave it out")
        return cls(rate, unit, users, is_quick)


def forecast(
    plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, reps: int = MAX_RUNS
) -> tuple[ForecastView, ...]:
    """A forecast for each stage of the plan. traffic: the service's rate, unit size and baseline."""
    stages = gate_stages(plan, policy)[: len(plan.stages)]
    held_s = [stage.duration_s for stage in plan.stages]
    ends_s = [stage.deadline_s for stage in plan.stages]
    found = simulate_plan(
        policy.gate_policy(), stages, traffic, durations_s=held_s, deadlines_s=ends_s, reps=reps
    )
    return tuple(_view(one, plan.stages[one.stage].weight_bp) for one in found)


def traffic_model(
    policy: PolicySpec, measured: Measured | None, requests_per_s: float, asked: AskedTraffic
) -> TrafficModel:
    """The traffic that a plan of this policy meets. What was asked goes before what was measured.

    measured None: nothing was; typical figures then, and each request its own unit.
    """
    unit, users = asked.unit_requests, asked.users
    if measured is None or not measured.is_enough:
        return TrafficModel(requests_per_s, unit or 1.0, users)
    return TrafficModel(
        requests_per_s,
        max(measured.unit_requests if unit is None else unit, 1.0),
        users,
        baseline=measured.baseline(gated_metrics(policy)),
        judged=measured.judged(),
    )


def traffic_line(traffic: TrafficModel) -> str:
    """The traffic in words."""
    unit = "each its own unit" if traffic.unit_requests == 1 else f"{traffic.unit_requests:.3g} a unit"
    users = f", {traffic.users} returning users" if traffic.users is not None else ""
    return f"{traffic.requests_per_s:.3g} requests/s, {unit}{users}"


def gated_metrics(policy: PolicySpec) -> Collection[str]:
    """What the policy's gates look at."""
    return {gate.metric for gate in policy.gate_policy().gates}


def blind_stages(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[str, ...]:
    """One line for each stage too short at this traffic for any gate to find the worst harm."""
    judged, rate = policy.gate_policy(), traffic.requests_per_s
    lines = []
    for number, stage in enumerate(plan.stages, 1):
        w = stage.weight_bp / FULL_BP
        requests = rate * w * stage.deadline_s
        if detects_nothing(
            judged,
            w=w,
            canary_requests=requests,
            unit_requests=traffic.unit_requests,
            baseline=traffic.baseline,
        ):
            lines.append(
                f"stage {number}: at {percent(stage.weight_bp)} of {rate:.3g} requests/s it sees "
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
        finds=tuple(_finding(one) for one in found.detectable),
        refusal=found.refusal,
        runs=found.runs,
        proven_runs=found.proven_runs,
        simulated_requests=found.cut_at,
    )


def _finding(found: DetectableEffect) -> str:
    if found.harm is None:
        return f"{found.gate}: nothing"
    if found.kind is Kind.SCORE:
        return f"{found.gate} -{found.harm:.2g}"
    return f"{found.gate} x{found.harm:.2g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
