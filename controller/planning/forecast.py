"""Forecast of a plan: when each stage will be proven at this traffic, and which stages can prove nothing.

Invariant: a forecast decides nothing; the gate does. It is simulated (`evaluation.forecast.stages`), a few
seconds of CPU for a whole ladder, so it is made on request and never in a tick.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.errors import BadInput, CanaryctlError
from controller.planning.baseline import MeasuredBaseline
from controller.planning.ladder import gate_stages
from controller.quantities import FULL_BP, duration, figure, finite, percent, shown
from controller.rollout.plan import Plan
from controller.spec.policy import PolicySpec
from evaluation.forecast.detectable_effect import detects_nothing
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import MAX_RUNS, StageForecast, simulate_plan

KEYED_SHARE = 0.5  # of the requests, from which on units are keys in a forecast
FORECAST_KEYS = ("rate", "unit_requests", "users", "quick")
# A request in 11 days: below, no stage would end in the time that a duration can be written in.
MIN_RATE, MAX_RATE = 1e-6, 1e6
NOTABLE_KEYS = 0.01  # of the requests: from there on `units: request` is worth a word
NOTABLE_SESSION = 0.2  # of a stage's deadline: from there on the wait for sessions to end is worth naming


class NotSimulated(CanaryctlError):
    """The simulation failed, took too long, or was not started because too many were queued."""

    problem = "not-simulated"
    status = 503


@dataclass(frozen=True, slots=True)
class TrafficOverrides:
    """Traffic figures given with a plan request. None: not given, so the measured figure is used."""

    rate: float | None = None  # requests/s
    unit_requests: float | None = None
    users: int | None = None
    is_quick: bool = False  # no simulation

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> TrafficOverrides:
        """The FORECAST_KEYS of a request body. Raises BadInput."""
        rate, unit, users = (body.get(key) for key in FORECAST_KEYS[:3])
        is_quick = body.get("quick", False)
        if rate is not None and not MIN_RATE <= (finite(rate) or 0.0) <= MAX_RATE:
            raise BadInput(
                f"rate {shown(rate)} is outside {MIN_RATE:g}..{MAX_RATE:g} requests/s; give --rate 50"
            )
        if unit is not None and not 1 <= (finite(unit) or 0.0) <= 10_000:
            raise BadInput(f"unit_requests {shown(unit)} is outside 1..10000; 1 means no sticky units")
        if users is not None and not (isinstance(users, int) and 2 <= (finite(users) or 0.0) <= 1e9):
            raise BadInput(
                f"users {shown(users)} is not a whole number from 2 to 1e9; "
                "leave it out if new users keep coming"
            )
        if not isinstance(is_quick, bool):
            raise BadInput(f"quick {is_quick!r} is not true or false; leave it out")
        return cls(rate, unit, users, is_quick)


def forecast(
    plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, reps: int = MAX_RUNS
) -> tuple[StageForecast, ...]:
    """A forecast for each stage of the plan; the bake, which has to prove nothing, is left out."""
    return simulate_plan(
        policy.gate_policy(),
        gate_stages(plan, policy)[: len(plan.stages)],
        traffic,
        durations_s=[stage.duration_s for stage in plan.stages],
        deadlines_s=[stage.deadline_s for stage in plan.stages],
        reps=reps,
    )


def traffic_model(
    policy: PolicySpec, measured: MeasuredBaseline | None, requests_per_s: float, overrides: TrafficOverrides
) -> TrafficModel:
    """The traffic that a plan of this policy meets; overrides take precedence over measured figures.

    measured None: nothing was measured, so typical figures are used and each request is its own unit.
    """
    unit, users = overrides.unit_requests, overrides.users
    if measured is None or not measured.is_enough:
        return TrafficModel(requests_per_s, unit or 1.0, users)
    return TrafficModel(
        requests_per_s,
        max(measured.unit_requests if unit is None else unit, 1.0),
        users,
        baseline=measured.baseline(gated_metrics(policy)),
        judged=measured.judged_ratios(),
        has_keys=unit is None and measured.keyed_share >= KEYED_SHARE,
    )


def keyed_caution(policy: PolicySpec, measured: MeasuredBaseline) -> tuple[str, ...]:
    """One line for a policy whose units are requests, where traffic has keys; empty: it has none.

    The unit is what the coin was tossed for, and the router tosses one a key: `units` cannot change that.
    """
    if policy.units != "request" or measured.keyed_share < NOTABLE_KEYS:
        return ()
    session = duration(round(policy.gate_policy().session_s))
    return (
        f"units: request does not change how the {100 * measured.keyed_share:.0f} % of requests whose unit "
        f"is a key are drawn or counted: once their session has ended ({session}); leave it out, or shorten "
        "session",
    )


def describe_traffic(traffic: TrafficModel) -> str:
    """The traffic as `5 requests/s, 3.2 a unit, 900 returning users`."""
    unit = f"{figure(traffic.unit_requests, 3)} a unit" if traffic.is_sticky else "each its own unit"
    users = f", {traffic.users} returning users" if traffic.users is not None else ""
    return f"{figure(traffic.requests_per_s, 3)} requests/s, {unit}{users}"


def gated_metrics(policy: PolicySpec) -> Collection[str]:
    """Names of the metrics that the policy's gates test."""
    return {gate.metric for gate in policy.gate_policy().gates}


def underpowered_stages(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[str, ...]:
    """One line for each stage with too few requests for any gate to detect the maximum harm."""
    gates, rate = policy.gate_policy(), traffic.requests_per_s
    lines = []
    for number, stage in enumerate(plan.stages, 1):
        weight = stage.weight_bp / FULL_BP
        requests = rate * weight * stage.deadline_s
        if detects_nothing(
            gates,
            w=weight,
            canary_requests=requests,
            unit_requests=traffic.unit_requests,
            baseline=traffic.baseline,
        ):
            lines.append(
                f"stage {number}: {percent(stage.weight_bp)} of {figure(rate, 3)} requests/s gives the "
                f"canary {figure(requests, 2)} requests by the deadline, "
                f"{duration(round(stage.deadline_s))}, too few to detect any harm; raise its weight or its "
                "deadline"
            )
    return tuple(lines)


def refusals(
    stages: Sequence[StageForecast], plan: Plan, policy: PolicySpec, traffic: TrafficModel
) -> tuple[str, ...]:
    """One line for each stage that can prove nothing. Empty: the plan can be run."""
    refused = [(one.stage, one.refusal) for one in stages if one.refusal is not None]
    return tuple(
        f"stage {index + 1}: {_session_cause(plan.stages[index].deadline_s, policy, traffic, refusal)}"
        for index, refusal in refused
    )


def _session_cause(deadline_s: float, policy: PolicySpec, traffic: TrafficModel, refusal: str) -> str:
    """The refusal with what may be behind it: a sticky unit's requests count when its session has ended."""
    session_s = policy.gate_policy().session_s
    if not traffic.is_sticky or session_s < NOTABLE_SESSION * deadline_s:
        return refusal
    remedy = "shorten session or raise the deadline in the policy"
    session, deadline = duration(round(session_s)), duration(round(deadline_s))
    if session_s >= deadline_s:
        return (
            f"a user's requests count once the session has ended, session is {session} and the deadline "
            f"{deadline}, so none counts in time; {remedy}"
        )
    return (
        f"{refusal}; {session} of the {deadline} to the deadline pass before a session ends and its requests "
        f"count: {remedy}"
    )
