"""What people can ask of the controller: up, plan, deploy, rollback, down, feedback.

Invariant: a command that is refused leaves everything as it was; one that is taken is in the store before it
is answered, and the ticks do the work.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from controller import telemetry
from controller.capacity import (
    HOST_ENGINE_BYTES,
    TWO_ENGINES_UTILIZATION,
    Device,
    Fit,
    fit,
    require_fit,
)
from controller.codec import state_from_json
from controller.errors import (
    AlreadyRejected,
    BadInput,
    BadSpec,
    Conflict,
    NoRoom,
    RolloutRunning,
    Unreachable,
)
from controller.fingerprint import Fingerprint
from controller.forecast import (
    FORECAST_KEYS,
    AskedTraffic,
    NotSimulated,
    blind_stages,
    gated_metrics,
    refusals,
    traffic_line,
    traffic_model,
)
from controller.measured import Measured
from controller.plan import gate_stages, latency_lines, make_plan
from controller.ports import Clock
from controller.risk import Assessment, assess
from controller.rollout import begin, rollback_means
from controller.security import Identity, make_secret
from controller.spec import (
    PolicySpec,
    ServiceSpec,
    VersionSpec,
    dump,
    parse_policy,
    parse_service,
    parse_version,
)
from controller.state import AskKind, CauseKind, Phase, Plan, RolloutState, VersionRef
from controller.stored import RolloutRow, ServiceRow, VersionRow
from controller.twin import twin_id
from controller.up_again import refuse_change
from controller.view import plan_view
from controller.view_shapes import ForecastView, PlanView
from evaluation.metrics import CATALOGUE
from evaluation.plan_power import TrafficModel

MIN_KV_BYTES = 64 << 20
MAX_FEEDBACK = 1000
MAX_ID = 200
CHANGE_KEYS = ("version", "policy", "twin", "retry", "reason", "allow_unproven")
# A minute with fewer requests says too little of the traffic to refuse a deploy by.
SURE_REQUESTS_PER_S = 1.0
# A deploy that cannot be simulated by then is not: the gate decides, the forecast only spares time.
DEPLOY_FORECAST_S = 30.0


class Shelf(Protocol):
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
    def append_ask(
        self, rollout: str, kind: AskKind, identity: Identity, *, reason: str, at_s: float
    ) -> int: ...


class World(Protocol):
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


class Commands:
    """The controller's verbs. `wake` is told which service has something new to do."""

    def __init__(self, shelf: Shelf, world: World, clock: Clock, wake: Callable[[str], None]) -> None:
        self._shelf = shelf
        self._world = world
        self._clock = clock
        self._wake = wake

    def up(self, body: Mapping[str, Any], identity: Identity) -> ServiceRow:
        """Make the service, or leave it as it is when it already is what `body` says.

        Raises BadSpec, BadCheckpoint, NoRoom, and Conflict when what serves under this name differs.
        """
        spec = parse_service(body)
        if spec.service in {row.name for row in self._shelf.services()}:
            row = self._present(spec.service)
            stable = self._shelf.version(row.name, row.stable)
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
        self._shelf.put_service(row, version_row(spec.service, version, fingerprint, now_s))
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
            _refuse_blind(proposal)
            return replace(proposal, forecast_note="not simulated: --quick")
        try:
            return self._simulated(proposal, proposal.traffic)
        except NotSimulated as exc:
            _refuse_blind(proposal)
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
            _refuse_blind(proposal)
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
        stable = self._shelf.version(service, row.stable)
        if stable is None:
            raise Conflict(f"{service} has no stored version {row.stable}; restore the store")
        unknown = sorted(set(body) - set(CHANGE_KEYS))
        if unknown:
            raise BadInput(f"unknown key {unknown[0]!r}; use {', '.join(known)}")
        policy = parse_policy(body["policy"]) if body.get("policy") is not None else service_spec(row).policy
        policy = _as_twin(policy, body)
        version = version_spec(stable) if policy.twin else _changed(stable, body.get("version") or {})
        fingerprint = self._world.fingerprint(version)
        _refuse_same(row, fingerprint, is_twin=policy.twin)
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
        newest = next(iter(self._shelf.rollouts(service, limit=1)), None)
        if newest is not None and not (running := _state(newest)).is_final:
            raise RolloutRunning(
                f"{service} has rollout {running.id} in {running.phase.value}, one at a time; "
                f"wait for it (canaryctl watch {service}) or end it (canaryctl rollback {service})"
            )
        proposal = self._propose(service, body)
        before = self._shelf.latest_attempt(service, proposal.canary_id)
        # What rolled a twin back was no harm, and how often that happens is what twins are run for.
        if before is not None and not proposal.plan.twin and not body.get("retry", False):
            _refuse_rejected(_state(before))
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
        self._shelf.put_version(replace(row, id=proposal.canary_id))
        self._shelf.create_rollout(state, request=json.dumps(request), at_s=now_s)
        self._wake(service)
        return state

    def rollback(self, service: str, identity: Identity, *, reason: str) -> tuple[str, str]:
        """('asked' | 'already', one line). Raises UnknownService, and Conflict after a promotion."""
        row = self._shelf.service(service)
        last = next(iter(self._shelf.rollouts(service, limit=1)), None)
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
        self._shelf.append_ask(state.id, AskKind.ROLLBACK, identity, reason=reason, at_s=self._clock.now_s())
        self._wake(service)
        return "asked", f"{service}: rollback of {state.id} to {state.stable.id} begins"

    def down(self, service: str, identity: Identity) -> None:
        """Take the service away. Raises RolloutRunning while a rollout runs: roll back first."""
        row = self._shelf.service(service)
        if not row.removing:
            self._shelf.mark_removing(service, identity, at_s=self._clock.now_s())
        self._wake(service)

    def feedback(self, items: Sequence[Mapping[str, Any]], *, service: str | None) -> int:
        """Append scores to the logs; the number taken. Raises BadInput, and takes none, when one is wrong."""
        if not 1 <= len(items) <= MAX_FEEDBACK:
            raise BadInput(f"{len(items)} scores in one request; send 1 to {MAX_FEEDBACK}")
        now_s = self._clock.now_s()
        scores = [_score(index, item, now_s) for index, item in enumerate(items)]
        names = (
            [self._shelf.service(service).name] if service else [row.name for row in self._shelf.services()]
        )
        if not names:
            raise BadInput("there is no service to give feedback to; start one: canaryctl up")
        for name in names:
            # An id names one answer: in the other services' logs it finds no request and is forgotten.
            if not self._world.append_scores(name, scores):
                raise Unreachable(f"the records log of {name} does not answer; send the scores again")
        return len(scores)

    def _present(self, service: str) -> ServiceRow:
        row = self._shelf.service(service)
        if row.removing:
            raise Conflict(f"{service} is being taken down; wait until it is gone, then canaryctl up")
        return row

    def _where(self, service: str, version: str) -> str:
        row = self._shelf.version(service, version)
        if row is None:
            return "--model DIR"
        spec = version_spec(row)
        return f"--url {spec.url}" if spec.url else f"--model {spec.model}"


def with_headroom(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], *, kv_bytes: int
) -> VersionSpec:
    """The version sized so that a second engine of its kind fits beside it, where the user gave no size.

    kv_bytes: what it would like for its KV cache on a host without a GPU.
    """
    if version.is_external or not devices:
        return version
    if devices[0].kind == "gpu":
        if version.gpu_memory_utilization is not None:
            return version
        return version.model_copy(update={"gpu_memory_utilization": TWO_ENGINES_UTILIZATION})
    if version.kv_cache_memory_bytes is not None:
        return version
    each = max(device.free_bytes for device in devices) // (2 * version.replicas)
    room = each - fingerprint.tensor_bytes - HOST_ENGINE_BYTES
    sized = max(MIN_KV_BYTES, min(kv_bytes, room) // MIN_KV_BYTES * MIN_KV_BYTES)
    return version.model_copy(update={"kv_cache_memory_bytes": sized})


def version_row(service: str, spec: VersionSpec, fingerprint: Fingerprint, at_s: float) -> VersionRow:
    """The row that `version_spec` and `fingerprint_of` read back."""
    return VersionRow(
        service, fingerprint.version_id, json.dumps(dump(spec)), json.dumps(asdict(fingerprint)), at_s
    )


def version_spec(row: VersionRow) -> VersionSpec:
    """The spec of a stored version."""
    return parse_version(json.loads(row.spec))


def service_spec(row: ServiceRow) -> ServiceSpec:
    """The spec of a stored service, as `up` was given it."""
    return parse_service(json.loads(row.spec))


def fingerprint_of(row: VersionRow) -> Fingerprint:
    """The fingerprint of a stored version."""
    values = json.loads(row.fingerprint)
    pairs = {
        name: tuple((key, value) for key, value in values[name]) for name in ("parts", "sampling", "engine")
    }
    return Fingerprint(**{**values, **pairs})


def _changed(stable: VersionRow, change: Mapping[str, Any]) -> VersionSpec:
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


def _as_twin(policy: PolicySpec, body: Mapping[str, Any]) -> PolicySpec:
    """The policy, of a twin run where `body` asks for one. Raises BadInput, BadSpec."""
    asked = body.get("twin", False)
    if not isinstance(asked, bool):
        raise BadInput(f"twin {asked!r} is not true or false; leave it out")
    if not (asked or policy.twin):
        return policy
    if body.get("version"):
        raise BadInput("a twin run takes the version that serves; leave --model, --url and --engine out")
    return parse_policy({**dump(policy), "twin": True})


def _refuse_same(row: ServiceRow, fingerprint: Fingerprint, *, is_twin: bool) -> None:
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


def _waiver(body: Mapping[str, Any]) -> str:
    """Why a stage that can prove nothing is to be run all the same; '': it is not. Raises BadInput."""
    given = body.get("allow_unproven")
    if given is not None and not (isinstance(given, str) and given.strip()):
        raise BadInput(f"allow_unproven {given!r} is no reason; say why, or leave it out")
    return (given or "").strip()


def _refuse_blind(proposal: Proposal) -> None:
    if proposal.traffic is None:
        return
    if lines := blind_stages(proposal.plan, proposal.policy, proposal.traffic):
        raise BadSpec(list(lines))


def _state(row: RolloutRow) -> RolloutState:
    return state_from_json(row.state)


def _refuse_rejected(before: RolloutState) -> None:
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
