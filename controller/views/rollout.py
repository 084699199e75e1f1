"""Views of a service and its rollout: the read model of the command line, the API and the dashboard.

A view decides nothing. Its shapes are in `models.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

from controller.rollout.figures import estimates
from controller.rollout.observation import EvidenceStatus, SplitStatus, VersionPhase, VersionStatus
from controller.rollout.plan import Plan
from controller.rollout.state import PassedStage, Phase, RolloutState, StageProof
from controller.rollout.status import exit_code
from controller.rollout.twin_report import unproven
from controller.spec.label import Label
from controller.views.costs import costs_view
from controller.views.judge import judge_view
from controller.views.models import (
    AlarmView,
    AudienceView,
    CauseView,
    GateView,
    HoldView,
    LogView,
    MissingKeyView,
    PassView,
    ProofView,
    RolloutView,
    ServiceView,
    StageView,
    StepsView,
    VersionView,
)
from controller.views.shape import finite
from controller.views.waiting import waiting_for
from evaluation.report import GateReport, Verdict

T = TypeVar("T")
V = TypeVar("V")


def unread_view(
    service: str, rollout: str, label: Label, why: str, created_at_s: float, ended_at_s: float | None
) -> RolloutView:
    """A rollout whose stored state this release cannot read: what its row says, and why."""
    return RolloutView(
        rollout=rollout,
        service=service,
        stable="",
        canary="",
        canary_name=label.shown,
        source=label.source,
        actor=label.actor,
        message=label.message,
        serving="",
        phase="unreadable",
        stage=None,
        stages=(),
        weight_bp=0,
        holdback_bp=0,
        risk="unknown",
        risk_reasons=(),
        reason=why,
        waiting_for=(),
        started_at_s=created_at_s,
        entered_at_s=ended_at_s if ended_at_s is not None else created_at_s,
        acked_at_s=None,
        deadline_at_s=None,
        is_final=ended_at_s is not None,
        exit_code=None,
        holds=(),
        verdict=None,
        canary_requests=0,
        stable_requests=0,
        gates=(),
        missing=(),
        guards=(),
        notes=(),
        cause=None,
        decisive=None,
        steps=None,
        log=(),
    )


def rollout_view(
    state: RolloutState,
    evidence: EvidenceStatus | None = None,
    *,
    now_s: float | None = None,
    label: Label | None = None,
    judge: VersionStatus | None = None,
) -> RolloutView:
    """The rollout with its newest evidence (None: unreadable). now_s None: time of the last log line.

    label: the canary's, as stored; None: only the one in the state is known. judge: see `judge_view`.
    """
    label = label or Label()
    if state.plan.undo:  # the row's actor brought the version, the plan's reasons say who brought it back
        label = Label(label.name, label.source, message="; ".join(state.plan.reasons))
    at_s = now_s if now_s is not None else (state.log[-1].at_s if state.log else state.entered_at_s)
    in_stage = state.phase is Phase.STAGE
    shown = evidence or EvidenceStatus(state.stage, Verdict.UNDECIDED)
    return RolloutView(
        rollout=state.id,
        service=state.service,
        stable=state.stable.id,
        canary=state.canary.id,
        stable_name=state.stable.label,
        canary_name=label.shown or state.canary.label,
        source=label.source,
        actor=label.actor,
        message=label.message,
        serving=state.serving,
        phase=state.phase,
        stage=state.stage + 1 if in_stage else None,
        stages=stage_views(state.plan, current=state.stage if _has_started(state) else -1, in_stage=in_stage),
        weight_bp=state.weight_bp,
        holdback_bp=state.plan.holdback_bp,
        twin=state.plan.twin,
        undo=state.plan.undo,
        ab_test=state.plan.is_ab_test,
        passed=tuple(map(_pass_view, state.passed)),
        risk=state.plan.risk,
        risk_reasons=state.plan.reasons,
        reason=state.reason,
        waiting_for=waiting_for(state, evidence, at_s),
        started_at_s=state.started_at_s,
        entered_at_s=state.entered_at_s,
        acked_at_s=state.acked_at_s,
        deadline_at_s=state.deadline_at_s,
        is_final=state.is_final,
        exit_code=exit_code(state),
        holds=tuple(map(HoldView.model_validate, state.holds)),
        verdict=evidence.verdict if evidence is not None else None,
        canary_requests=shown.canary_requests,
        stable_requests=shown.stable_requests,
        gates=tuple(map(gate_view, shown.gates)),
        missing=shown.missing,
        guards=tuple(f"{guard.name}: {guard.text}" for guard in shown.guards),
        notes=(*_notes(state), *shown.notes),
        judge=judge_view(state, evidence, judge),
        costs=costs_view(evidence),
        alarms=tuple(map(AlarmView.model_validate, shown.alarms)),
        cause=_optional(CauseView.model_validate, state.cause),
        decisive=_optional(gate_view, state.decisive),
        decided_canary=state.decided_canary,
        steps=_optional(StepsView.model_validate, state.departure),
        log=tuple(map(LogView.model_validate, state.log)),
    )


def service_view(
    service: str,
    *,
    url: str,
    stable: str,
    split: SplitStatus | None,
    versions: Iterable[VersionStatus] | None,
    rollout: RolloutView | None,
    labels: Mapping[str, Label] | None = None,
    missing_keys: Iterable[object] = (),
    problem: str | None = None,
    outage: str | None = None,
) -> ServiceView:
    """The service with its newest rollout. split, versions None: could not be read, shown as null.

    labels: by version, those that are known. missing_keys: objects with the fields of `MissingKeyView`.
    """
    labels = labels or {}
    loaded = None
    if versions is not None:
        present = (one for one in versions if one.phase is not VersionPhase.GONE)
        loaded = tuple(_version_view(one, labels.get(one.version, Label())) for one in present)
    return ServiceView(
        service=service,
        url=url,
        stable=stable,
        stable_name=labels.get(stable, Label()).shown,
        weight_bp=split.weight_bp if split is not None else None,
        routed=split.stable if split is not None and split.stable != stable else None,
        versions=loaded,
        rollout=rollout.as_it_stands(problem) if rollout is not None else None,
        missing_keys=tuple(map(MissingKeyView.model_validate, missing_keys)),
        problem=problem,
        outage=outage,
    )


def _version_view(status: VersionStatus, label: Label) -> VersionView:
    view = VersionView.model_validate(status)
    known = {"source": label.source, "actor": label.actor, "message": label.message}
    return view.model_copy(update={"name": label.shown, **known})


def gate_view(gate: GateReport) -> GateView:
    """One gate with its evidence, and how far that is from a decision."""
    limit = finite(gate.limit)
    ratio = gate.log_e / limit if limit is not None and limit > 0 and math.isfinite(gate.log_e) else 0.0
    low, high = gate.interval if gate.interval is not None else (None, None)
    no_stable, no_canary = gate.unanswered if gate.unanswered is not None else (None, None)
    return GateView(
        gate=gate.gate,
        metric=gate.metric,
        side=gate.side,
        verdict=gate.verdict,
        log_e=gate.log_e,
        limit=gate.limit,
        progress_ratio=min(1.0, max(0.0, ratio)),
        reason=gate.reason,
        n_canary=gate.n_canary,
        n_stable=gate.n_stable,
        canary=gate.canary,
        stable=gate.stable,
        low=low,
        high=high,
        source=gate.source,
        last_value_s=gate.last_value_s,
        statistic=gate.statistic,
        unanswered_stable=no_stable,
        unanswered_canary=no_canary,
        limits=gate.limits,
    )


def stage_views(plan: Plan, *, current: int = -1, in_stage: bool = False) -> tuple[StageView, ...]:
    """The plan's stages. current: index of the rollout's stage, running if `in_stage`; -1: none yet."""
    views = []
    for index, stage in enumerate(plan.stages):
        status: Literal["done", "now", "ahead"] = "done" if index < current else "ahead"
        if in_stage and index == current:
            status = "now"
        views.append(
            StageView(
                number=index + 1,
                weight_bp=stage.weight_bp,
                duration_s=stage.duration_s,
                min_canary=stage.min_canary,
                deadline_s=stage.deadline_s,
                replicas=stage.replicas,
                status=status,
                promote_if_point_ok=stage.promote_if_point_ok,
                audiences=tuple(AudienceView(name=name, weight_bp=bp) for name, bp in stage.audience_bp),
            )
        )
    return tuple(views)


def _has_started(state: RolloutState) -> bool:
    return state.exposed or state.phase in (Phase.STAGE, Phase.PROMOTING, Phase.BAKING, Phase.UNLOADING)


def _notes(state: RolloutState) -> list[str]:
    """Warnings about the rollout itself."""
    notes = ["a twin run: both arms are one model, and nothing will be promoted"] if state.plan.twin else []
    if text := unproven(state):
        notes.append(text.removeprefix("; "))
    return notes


def _pass_view(passed: PassedStage) -> PassView:
    return PassView(
        number=passed.stage + 1,
        weight_bp=passed.weight_bp,
        how=passed.how,
        at_s=passed.at_s,
        held_s=passed.held_s,
        canary_requests=passed.canary_requests,
        proven_canary=passed.proven_canary,
        proven_after_s=passed.proven_after_s,
        last_gate=passed.last_gate,
        nearest_gate=passed.nearest_gate,
        nearest_ratio=passed.nearest_ratio,
        proofs=tuple(map(_proof_view, passed.proofs)),
    )


def _proof_view(proof: StageProof) -> ProofView:
    margin = (proof.reason or proof.gate).removesuffix(" proven") if proof.is_proven else proof.reason
    return ProofView(
        gate=proof.gate,
        metric=proof.metric,
        is_proven=proof.is_proven,
        text=f"{margin}; {estimates(proof)}",
        stable=proof.stable,
        canary=proof.canary,
        n_stable=proof.n_stable,
        n_canary=proof.n_canary,
        statistic=proof.statistic,
        decided_canary=proof.decided_canary,
    )


def _optional(view: Callable[[T], V], value: T | None) -> V | None:
    return view(value) if value is not None else None
