"""Forecast of a proposal, and why a deploy that it shows to prove nothing is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from controller import telemetry
from controller.api.proposal import Proposal
from controller.planning.forecast import NotSimulated
from controller.rollout.plan import Plan
from controller.spec.policy import PolicySpec
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

# Below this measured rate too little is known of the traffic to refuse a deploy by its forecast.
MIN_FORECAST_REQUESTS_PER_S = 1.0
# A deploy that takes longer to simulate goes ahead: the gate decides, the forecast only saves time.
DEPLOY_FORECAST_S = 30.0


class Simulates(Protocol):
    """What simulates (`commands.Environment`)."""

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[StageForecast, ...]: ...


def with_forecast(
    proposal: Proposal, simulator: Simulates, *, is_quick: bool = False, limit_s: float | None = None
) -> Proposal:
    """The proposal with its forecast, or with the reason why there is none."""
    plan, policy, traffic = proposal.plan, proposal.policy, proposal.traffic
    if traffic is None:
        return replace(proposal, forecast_note="traffic not known; give --rate REQUESTS_PER_S")
    if is_quick:
        return replace(proposal, forecast_note="not simulated: --quick")
    try:
        stages = simulator.forecast(plan, policy, traffic, limit_s=limit_s)
    except NotSimulated as exc:
        return replace(proposal, forecast_note=str(exc))
    return replace(proposal, forecast=stages)


def unprovable_lines(proposal: Proposal, simulator: Simulates) -> list[str]:
    """A line for each stage that can prove nothing at the measured traffic; empty: a deploy may go ahead."""
    traffic = proposal.traffic
    if traffic is None or traffic.requests_per_s < MIN_FORECAST_REQUESTS_PER_S:
        return []
    lines = proposal.unprovable_stages()
    if not lines and proposal.measured.is_enough:
        proposal = with_forecast(proposal, simulator, limit_s=DEPLOY_FORECAST_S)
        if proposal.forecast is None:
            service = proposal.service.name
            telemetry.warning("deploy not simulated", service=service, why=proposal.forecast_note)
        lines = proposal.unprovable_stages()
    return [f"{line}; --allow-unproven REASON deploys it anyway" for line in lines]


def unjudged_lines(proposal: Proposal) -> list[str]:
    """A line for each gate that stable's traffic gives nothing to judge by, but for streamed metrics."""
    return [one.text for one in proposal.not_judged if one.needs != "nothing"]
