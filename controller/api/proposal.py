"""Proposal of a rollout: the assessed change with its plan and forecast, and the checks that refuse it."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from controller.api.bodies import flag_of
from controller.api.keys import FindProblem, MissingKey, missing_key
from controller.auth import Identity, Role
from controller.errors import AlreadyRejected, BadInput, BadSpec, CanaryctlError, Conflict, NoRoom
from controller.evidence.pricing import pinned
from controller.evidence.records import LIVE_COVARIATES
from controller.planning.baseline import MeasuredBaseline
from controller.planning.capacity import Fit
from controller.planning.fingerprint import Fingerprint
from controller.planning.forecast import (
    describe_traffic,
    gated_metrics,
    keyed_caution,
    refusals,
    underpowered_stages,
)
from controller.planning.judge_engine import ServedJudge
from controller.planning.judged import judge_cautions, judge_line, pair_cautions
from controller.planning.ladder import gate_stages, latency_lines, slow_stages
from controller.planning.risk import Assessment
from controller.planning.unjudged import Unjudged, assumed, awaited
from controller.rollout.plan import ROLLOUT_PREFIX, Plan, VersionRef
from controller.rollout.twin_report import twin_id
from controller.spec.judge import JudgeSpec
from controller.spec.label import Label, parse_label, short_source
from controller.spec.policy import PolicySpec
from controller.spec.policy_parts import suggestion
from controller.spec.prices import PricesSpec, with_budget
from controller.spec.service import ServiceSpec, derived_policy, dump, parse_version, unknown_audience
from controller.spec.version import VersionSpec
from controller.store.row_specs import label_of, version_spec
from controller.store.rows import ServiceRow, VersionRow
from controller.views.models import AttemptView, PlanView, RefusalView, UnjudgedView
from controller.views.plan import forecast_view, plan_view
from evaluation.costs import Prices
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast
from serving.files.engine_arguments import canonical_name

MIN_PREFLIGHT_S = 60.0
HASH_BYTES_PER_S = 100e6  # of a slow disk


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rollout that could be started: nothing has been stored yet."""

    service: ServiceRow
    stable: VersionRow
    version: VersionSpec
    fingerprint: Fingerprint
    policy: PolicySpec
    assessment: Assessment
    plan: Plan
    fit: Fit
    measured: MeasuredBaseline
    name: str | None  # given to the canary; None: none
    traffic: TrafficModel | None  # None: not known, so there is no forecast either
    forecast: tuple[StageForecast, ...] | None = None
    not_judged: tuple[Unjudged, ...] = ()  # gates without a source; those nobody named are not in `policy`
    attempts: tuple[AttemptView, ...] = ()  # earlier rollouts of this version, newest first
    missing_keys: tuple[str, ...] = ()  # a line for each API key that cannot be read
    rejected: str | None = None  # why a deploy needs a retry; None: it needs none
    refusals: tuple[CanaryctlError, ...] = ()  # that a deploy would raise, the first one first
    forecast_note: str | None = None  # why there is no forecast; None: there is one, or none was requested
    judge: JudgeSpec | None = None  # None: none is asked
    served_judge: ServedJudge | None = None  # its engine; None: it is at an endpoint, or there is none
    judge_note: str | None = None  # why the service's judge is not asked; None: it is, or it has none
    routers: int = 1
    prices: PricesSpec | None = None  # of the service; None: it has none
    earlier_name: str | None = None  # that the same version had when it was deployed before; None: none
    stored_id: str | None = None  # id of the same version as older rules computed it; None: there is none

    @property
    def canary_id(self) -> str:
        """Id of the canary: its fingerprint's; a twin, which has stable's fingerprint, has its own."""
        version_id = self.stored_id or self.fingerprint.version_id
        return twin_id(version_id) if self.plan.twin else version_id

    @property
    def rollout_prices(self) -> Prices | None:
        """What the tokens of both versions cost, of a twin as of stable; None: the service has no prices."""
        if self.prices is None:
            return None
        before, own = version_spec(self.stable), self.version
        stable = (self.stable.id, self.stable.name, before.model, before.url)
        canary = (self.canary_id, self.name or self.earlier_name, own.model, own.url)
        return self.prices.of(stable, stable if self.plan.twin else canary)

    @property
    def cautions(self) -> tuple[str, ...]:
        """One line for each gate whose first score may never come, and for each stage that takes weeks."""
        rate = self.traffic.requests_per_s if self.traffic is not None else None
        slow = () if rate is None else slow_stages(self.plan, rate)
        judge: tuple[str, ...] = ()
        if self.judge is not None:
            of_pairs = pair_cautions(self.judge, self.plan.mirror, self.routers)
            judge = (*judge_cautions(self.judge, rate, self.routers), *of_pairs)
        noted = () if self.judge_note is None else (self.judge_note,)
        prices = () if self.rollout_prices is None else self.rollout_prices.unpriced
        keyed = keyed_caution(self.policy, self.measured)
        return (*prices, *judge, *noted, *awaited(self.policy, self.measured, self.judged), *keyed, *slow)

    @property
    def judged(self) -> tuple[str, ...]:
        """Metrics that the rollout's judge gives."""
        return () if self.judge is None else (self.judge.metric,)

    def label(self, body: Mapping[str, Any], identity: Identity) -> Label:
        """Label of the canary; of a twin, stable's name. Raises BadInput."""
        label = parse_label(body, source=self.version.model or self.version.url, identity=identity.name)
        name = label_of(self.stable).name if self.plan.twin else None
        return replace(label, name=label.name or name)

    def missing_key(self, find: FindProblem) -> MissingKey | None:
        """The API key that the canary lacks; None: it needs none, or it can be read."""
        name = self.name or short_source(self.version.url or "")
        return missing_key(self.canary_id, name, self.version, "canary", find)

    def refused(self, missing: MissingKey | None, *, is_unjudged_allowed: bool) -> tuple[CanaryctlError, ...]:
        """What a deploy of this plan would raise, in its order. missing: the canary's API key."""
        unjudged = [] if is_unjudged_allowed else [o.text for o in self.not_judged if o.needs != "nothing"]
        return (
            *([AlreadyRejected(self.rejected)] if self.rejected is not None and not self.plan.twin else []),
            *([Conflict(missing.text)] if missing is not None else []),
            *([] if self.fit.fits else [NoRoom(self.fit.text)]),
            *([BadSpec(unjudged)] if unjudged else []),
        )

    def view(self) -> PlanView:
        """The view that `canaryctl plan` shows."""
        view = plan_view(
            self.service.name,
            self.stable.id,
            self.canary_id,
            assessment=self.assessment,
            plan=self.plan,
            policy=self.policy.gate_policy(),
            fit=self.fit,
            latency=latency_lines(self.plan, self.policy),
        )
        update: dict[str, object] = {
            "forecast_note": self.forecast_note,
            "stable_name": label_of(self.stable).shown,
            "canary_name": self.name or short_source(self.version.model or self.version.url or ""),
            "attempts": self.attempts,
            "warnings": (
                *view.warnings,
                *(
                    [f"a deploy is refused without --retry: {self.rejected}"]
                    if self.rejected is not None
                    else []
                ),
                *self.cautions,
                *self.missing_keys,
            ),
            "not_judged": tuple(map(UnjudgedView.model_validate, self.not_judged)),
            "judge": self._judge_line(),
            "refusals": tuple(
                RefusalView(text=line, exit_code=error.exit_code)
                for error in self.refusals
                for line in error.details
            ),
        }
        if self.traffic is not None:
            update |= {
                "requests_per_s": self.traffic.requests_per_s,
                "unit_requests": self.traffic.unit_requests,
                "users": self.traffic.users,
                "basis": (
                    *self.measured.summary(gated_metrics(self.policy)),
                    *assumed(self.policy, self.measured, self.judged),
                ),
            }
        if self.forecast is not None:
            stages = [forecast_view(one, self.plan.stages[one.stage].weight_bp) for one in self.forecast]
            update |= {
                "forecast": tuple(stages),
                "forecast_runs": max((one.runs for one in stages), default=None),
            }
        return view.model_copy(update=update)

    def _judge_line(self) -> str:
        if self.judge is None:
            return ""
        rate = self.traffic.requests_per_s if self.traffic is not None else None
        return judge_line(self.judge, self.plan, rate, self.served_judge)

    def byline(self, label: Label, reason: str, *, unjudged: str, unproven: str) -> str:
        """Who deploys it and why, for the log. unjudged, unproven: reasons to go without a check."""
        parts = (
            label.byline,
            f"reason: {reason}" if reason else "",
            self.unjudged_note(unjudged),
            f"stages may stay unproven: {unproven}" if unproven else "",
        )
        return "; ".join(filter(None, parts))

    def request(self, label: Label, reason: str, *, unjudged: str, unproven: str) -> dict[str, object]:
        """What is stored of the deploy, for the evidence and for the record."""
        return {
            "version": dump(self.version),
            "policy": dump(self.policy),
            "gate": with_budget(self.policy.gate_policy(), self.prices).to_mapping(),
            "prices": pinned(self.rollout_prices),
            "stages": [asdict(stage) for stage in gate_stages(self.plan, self.policy)],
            "actor": label.actor,
            "reason": reason,
            "allow_unproven": unproven,
            "allow_unjudged": unjudged,
            "not_judged": [one.gate for one in self.not_judged],
            "judge": None if self.judge is None else dump(self.judge),
        }

    def unjudged_note(self, reason: str) -> str:
        """For the rollout's log: the gates that nothing judges, and why that is accepted; '': none."""
        gates = ", ".join(one.gate for one in self.not_judged)
        return f"NOT JUDGED: {gates}{f' ({reason})' if reason else ''}" if gates else ""

    def unprovable_stages(self) -> tuple[str, ...]:
        """One line for each stage that can prove nothing: by the forecast, without one by its power alone."""
        if self.traffic is None:
            return ()
        if self.forecast is None:
            return underpowered_stages(self.plan, self.policy, self.traffic)
        lines = refusals(self.forecast, self.plan, self.policy, self.traffic)
        return tuple(f"{line} ({describe_traffic(self.traffic)})" for line in lines)


def new_rollout_id(prefix: str = ROLLOUT_PREFIX) -> str:
    """`r-` (of an undo `u-`) and eight hex digits."""
    return f"{prefix}{secrets.token_hex(4)}"


def version_ref(row: VersionRow) -> VersionRef:
    """One arm of a rollout."""
    spec = version_spec(row)
    return VersionRef(row.id, spec.replicas, spec.is_external, label_of(row).shown)


def preflight_s(fingerprint: Fingerprint) -> float:
    """Time limit of a preflight, in seconds: it may have to hash the whole checkpoint again."""
    return MIN_PREFLIGHT_S + fingerprint.tensor_bytes / HASH_BYTES_PER_S


def changed_version(
    stable: VersionRow, change: Mapping[str, Any], *, checkpoint: VersionRow | None = None
) -> VersionSpec:
    """Stable's spec with the user's change; what the change does not name is inherited. Raises BadInput.

    checkpoint: the newest version before an endpoint that is no endpoint. A checkpoint that replaces the
    endpoint inherits from it, so that its sizes and with them its id survive the way through the endpoint.
    """
    if not isinstance(change, Mapping):
        raise BadInput(f"version is {type(change).__name__}; write model: DIR or url: URL")
    inherited = dump(version_spec(stable))
    if checkpoint is not None and "url" in inherited and change.get("url") is None and change.get("model"):
        inherited = dump(version_spec(checkpoint))
    if change.get("url") is not None:
        inherited = {}
    elif change.get("model") is not None:
        for name in ("url", "api_key_env", "api_key_file"):
            inherited.pop(name, None)
    engine = change.get("engine")
    if isinstance(engine, Mapping):
        named = {canonical_name(str(name)): value for name, value in engine.items()}
        change = {**change, "engine": {**inherited.get("engine", {}), **named}}
    return parse_version({**inherited, **change})


def refuse_new_key(version: VersionSpec, known: Iterable[VersionSpec], identity: Identity) -> None:
    """Raises BadInput for a key that the service does not send to this endpoint yet, unless an admin asks.

    Who names the file or variable can have any of them sent to a host of their own. known: the service's
    versions; they are asked for only if they matter.
    """
    if version.api_key is None or version.url is None or identity.role.covers(Role.ADMIN):
        return
    host = _host(version.url)
    if any(one.api_key == version.api_key and one.url and _host(one.url) == host for one in known):
        return
    raise BadInput(
        f"{version.api_key} is new for {host}: an admin must deploy it first, because its content is sent "
        "there; or use a key and an endpoint that the service has"
    )


def _host(url: str) -> str:
    """Scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"


def as_twin(policy: PolicySpec, body: Mapping[str, Any]) -> PolicySpec:
    """The policy, changed to a twin run if `body` requests one. Raises BadInput, BadSpec."""
    is_twin = flag_of(body, "twin")
    if not (is_twin or policy.twin):
        return policy
    if body.get("version"):
        raise BadInput("a twin run uses the version that serves; leave --model, --url and --engine out")
    return derived_policy(policy, {"twin": True})


def refuse_unkept(service: str, label: Label, versions: Iterable[VersionRow | None]) -> None:
    """Raises Conflict for a name or a message that no version of the running service has: it would go."""
    known = [label_of(one) for one in versions]
    for key in ("name", "message"):
        given = getattr(label, key)
        if given is not None and given not in [getattr(one, key) for one in known]:
            raise Conflict(
                f"{service} runs already, so {key} {given!r} would not be kept; leave it out, or give it "
                "with a deploy"
            )


def refuse_unknown_covariates(policy: PolicySpec) -> None:
    """Raises BadInput for a covariate that the router does not record before its toss."""
    for gate in policy.gate_policy().gates:
        for name in gate.covariates:
            if name not in LIVE_COVARIATES:
                raise BadInput(
                    f"policy.gates.{gate.name}.covariates: {name!r} is not known before the toss; "
                    f"{suggestion(name, LIVE_COVARIATES)} (a backtest may use any column of its file)"
                )


def refuse_unknown_audiences(policy: PolicySpec, spec: ServiceSpec) -> None:
    """Raises BadInput for an audience of a stage that no client of the service is in."""
    if unknown := unknown_audience(policy, spec.clients):
        raise BadInput(f"policy.{unknown[0]} {unknown[1]}")


def refuse_same(row: ServiceRow, stable: Fingerprint, canary: Fingerprint, *, is_twin: bool) -> None:
    """Raises Conflict for a canary that equals stable, and for a twin that does not."""
    is_same = canary.digest == stable.digest
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
