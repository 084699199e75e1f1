"""What people can ask of the controller: up, plan, deploy, rollback, down, feedback.

Invariant: a command that is refused leaves everything as it was; one that is taken is in the store before it
is answered, and the ticks do the work.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from controller import telemetry
from controller.api.proposal import Proposal, as_twin, changed, refuse_blind, refuse_rejected, refuse_same
from controller.auth import Identity, make_secret
from controller.errors import (
    BadInput,
    BadSpec,
    Conflict,
    NoRoom,
    RolloutRunning,
    Unreachable,
)
from controller.planning.baseline import Measured
from controller.planning.capacity import (
    Device,
    fit,
    require_fit,
    with_headroom,
)
from controller.planning.fingerprint import Fingerprint
from controller.planning.forecast import (
    FORECAST_KEYS,
    AskedTraffic,
    NotSimulated,
    gated_metrics,
    refusals,
    traffic_line,
    traffic_model,
)
from controller.planning.ladder import gate_stages, make_plan
from controller.planning.risk import assess
from controller.rollout.machine import begin
from controller.rollout.observation import CommandKind
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.ports import Clock
from controller.rollout.serialization import state_from_json
from controller.rollout.state import RolloutState
from controller.rollout.status import rollback_means
from controller.spec.differences import refuse_change
from controller.spec.service import (
    PolicySpec,
    VersionSpec,
    dump,
    parse_policy,
    parse_service,
)
from controller.store.row_specs import fingerprint_of, service_spec, version_row, version_spec
from controller.store.rows import RolloutRow, ServiceRow, VersionRow
from controller.views.models import ForecastView
from evaluation.forecast.simulation import TrafficModel
from evaluation.metrics import CATALOGUE

MAX_FEEDBACK = 1000
MAX_ID = 200
CHANGE_KEYS = ("version", "policy", "twin", "retry", "reason", "allow_unproven")
# A minute with fewer requests says too little of the traffic to refuse a deploy by.
SURE_REQUESTS_PER_S = 1.0
# A deploy that cannot be simulated by then is not: the gate decides, the forecast only spares time.
DEPLOY_FORECAST_S = 30.0


class ServiceRepository(Protocol):
    """What the commands need of the store."""

    def services(self) -> tuple[ServiceRow, ...]: ...
    def service(self, name: str) -> ServiceRow: ...
    def put_service(self, row: ServiceRow, version: VersionRow) -> None: ...
    def mark_removing(self, name: str, identity: Identity, *, at_s: float) -> None: ...
    def put_version(self, row: VersionRow) -> None: ...
    def version(self, service: str, version: str) -> VersionRow | None: ...
    def rollouts(self, service: str, *, limit: int = 50) -> tuple[RolloutRow, ...]: ...
    def latest_attempt(self, service: str, canary: str) -> RolloutRow | None: ...
    def create_rollout(self, state: RolloutState, *, request: str, at_s: float) -> int: ...
    def append_command(
        self, rollout: str, kind: CommandKind, identity: Identity, *, reason: str, at_s: float
    ) -> int: ...


class Environment(Protocol):
    """What the commands need of the machines."""

    def fingerprint(self, version: VersionSpec) -> Fingerprint: ...
    def devices(self) -> Sequence[Device]: ...
    def kv_bytes(self, version: VersionSpec) -> int: ...
    def requests_per_s(self, service: str) -> float | None: ...
    def measured(self, service: str) -> Measured | None: ...
    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[ForecastView, ...]: ...
    def append_scores(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool: ...


class Commands:
    """The controller's verbs. `wake` is told which service has something new to do."""

    def __init__(
        self, repository: ServiceRepository, world: Environment, clock: Clock, wake: Callable[[str], None]
    ) -> None:
        self._repository = repository
        self._world = world
        self._clock = clock
        self._wake = wake

    def up(self, body: Mapping[str, Any], identity: Identity) -> ServiceRow:
        """Make the service, or leave it as it is when it already is what `body` says.

        Raises BadSpec, BadCheckpoint, NoRoom, and Conflict when what serves under this name differs.
        """
        spec = parse_service(body)
        if spec.service in {row.name for row in self._repository.services()}:
            row = self._present(spec.service)
            stable = self._repository.version(row.name, row.stable)
            running = version_spec(stable) if stable is not None else None
            refuse_change(spec, stable=row.stable, given=service_spec(row), running=running)
            self._wake(row.name)
            return row
        given = self._world.fingerprint(spec.version())
        devices = self._world.devices() if not spec.is_external else ()
        version = with_headroom(spec.version(), given, devices, kv_bytes=self._world.kv_bytes(spec.version()))
        fingerprint = self._world.fingerprint(version)
        if not spec.is_external:
            require_fit(version, fingerprint, devices)
        now_s = self._clock.now_s()
        text = json.dumps(dump(spec))
        row = ServiceRow(spec.service, text, fingerprint.version_id, make_secret(), now_s)
        self._repository.put_service(row, version_row(spec.service, version, fingerprint, now_s))
        self._wake(spec.service)
        return row

    def plan(self, service: str, body: Mapping[str, Any]) -> Proposal:
        """What a deploy of `body` would do, and how long it will take. Changes nothing.

        Beside deploy's keys: `rate` (requests/s), `unit_requests`, `users` (default: measured), `quick`
        (true: no simulation). Raises what deploy raises, but for a rollout that runs; BadInput for a stage
        that can prove nothing at this traffic.
        """
        asked = AskedTraffic.of(body)
        change = {key: value for key, value in body.items() if key not in FORECAST_KEYS}
        proposal = self._propose(service, change, asked, known=(*CHANGE_KEYS, *FORECAST_KEYS))
        if proposal.traffic is None:
            return replace(proposal, forecast_note="traffic not known; give --rate REQUESTS_PER_S")
        if asked.is_quick:
            refuse_blind(proposal)
            return replace(proposal, forecast_note="not simulated: --quick")
        try:
            return self._simulated(proposal, proposal.traffic)
        except NotSimulated as exc:
            refuse_blind(proposal)
            return replace(proposal, forecast_note=str(exc))

    def _simulated(
        self, proposal: Proposal, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> Proposal:
        """With its forecast. Raises NotSimulated, and BadSpec for stages that can prove nothing."""
        found = self._world.forecast(proposal.plan, proposal.policy, traffic, limit_s=limit_s)
        if lines := refusals(found):
            raise BadSpec([f"{line} ({traffic_line(traffic)})" for line in lines])
        return replace(proposal, forecast=found)

    def _refuse_unproven(self, proposal: Proposal) -> None:
        """Raises BadSpec for a stage that can prove nothing at the traffic that was measured."""
        traffic, measured = proposal.traffic, self._world.measured(proposal.service.name)
        if traffic is None or traffic.requests_per_s < SURE_REQUESTS_PER_S:
            return
        try:
            refuse_blind(proposal)
            if measured is not None and measured.is_enough:
                self._simulated(proposal, traffic, limit_s=DEPLOY_FORECAST_S)
        except NotSimulated as exc:
            telemetry.warning("deploy not simulated", service=proposal.service.name, why=str(exc))
        except BadSpec as exc:
            raise BadSpec(
                [f"{line}; --allow-unproven REASON deploys all the same" for line in exc.lines]
            ) from exc

    def _propose(
        self,
        service: str,
        body: Mapping[str, Any],
        asked: AskedTraffic | None = None,
        *,
        known: Sequence[str] = CHANGE_KEYS,
    ) -> Proposal:
        row = self._present(service)
        stable = self._repository.version(service, row.stable)
        if stable is None:
            raise Conflict(f"{service} has no stored version {row.stable}; restore the store")
        unknown = sorted(set(body) - set(CHANGE_KEYS))
        if unknown:
            raise BadInput(f"unknown key {unknown[0]!r}; use {', '.join(known)}")
        policy = parse_policy(body["policy"]) if body.get("policy") is not None else service_spec(row).policy
        policy = as_twin(policy, body)
        version = version_spec(stable) if policy.twin else changed(stable, body.get("version") or {})
        fingerprint = self._world.fingerprint(version)
        refuse_same(row, fingerprint, is_twin=policy.twin)
        assessment = assess(fingerprint_of(stable), fingerprint)
        if policy.twin:
            assessment = replace(assessment, reasons=("a twin: stable against itself",))
        asked = asked or AskedTraffic()
        rate = self._world.requests_per_s(service) if asked.rate is None else asked.rate
        before = version_spec(stable)
        is_ours = not (version.is_external or before.is_external)
        plan = make_plan(
            assessment,
            policy,
            replicas=version.replicas,
            stable_replicas=before.replicas if is_ours else None,
            requests_per_s=rate,
        )
        room = fit(version, fingerprint, self._world.devices() if not version.is_external else ())
        proposal = Proposal(row, stable, version, fingerprint, policy, assessment, plan, room, rate)
        if rate is None:
            return proposal
        measured = self._world.measured(service) or Measured(0)
        return replace(
            proposal,
            traffic=traffic_model(policy, measured, rate, asked),
            basis=measured.lines(gated_metrics(policy)),
        )

    def deploy(self, service: str, body: Mapping[str, Any], identity: Identity) -> RolloutState:
        """Begin a rollout. Raises RolloutRunning, AlreadyRejected, NoRoom, BadSpec and BadCheckpoint."""
        self._present(service)
        newest = next(iter(self._repository.rollouts(service, limit=1)), None)
        if newest is not None and not (running := _state(newest)).is_final:
            raise RolloutRunning(
                f"{service} has rollout {running.id} in {running.phase.value}, one at a time; "
                f"wait for it (canaryctl watch {service}) or end it (canaryctl rollback {service})"
            )
        proposal = self._propose(service, body)
        before = self._repository.latest_attempt(service, proposal.canary_id)
        # What rolled a twin back was no harm, and how often that happens is what twins are run for.
        if before is not None and not proposal.plan.twin and not body.get("retry", False):
            refuse_rejected(_state(before))
        if not proposal.fit.fits:
            raise NoRoom(proposal.fit.text)
        if not _waiver(body):
            self._refuse_unproven(proposal)
        now_s = self._clock.now_s()
        stable_spec = version_spec(proposal.stable)
        canary = VersionRef(proposal.canary_id, proposal.version.replicas, proposal.version.is_external)
        state = begin(
            f"r-{secrets.token_hex(4)}",
            service,
            stable=VersionRef(proposal.stable.id, stable_spec.replicas, stable_spec.is_external),
            canary=canary,
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
            "allow_unproven": _waiver(body),
        }
        row = version_row(service, proposal.version, proposal.fingerprint, now_s)
        self._repository.put_version(replace(row, id=proposal.canary_id))
        self._repository.create_rollout(state, request=json.dumps(request), at_s=now_s)
        self._wake(service)
        return state

    def policy(self, service: str) -> PolicySpec:
        """The service's own, as `up` was given it. Raises UnknownService, Conflict while it is removed."""
        return service_spec(self._present(service)).policy

    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]:
        """('asked' | 'already', one line). Raises UnknownService, and Conflict after a promotion."""
        row = self._repository.service(service)
        last = next(iter(self._repository.rollouts(service, limit=1)), None)
        state = _state(last) if last else None
        means = rollback_means(state)
        if means == "undo" and state is not None and state.serving != row.stable:
            means = "already"  # a rollout of an earlier service of this name
        if means == "already" or state is None:
            if state is not None and not state.is_final:
                return "already", f"{service} is rolling back to {state.stable.id} already"
            return "already", f"{service}: already serving {row.stable}"
        if means == "undo":
            raise Conflict(
                f"{service} serves {state.canary.id}; its predecessor {state.stable.id} was unloaded; "
                f"deploy that again: canaryctl deploy {service} {self._where(service, state.stable.id)}"
            )
        self._repository.append_command(
            state.id, CommandKind.ROLLBACK, identity, reason=reason, at_s=self._clock.now_s()
        )
        self._wake(service)
        return "asked", f"{service}: rollback of {state.id} to {state.stable.id} begins"

    def down(self, service: str, identity: Identity) -> None:
        """Take the service away. Raises RolloutRunning while a rollout runs: roll back first."""
        row = self._repository.service(service)
        if not row.removing:
            self._repository.mark_removing(service, identity, at_s=self._clock.now_s())
        self._wake(service)

    def feedback(self, items: Sequence[Mapping[str, Any]], *, service: str | None) -> int:
        """Append scores to the logs; the number taken. Raises BadInput, and takes none, when one is wrong."""
        if not 1 <= len(items) <= MAX_FEEDBACK:
            raise BadInput(f"{len(items)} scores in one request; send 1 to {MAX_FEEDBACK}")
        now_s = self._clock.now_s()
        scores = [_score(index, item, now_s) for index, item in enumerate(items)]
        names = (
            [self._repository.service(service).name]
            if service
            else [row.name for row in self._repository.services()]
        )
        if not names:
            raise BadInput("there is no service to give feedback to; start one: canaryctl up")
        for name in names:
            # An id names one answer: in the other services' logs it finds no request and is forgotten.
            if not self._world.append_scores(name, scores):
                raise Unreachable(f"the records log of {name} does not answer; send the scores again")
        return len(scores)

    def _present(self, service: str) -> ServiceRow:
        row = self._repository.service(service)
        if row.removing:
            raise Conflict(f"{service} is being taken down; wait until it is gone, then canaryctl up")
        return row

    def _where(self, service: str, version: str) -> str:
        row = self._repository.version(service, version)
        if row is None:
            return "--model DIR"
        spec = version_spec(row)
        return f"--url {spec.url}" if spec.url else f"--model {spec.model}"


def _waiver(body: Mapping[str, Any]) -> str:
    """Why a stage that can prove nothing is to be run all the same; '': it is not. Raises BadInput."""
    given = body.get("allow_unproven")
    if given is not None and not (isinstance(given, str) and given.strip()):
        raise BadInput(f"allow_unproven {given!r} is no reason; say why, or leave it out")
    return (given or "").strip()


def _state(row: RolloutRow) -> RolloutState:
    return state_from_json(row.state)


def _score(index: int, item: Mapping[str, Any], now_s: float) -> tuple[str, str, float, float]:
    """(id, metric, value, at_s). Raises BadInput, naming the place."""
    unknown = sorted(set(item) - {"id", "metric", "score"})
    if unknown:
        raise BadInput(f"feedback {index}: unknown key {unknown[0]!r}; use id, metric, score")
    name, metric, value = item.get("id"), item.get("metric"), item.get("score")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_ID:
        raise BadInput(
            f"feedback {index}: id is not 1 to {MAX_ID} characters; give the answer's id or its request id"
        )
    scored = sorted(one.name for one in CATALOGUE.values() if one.arrives_later)
    if metric not in scored:
        raise BadInput(f"feedback {index}: metric {metric!r} is unknown; use one of {', '.join(scored)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"feedback {index}: score {value!r} is not a number; use 0 to 1")
    if not 0 <= value <= 1:
        raise BadInput(f"feedback {index}: score {value:g} is outside 0 to 1; rescale it")
    return name, metric, float(value), now_s
