"""A change of what a service runs, weighed but not begun, and what is refused before it begins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.errors import AlreadyRejected, BadInput, BadSpec, Conflict
from controller.planning.capacity import Fit
from controller.planning.fingerprint import Fingerprint
from controller.planning.forecast import blind_stages
from controller.planning.ladder import latency_lines
from controller.planning.risk import Assessment
from controller.rollout.plan import Plan
from controller.rollout.state import CauseKind, Phase, RolloutState
from controller.rollout.twin_report import twin_id
from controller.spec.service import PolicySpec, VersionSpec, dump, parse_policy, parse_version
from controller.store.rows import ServiceRow, VersionRow
from controller.views.models import ForecastView, PlanView
from controller.views.rollout import plan_view
from evaluation.forecast.simulation import TrafficModel


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change, weighed but not begun."""

    service: ServiceRow
    stable: VersionRow
    version: VersionSpec
    fingerprint: Fingerprint
    policy: PolicySpec
    assessment: Assessment
    plan: Plan
    fit: Fit
    requests_per_s: float | None = None
    traffic: TrafficModel | None = None  # what the forecast stands on; None: not known
    basis: tuple[str, ...] = ()  # where its figures come from
    forecast: tuple[ForecastView, ...] | None = None
    forecast_note: str | None = None

    @property
    def canary_id(self) -> str:
        """The id of the version beside stable: its fingerprint's, or a twin's own."""
        found = self.fingerprint.version_id
        return twin_id(found) if self.plan.twin else found

    def view(self) -> PlanView:
        """What `plan` shows."""
        return plan_view(
            self.service.name,
            self.stable.id,
            self.canary_id,
            assessment=self.assessment,
            plan=self.plan,
            policy=self.policy.gate_policy(),
            fit=self.fit,
            latency=latency_lines(self.plan, self.policy),
        ).model_copy(
            update={
                "requests_per_s": self.requests_per_s,
                "unit_requests": self.traffic.unit_requests if self.traffic is not None else None,
                "users": self.traffic.users if self.traffic is not None else None,
                "basis": self.basis,
                "forecast": self.forecast,
                "forecast_runs": max(one.runs for one in self.forecast) if self.forecast else None,
                "forecast_note": self.forecast_note,
            }
        )


def changed(stable: VersionRow, change: Mapping[str, Any]) -> VersionSpec:
    """Stable's spec with what the user gave: engine arguments are inherited, so nothing else changes."""
    if not isinstance(change, Mapping):
        raise BadInput(f"version is {type(change).__name__}; write model: DIR or url: URL")
    kept = json.loads(stable.spec)
    if change.get("url") is not None:
        kept = {}
    elif change.get("model") is not None:
        kept.pop("url", None)
    engine = change.get("engine")
    if isinstance(engine, Mapping):
        change = {**change, "engine": {**kept.get("engine", {}), **engine}}
    return parse_version({**kept, **change})


def as_twin(policy: PolicySpec, body: Mapping[str, Any]) -> PolicySpec:
    """The policy, of a twin run where `body` asks for one. Raises BadInput, BadSpec."""
    asked = body.get("twin", False)
    if not isinstance(asked, bool):
        raise BadInput(f"twin {asked!r} is not true or false; leave it out")
    if not (asked or policy.twin):
        return policy
    if body.get("version"):
        raise BadInput("a twin run takes the version that serves; leave --model, --url and --engine out")
    return parse_policy({**dump(policy), "twin": True})


def refuse_same(row: ServiceRow, fingerprint: Fingerprint, *, is_twin: bool) -> None:
    """Raises Conflict for a canary that is stable itself, and for a twin that is not."""
    is_same = fingerprint.version_id == row.stable
    if is_same and not is_twin:
        raise Conflict(
            f"{row.name} already serves {row.stable}: nothing in it changes; deploy another version, "
            "or run it against itself: --twin"
        )
    if is_twin and not is_same:
        raise Conflict(
            f"{row.name} serves {row.stable}, but its files or the engine release have changed since: a twin "
            "would be another version; deploy that first"
        )


def refuse_blind(proposal: Proposal) -> None:
    """Raises BadSpec for a stage that can prove nothing, told without a simulation."""
    if proposal.traffic is None:
        return
    if lines := blind_stages(proposal.plan, proposal.policy, proposal.traffic):
        raise BadSpec(list(lines))


def refuse_rejected(before: RolloutState) -> None:
    """Raises AlreadyRejected for what was rolled back before, but by missing proof or the end of a test."""
    canary = before.canary.id
    if before.cause is None or before.serving == canary:
        return
    # Failed with a departure: it was rolled back, only its memory was not seen freed.
    if before.phase is not Phase.ROLLED_BACK and before.departure is None:
        return
    # Every A/B test ends so; the next thing that people do is to deploy B.
    if before.plan.is_test and before.cause.kind is CauseKind.USER:
        return
    if before.cause.kind is not CauseKind.NOT_PROVEN:
        raise AlreadyRejected(
            f"{canary} was rolled back in {before.id} ({before.cause.text}); change it, or give --retry"
        )
