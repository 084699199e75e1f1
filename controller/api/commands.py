"""Commands of the controller: up, plan, deploy, rollback, down, feedback.

Invariant: a refused command changes nothing; an accepted one is stored before it is answered, and the ticks
do the work.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from controller import telemetry
from controller.api.feedback import Score, parse_scores
from controller.api.proposal import Proposal, as_twin, changed_version, refuse_rejected, refuse_same
from controller.auth import Identity, make_secret
from controller.errors import BadInput, BadSpec, Conflict, NoRoom, Unreachable
from controller.planning.baseline import MeasuredBaseline
from controller.planning.capacity import Device, fit, require_fit, with_headroom
from controller.planning.fingerprint import Fingerprint
from controller.planning.forecast import FORECAST_KEYS, NotSimulated, TrafficOverrides, traffic_model
from controller.planning.ladder import gate_stages, make_plan
from controller.planning.risk import assess
from controller.rollout.machine import begin
from controller.rollout.observation import CommandKind
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.ports import Clock
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.rollout.status import rollback_effect
from controller.spec.differences import refuse_change
from controller.spec.policy import PolicySpec
from controller.spec.service import VersionSpec, dump, parse_policy, parse_service
from controller.store.row_specs import fingerprint_of, service_spec, version_row, version_spec
from controller.store.rows import ServiceRow
from controller.store.sql import SqlStore
from controller.store.statements import already_running
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

DEPLOY_KEYS = ("version", "policy", "twin", "retry", "reason", "allow_unproven")
PLAN_KEYS = (*DEPLOY_KEYS, *FORECAST_KEYS)
# Below this measured rate too little is known of the traffic to refuse a deploy by its forecast.
MIN_FORECAST_REQUESTS_PER_S = 1.0
# A deploy that takes longer to simulate goes ahead: the gate decides, the forecast only saves time.
DEPLOY_FORECAST_S = 30.0


class Environment(Protocol):
    """Port: files, devices, traffic and simulations of the host (adapter: `wiring.environment`)."""

    def fingerprint(self, version: VersionSpec) -> Fingerprint: ...
    def devices(self) -> Sequence[Device]: ...
    def kv_bytes(self, version: VersionSpec) -> int: ...
    def requests_per_s(self, service: str) -> float | None: ...
    def measured(self, service: str) -> MeasuredBaseline | None: ...
    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[StageForecast, ...]: ...
    def append_scores(self, service: str, scores: Sequence[Score]) -> bool: ...


class Commands:
    """The controller's commands. `wake` triggers a tick of a service with new work."""

    def __init__(
        self, store: SqlStore, environment: Environment, clock: Clock, wake: Callable[[str], None]
    ) -> None:
        self._store = store
        self._environment = environment
        self._clock = clock
        self._wake = wake

    def up(self, body: Mapping[str, Any], identity: Identity) -> ServiceRow:
        """Create the service; an existing service that already is what `body` describes is left unchanged.

        Raises BadSpec, BadCheckpoint, NoRoom, and Conflict when the existing service differs.
        """
        spec = parse_service(body)
        if spec.service in {row.name for row in self._store.services()}:
            row = self._active_service(spec.service)
            stable = self._store.version(row.name, row.stable)
            running = version_spec(stable) if stable is not None else None
            refuse_change(spec, stable=row.stable, given=service_spec(row), running=running)
            self._wake(row.name)
            return row
        version, devices = spec.version(), () if spec.is_external else self._environment.devices()
        unsized, kv_bytes = self._environment.fingerprint(version), self._environment.kv_bytes(version)
        version = with_headroom(version, unsized, devices, kv_bytes=kv_bytes)
        fingerprint = self._environment.fingerprint(version)
        require_fit(version, fingerprint, devices)
        now_s = self._clock.now_s()
        row = ServiceRow(spec.service, json.dumps(dump(spec)), fingerprint.version_id, make_secret(), now_s)
        self._store.put_service(row, version_row(spec.service, version, fingerprint, now_s))
        self._wake(spec.service)
        return row

    def plan(self, service: str, body: Mapping[str, Any]) -> Proposal:
        """The rollout that a deploy of `body` would start, with its forecast. Changes nothing.

        Beside the keys of a deploy: `rate` (requests/s), `unit_requests`, `users` (default: measured),
        `quick` (true: no simulation). Raises what deploy raises, but for a running rollout; BadSpec for a
        stage that can prove nothing at this traffic.
        """
        overrides = TrafficOverrides.parse(body)
        proposal = self._propose(service, body, PLAN_KEYS, overrides)
        proposal = self._with_forecast(proposal, is_quick=overrides.is_quick)
        if lines := proposal.unprovable_stages():
            raise BadSpec(list(lines))
        return proposal

    def deploy(self, service: str, body: Mapping[str, Any], identity: Identity) -> RolloutState:
        """Start a rollout. Raises RolloutRunning, AlreadyRejected, NoRoom, BadSpec and BadCheckpoint."""
        self._active_service(service)
        newest = self._newest_rollout(service)
        if newest is not None and not newest.is_final:
            raise already_running(service, newest.id, f"in {newest.phase.value}")
        proposal = self._propose(service, body, DEPLOY_KEYS, TrafficOverrides())
        before = self._store.latest_attempt(service, proposal.canary_id)
        # A rolled-back twin shows no harm, and twins are run to count how often that happens.
        if before is not None and not proposal.plan.twin and not body.get("retry", False):
            refuse_rejected(state_from_json(before.state))
        if not proposal.fit.fits:
            raise NoRoom(proposal.fit.text)
        waiver = _unproven_waiver(body)
        if not waiver:
            self._refuse_unprovable(proposal)
        now_s = self._clock.now_s()
        state = begin(
            f"r-{secrets.token_hex(4)}",
            service,
            stable=_version_ref(proposal.stable.id, version_spec(proposal.stable)),
            canary=_version_ref(proposal.canary_id, proposal.version),
            plan=proposal.plan,
            now_s=now_s,
        )
        request = {
            "version": dump(proposal.version),
            "policy": dump(proposal.policy),
            "gate": proposal.policy.gate_policy().to_mapping(),
            "stages": [asdict(stage) for stage in gate_stages(proposal.plan, proposal.policy)],
            "actor": identity.name,
            "reason": str(body.get("reason") or ""),
            "allow_unproven": waiver,
        }
        row = version_row(service, proposal.version, proposal.fingerprint, now_s)
        row = replace(row, id=proposal.canary_id)
        self._store.create_rollout(state, request=json.dumps(request), at_s=now_s, version=row)
        self._wake(service)
        return state

    def _propose(
        self, service: str, body: Mapping[str, Any], keys: Sequence[str], overrides: TrafficOverrides
    ) -> Proposal:
        """The proposal without a forecast. keys: those that `body` may have."""
        row = self._active_service(service)
        stable = self._store.version(service, row.stable)
        if stable is None:
            raise Conflict(f"{service} has no stored version {row.stable}; restore the store")
        unknown = sorted(set(body) - set(keys))
        if unknown:
            raise BadInput(f"unknown key {unknown[0]!r}; use {', '.join(keys)}")
        policy = parse_policy(body["policy"]) if body.get("policy") is not None else service_spec(row).policy
        policy = as_twin(policy, body)
        before = version_spec(stable)
        version = before if policy.twin else changed_version(stable, body.get("version") or {})
        fingerprint = self._environment.fingerprint(version)
        refuse_same(row, fingerprint, is_twin=policy.twin)
        assessment = assess(fingerprint_of(stable), fingerprint)
        if policy.twin:
            assessment = replace(assessment, reasons=("a twin run: stable against itself",))
        rate = overrides.rate if overrides.rate is not None else self._environment.requests_per_s(service)
        plan = make_plan(
            assessment,
            policy,
            replicas=version.replicas,
            stable_replicas=None if version.is_external or before.is_external else before.replicas,
            requests_per_s=rate,
        )
        measured = self._environment.measured(service) or MeasuredBaseline(0)
        return Proposal(
            service=row,
            stable=stable,
            version=version,
            fingerprint=fingerprint,
            policy=policy,
            assessment=assessment,
            plan=plan,
            fit=fit(version, fingerprint, self._environment.devices() if not version.is_external else ()),
            measured=measured,
            traffic=traffic_model(policy, measured, rate, overrides) if rate is not None else None,
        )

    def _with_forecast(
        self, proposal: Proposal, *, is_quick: bool = False, limit_s: float | None = None
    ) -> Proposal:
        """The proposal with its forecast, or with the reason why there is none."""
        plan, policy, traffic = proposal.plan, proposal.policy, proposal.traffic
        if traffic is None:
            return replace(proposal, forecast_note="traffic not known; give --rate REQUESTS_PER_S")
        if is_quick:
            return replace(proposal, forecast_note="not simulated: --quick")
        try:
            stages = self._environment.forecast(plan, policy, traffic, limit_s=limit_s)
        except NotSimulated as exc:
            return replace(proposal, forecast_note=str(exc))
        return replace(proposal, forecast=stages)

    def _refuse_unprovable(self, proposal: Proposal) -> None:
        """Raises BadSpec for a stage that can prove nothing at the measured traffic."""
        traffic = proposal.traffic
        if traffic is None or traffic.requests_per_s < MIN_FORECAST_REQUESTS_PER_S:
            return
        lines = proposal.unprovable_stages()
        if not lines and proposal.measured.is_enough:
            proposal = self._with_forecast(proposal, limit_s=DEPLOY_FORECAST_S)
            if proposal.forecast is None:
                service = proposal.service.name
                telemetry.warning("deploy not simulated", service=service, why=proposal.forecast_note)
            lines = proposal.unprovable_stages()
        if lines:
            raise BadSpec([f"{line}; --allow-unproven REASON deploys it anyway" for line in lines])

    def policy(self, service: str) -> PolicySpec:
        """The service's own policy, as given to `up`. Raises UnknownService, Conflict while it is removed."""
        return service_spec(self._active_service(service)).policy

    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]:
        """('asked' | 'already', one line). Raises UnknownService, and Conflict after a promotion."""
        row = self._store.service(service)
        state = self._newest_rollout(service)
        effect = rollback_effect(state)
        if effect == "undo" and state is not None and state.serving != row.stable:
            effect = "already"  # a rollout of an earlier service of this name
        if effect == "already" or state is None:
            if state is not None and not state.is_final:
                return "already", f"{service} is rolling back to {state.stable.id} already"
            return "already", f"{service}: already serving {row.stable}"
        if effect == "undo":
            option = self._source_option(service, state.stable.id)
            raise Conflict(
                f"{service} serves {state.canary.id}; its predecessor {state.stable.id} was unloaded; "
                f"deploy that again: canaryctl deploy {service} {option}"
            )
        command = self._store.append_command(
            state.id, CommandKind.ROLLBACK, identity, reason=reason, at_s=self._clock.now_s()
        )
        if command is None:  # it ended since it was read above: answer for what is true now
            return self.rollback(service, identity, reason=reason)
        self._wake(service)
        return "asked", f"{service}: rollback of {state.id} to {state.stable.id} begins"

    def down(self, service: str, identity: Identity) -> None:
        """Take the service down. Raises RolloutRunning while a rollout runs: roll back first."""
        row = self._store.service(service)
        if not row.removing:
            self._store.mark_removing(service, identity, at_s=self._clock.now_s())
        self._wake(service)

    def feedback(self, items: Sequence[Mapping[str, Any]], *, service: str | None) -> int:
        """Append scores to the records logs; their number. Raises BadInput, with none appended.

        service None: to the logs of all services. An id names one answer; the other logs find no request for
        it and drop the score.
        """
        scores = parse_scores(items, now_s=self._clock.now_s())
        rows = [self._store.service(service)] if service else self._store.services()
        if not rows:
            raise BadInput("there is no service to give feedback to; start one: canaryctl up")
        for row in rows:
            if not self._environment.append_scores(row.name, scores):
                raise Unreachable(f"the records log of {row.name} does not answer; send the scores again")
        return len(scores)

    def _active_service(self, service: str) -> ServiceRow:
        row = self._store.service(service)
        if row.removing:
            raise Conflict(f"{service} is being taken down; wait until it is gone, then canaryctl up")
        return row

    def _newest_rollout(self, service: str) -> RolloutState | None:
        rows = self._store.rollouts(service, limit=1)
        return state_from_json(rows[0].state) if rows else None

    def _source_option(self, service: str, version: str) -> str:
        row = self._store.version(service, version)
        if row is None:
            return "--model DIR"
        spec = version_spec(row)
        model = f"--model {spec.model}" if spec.model else ""
        return f"--url {spec.url} {model}".rstrip() if spec.url else model


def _unproven_waiver(body: Mapping[str, Any]) -> str:
    """The reason to run stages that can prove nothing; empty: none is given. Raises BadInput."""
    reason = body.get("allow_unproven")
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise BadInput(f"allow_unproven {reason!r} is not a reason; give one, or leave it out")
    return (reason or "").strip()


def _version_ref(version: str, spec: VersionSpec) -> VersionRef:
    return VersionRef(version, spec.replicas, spec.is_external)
