"""Commands of the controller: up, plan, deploy, rollback, undo, down, feedback.

Invariant: a refused command changes nothing; an accepted one is stored before it is answered, and the ticks
do the work.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

from controller.api.attempts import attempt_views, refuse_tried, tried
from controller.api.bodies import FeedbackResult, flag_of, refuse_unknown, text_of, waiver_of
from controller.api.engine_rights import refuse_new_arguments, refuse_new_code
from controller.api.feedback import Score, parse_scores, write_scores
from controller.api.forecasts import unjudged_lines, unprovable_lines, with_forecast
from controller.api.golden_rights import refuse_new_golden
from controller.api.judge_engine import devices_beside_judge, is_served, planned_judge, require_judge
from controller.api.keys import missing_keys
from controller.api.proposal import (
    Proposal,
    as_twin,
    changed_version,
    new_rollout_id,
    preflight_s,
    refuse_new_key,
    refuse_same,
    refuse_unkept,
    refuse_unknown_audiences,
    refuse_unknown_covariates,
    version_ref,
)
from controller.api.returns import Host, Returns, Ticks
from controller.auth import Identity, make_secret
from controller.errors import AlreadyRejected, BadInput, BadSpec, Conflict, NoRoom, RolloutRunning
from controller.planning.baseline import MeasuredBaseline, with_costs
from controller.planning.capacity import require_fit, with_headroom
from controller.planning.fingerprint import Fingerprint
from controller.planning.forecast import FORECAST_KEYS, TrafficOverrides
from controller.planning.judge_engine import fit_beside
from controller.planning.judged import judge_plan, rollout_traffic, why_not_asked, with_judge
from controller.planning.ladder import make_plan
from controller.planning.risk import assess
from controller.planning.unjudged import unjudged, without
from controller.rollout.journal import log
from controller.rollout.machine import begin
from controller.rollout.plan import Plan
from controller.rollout.ports import Clock
from controller.rollout.state import RolloutState
from controller.runtime.golden_file import pinned
from controller.spec.differences import changed_in_place, refuse_change
from controller.spec.judge import judge_of
from controller.spec.label import LABEL_KEYS, parse_label
from controller.spec.policy import PolicySpec
from controller.spec.service import ServiceSpec, dump, parse_policy, parse_service
from controller.spec.version import VersionSpec
from controller.store.row_specs import (
    comparable_fingerprint,
    fingerprint_of,
    service_spec,
    version_row,
    version_spec,
)
from controller.store.rows import AbRow, ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.store.statements import already_running
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

WAIVERS = ("allow_unproven", "allow_unjudged")
DEPLOY_KEYS = ("version", "policy", "twin", "retry", "reason", *WAIVERS, *LABEL_KEYS)
PLAN_KEYS = (*DEPLOY_KEYS, *FORECAST_KEYS)


class Environment(Host, Protocol):
    """Port: files, devices, traffic and simulations of the host (adapter: `wiring.environment`)."""

    def fingerprint(self, version: VersionSpec) -> Fingerprint: ...
    def kv_bytes(self, version: VersionSpec) -> int: ...
    def require_leading(self) -> None: ...
    def serves(self, service: str) -> str | None: ...
    def require_measuring(self, service: str) -> None: ...
    def requests_per_s(self, service: str) -> float | None: ...
    def measured(self, service: str) -> MeasuredBaseline | None: ...
    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[StageForecast, ...]: ...
    def append_scores(self, service: str, scores: Sequence[Score]) -> bool: ...
    def has_request(self, service: str, id: str) -> bool | None: ...
    def has_score(self, service: str, id: str, metric: str) -> bool: ...
    def forgotten_after_s(self, service: str) -> float | None: ...


class Commands(Returns):
    """The controller's commands."""

    def __init__(self, store: SqlStore, environment: Environment, clock: Clock, ticks: Ticks) -> None:
        super().__init__(store, environment, clock, ticks)
        self._environment = environment
        self._creation = threading.Lock()  # one new service after the other: each needs memory

    def up(self, body: Mapping[str, Any], identity: Identity) -> ServiceRow:
        """Create the service; an existing service that already is what `body` describes is left unchanged.

        Raises BadSpec, BadCheckpoint, NoRoom, Conflict when the existing service differs or when something
        that this database does not know serves under the name, OlderDatabase, and Unreachable where that is
        not known and on a controller that does not lead.
        """
        spec = parse_service({key: value for key, value in body.items() if key not in LABEL_KEYS})
        label = parse_label(body, source=spec.model or spec.url, identity=identity.name)
        if (row := self._existing(spec, identity)) is not None:
            refuse_unkept(row.name, label, [one.version for one in self._store.served(row.name)])
            return row
        require_judge(spec.judge, self._environment)
        version = spec.version()
        unsized, kv_bytes = self._environment.fingerprint(version), self._environment.kv_bytes(version)
        self._environment.require_leading()  # the one controller that gives out memory
        for known in self._store.services():  # a new one has no table of its own that could tell
            self._require_kept(known.name)
        # Nothing is reserved for a service before its row is stored, and it loads without a preflight.
        with self._creation:
            if (row := self._existing(spec, identity)) is not None:  # the same request, repeated
                return row
            if (version_id := self._environment.serves(spec.service)) is not None:
                raise Conflict(
                    f"{spec.service} is served by {version_id} already, but this database has no such "
                    "service: it was lost or replaced; restore it (CANARYCTL_DATABASE_URL, or canaryctl.db "
                    "in the state folder), then: canaryctl up; to end what serves: canaryctl down"
                )
            devices = devices_beside_judge(spec, self._environment)
            version = with_headroom(version, unsized, devices, kv_bytes=kv_bytes)
            fingerprint = self._environment.fingerprint(version)
            require_fit(version, fingerprint, devices)
            now_s = self._clock.now_s()
            id, secret = fingerprint.version_id, make_secret()
            row = ServiceRow(spec.service, json.dumps(dump(spec)), id, secret, now_s)
            self._store.put_service(row, version_row(spec.service, version, fingerprint, now_s, label=label))
        self._ticks.wake(spec.service)
        return row

    def _existing(self, spec: ServiceSpec, identity: Identity) -> ServiceRow | None:
        """The service, with the clients and judge of `spec` if it names them; None: it does not exist."""
        if spec.service not in {row.name for row in self._store.services()}:
            return None
        row = self._active_service(spec.service)
        self._require_kept(row.name)
        stable = self._store.version(row.name, row.stable)
        running = version_spec(stable) if stable is not None else None
        given = service_spec(row)
        refuse_change(spec, stable=row.stable, given=given, running=running)
        if changes := changed_in_place(spec, given):
            require_judge(spec.judge if "judge" in changes else None, self._environment)
            self._store.set_keys(
                row.name,
                lambda now: json.dumps(dump(service_spec(now).model_copy(update=changes))),
                identity,
                keys=tuple(changes),
                at_s=self._clock.now_s(),
            )
            row = self._store.service(row.name)
        self._ticks.wake(row.name)
        return row

    def plan(self, service: str, body: Mapping[str, Any], identity: Identity) -> Proposal:
        """The rollout that a deploy of `body` would start, with its forecast. Changes nothing.

        Beside the keys of a deploy: `rate` (requests/s), `unit_requests`, `users` (default: measured),
        `quick` (true: no simulation). What a deploy would refuse is in `refusals`, a running rollout first;
        what cannot be planned is raised, as BadSpec for a stage that can prove nothing at this traffic.
        """
        overrides = TrafficOverrides.parse(body)
        proposal = self._propose(service, body, PLAN_KEYS, overrides, identity)
        proposal = with_forecast(proposal, self._environment, is_quick=overrides.is_quick)
        proposal = replace(
            proposal,
            attempts=attempt_views(self._store, service, proposal.canary_id),
            missing_keys=self._missing_keys(proposal, identity),
            rejected=None if flag_of(body, "retry") else self._rejected(proposal),
        )
        waiver = waiver_of(body, "allow_unjudged")
        named = () if waiver else [one.text for one in proposal.not_judged if one.needs == "source"]
        unprovable = () if waiver_of(body, "allow_unproven") else proposal.unprovable_stages()
        if lines := (*named, *unprovable):
            raise BadSpec(list(lines))
        missing = proposal.missing_key(self._environment.key_problem)
        refused = proposal.refused(missing, is_unjudged_allowed=bool(waiver))
        running = _blocking(service, self._running(self._newest(service)))
        return replace(proposal, refusals=refused if running is None else (running, *refused))

    def deploy(
        self,
        service: str,
        body: Mapping[str, Any],
        identity: Identity,
        *,
        ab_test: Callable[[str], AbRow] | None = None,
    ) -> RolloutState:
        """Start a rollout. The state's log holds its plan, then a line for each warning.

        Raises RolloutRunning, AlreadyRejected, NoRoom, BadSpec, BadCheckpoint and OlderDatabase.

        ab_test: the test that runs on the rollout of this id, stored in the same transaction.
        """
        self._require_kept(service)
        may_retry, reason = flag_of(body, "retry"), text_of(body, "reason")
        self._active_service(service)
        newest = self._newest(service)
        if (running := _blocking(service, self._running(newest))) is not None:
            raise running
        proposal = self._propose(service, body, DEPLOY_KEYS, TrafficOverrides(), identity)
        self._refuse_new_key(proposal, identity)
        # A rolled-back twin shows no harm, and twins are run to count how often that happens.
        if not proposal.plan.twin and not may_retry:
            refuse_tried(self._store, service, proposal.canary_id)
        if (missing := proposal.missing_key(self._environment.key_problem)) is not None:
            raise Conflict(missing.text)
        if not proposal.fit.fits:
            raise NoRoom(proposal.fit.text)
        unjudged_reason = waiver_of(body, "allow_unjudged")
        waiver = waiver_of(body, "allow_unproven")
        refused = [] if unjudged_reason else unjudged_lines(proposal)
        refused += [] if waiver else unprovable_lines(proposal, self._environment)
        if refused:
            raise BadSpec(refused)
        now_s = self._clock.now_s()
        label = proposal.label(body, identity)
        row = version_row(service, proposal.version, proposal.fingerprint, now_s, label=label)
        row = replace(row, id=proposal.canary_id)
        state = begin(
            new_rollout_id(),
            service,
            stable=version_ref(proposal.stable),
            canary=version_ref(row),
            plan=proposal.plan,
            now_s=now_s,
            byline=proposal.byline(label, reason, unjudged=unjudged_reason, unproven=waiver),
        )
        for line in proposal.cautions if ab_test is None else ():
            state = log(state, now_s, line)
        request = proposal.request(label, reason, unjudged=unjudged_reason, unproven=waiver)
        # The forecast may have taken half a minute, in which this version may have been tried and rejected.
        self._store.create_rollout(
            state,
            request=json.dumps(request),
            at_s=now_s,
            version=row,
            newest=newest.id if newest is not None else None,
            ab_test=ab_test(state.id) if ab_test is not None else None,
        )
        self._ticks.wake(service)
        return state

    def _checkpoint_before(self, service: str) -> VersionRow | None:
        """The newest checkpoint that served; None: endpoints alone did."""
        served = (one.version for one in self._store.served(service))
        return next((row for row in served if not version_spec(row).is_external), None)

    def _refuse_new_key(self, proposal: Proposal, identity: Identity) -> None:
        """Raises BadInput, see `proposal.refuse_new_key`."""
        refuse_new_key(proposal.version, self._known(proposal.service.name, proposal.stable), identity)

    def _missing_keys(self, proposal: Proposal, identity: Identity) -> tuple[str, ...]:
        """A line for each key that the planned rollout or a way back from it would lack."""
        find = self._environment.key_problem
        lines = [one.text for one in missing_keys(self._store, proposal.service, find)]
        try:
            self._refuse_new_key(proposal, identity)
        except BadInput as exc:  # nor is this person told which files and variables there are
            return (*lines, str(exc))
        missing = proposal.missing_key(find)
        return tuple(lines) if missing is None else (*lines, missing.text)

    def _propose(
        self,
        service: str,
        body: Mapping[str, Any],
        keys: Sequence[str],
        overrides: TrafficOverrides,
        identity: Identity,
    ) -> Proposal:
        """The proposal without a forecast. keys: those that `body` may have."""
        row = self._active_service(service)
        stable = self._store.version(service, row.stable)
        if stable is None:
            raise Conflict(f"{service} has no stored version {row.stable}; restore the store")
        refuse_unknown(body, keys)
        spec = service_spec(row)
        policy = parse_policy(body["policy"]) if body.get("policy") is not None else spec.policy
        policy = as_twin(policy, body)
        refuse_new_golden(policy, spec, self._store, identity)
        refuse_unknown_covariates(policy)
        refuse_unknown_audiences(policy, spec)
        # One way for every controller: without the measurements a deploy would skip what depends on them.
        self._environment.require_measuring(service)
        measured = with_costs(self._environment.measured(service) or MeasuredBaseline(0), spec.prices)
        judge = judge_of(spec.judge, policy)
        judged = () if judge is None else (judge.metric,)
        not_judged = unjudged(policy, measured, judged)
        policy = with_judge(without(policy, not_judged), judge)
        before = version_spec(stable)
        checkpoint = self._checkpoint_before(service) if before.is_external else None
        change = body.get("version") or {}
        version = before if policy.twin else changed_version(stable, change, checkpoint=checkpoint)
        # Before any file that the version names is read.
        refuse_new_arguments(version, self._known(service, stable), identity)
        fingerprint = self._environment.fingerprint(version)
        current = comparable_fingerprint(stable, self._environment.fingerprint)
        refuse_new_code(version, fingerprint, self._known_code(service, stable, current), identity)
        refuse_same(row, current, fingerprint, is_twin=policy.twin)
        assessment = assess(current, fingerprint)
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
        devices = () if version.is_external and not is_served(judge) else self._environment.devices()
        served = planned_judge(judge, self._environment, devices)
        plan = replace(plan, preflight_s=preflight_s(fingerprint), preflight=pinned(plan.preflight))
        plan = replace(plan, judge=judge_plan(judge, served))
        stored_id = row.stable if policy.twin else self._stored_id(service, fingerprint)
        earlier = self._store.version(service, stored_id or fingerprint.version_id)
        return Proposal(
            service=row,
            stable=stable,
            version=version,
            fingerprint=fingerprint,
            policy=policy,
            assessment=assessment,
            plan=plan,
            fit=fit_beside(version, fingerprint, devices, served),
            measured=measured,
            not_judged=not_judged,
            name=parse_label(body, source=None, identity="").name,
            traffic=rollout_traffic(policy, measured, rate, overrides, judge),
            judge=judge,
            served_judge=served,
            judge_note=why_not_asked(spec.judge, judge),
            routers=spec.routers,
            prices=spec.prices,
            earlier_name=None if earlier is None else earlier.name,
            stored_id=stored_id,
        )

    def _stored_id(self, service: str, fingerprint: Fingerprint) -> str | None:
        """Id of an earlier attempt of this version that older rules computed; None: there is none."""
        for row in tried(self._store, service):
            if fingerprint_of(row).is_current and fingerprint.kind != "external":
                continue
            if comparable_fingerprint(row, self._environment.fingerprint).digest == fingerprint.digest:
                return row.id
        return None

    def policy(self, service: str) -> PolicySpec:
        """The service's own policy, as given to `up`. Raises UnknownService, Conflict while it is removed."""
        return service_spec(self._active_service(service)).policy

    def down(self, service: str, identity: Identity) -> None:
        """Take the service down. Raises OlderDatabase, and RolloutRunning: roll back first."""
        self._require_kept(service)
        row = self._store.service(service)
        if not row.removing:
            self._store.mark_removing(service, identity, at_s=self._clock.now_s())
        self._ticks.wake(service)

    def feedback(self, items: Sequence[Mapping[str, Any]], *, service: str | None) -> FeedbackResult:
        """Write scores to the records logs. service None: of the service that answered each request.

        Raises BadInput, with none written, and Unreachable.
        """
        scores = parse_scores(items, now_s=self._clock.now_s())
        rows = [self._store.service(service)] if service else self._store.services()
        if not rows:
            raise BadInput("there is no service to give feedback to; start one: canaryctl up")
        return write_scores(self._environment, [row.name for row in rows], scores)

    def _known(self, service: str, stable: VersionRow) -> Iterator[VersionSpec]:
        """Specs of the versions that the service has or had."""
        return (version_spec(row) for row in chain([stable], tried(self._store, service)))

    def _known_code(
        self, service: str, stable: VersionRow, current: Fingerprint
    ) -> Iterator[tuple[VersionSpec, Fingerprint]]:
        """The same with their fingerprints. current: stable's."""
        yield version_spec(stable), current
        yield from ((version_spec(row), fingerprint_of(row)) for row in tried(self._store, service))

    def _rejected(self, proposal: Proposal) -> str | None:
        """Why a deploy of this version needs a retry; None: it needs none."""
        if proposal.plan.twin:
            return None
        try:
            refuse_tried(self._store, proposal.service.name, proposal.canary_id)
        except AlreadyRejected as exc:
            return str(exc)
        return None


def _blocking(service: str, running: RolloutState | None) -> RolloutRunning | None:
    """Why no rollout can begin on the service now; None: none runs there."""
    if running is None:
        return None
    return already_running(service, running.id, f"in {running.phase.value}", before=running.stable.id)
