"""Conditions that a rollout waits for before its next transition, one line each."""

from __future__ import annotations

import math

from controller.quantities import duration, percent
from controller.rollout.evidence_gap import evidence_gap
from controller.rollout.judge import awaits_examination
from controller.rollout.mirroring import progress_text
from controller.rollout.observation import EvidenceStatus, Observation
from controller.rollout.state import DepartureStep, Phase, RolloutState
from evaluation.metrics import CATALOGUE
from evaluation.report import GateReport, Source, Verdict


def waiting_for(state: RolloutState, evidence: EvidenceStatus | None, now_s: float) -> tuple[str, ...]:
    """What the rollout waits for; empty: nothing, or it has ended. evidence None: it cannot be read."""
    if state.is_final:
        return ()
    if state.departure is not None and state.departure.step is DepartureStep.RESTORE:
        return (f"{state.departure.staying} to be ready",)
    if state.departure is not None:
        return (f"{state.departure.step.value} of {state.departure.leaving}",)
    waits = [f"{hold.kind.value.replace('_', ' ')} ({hold.actor}): {hold.reason}" for hold in state.holds]
    acked_at_s = state.acked_at_s
    if acked_at_s is None and state.phase in (Phase.STAGE, Phase.BAKING):
        return (*waits, f"the routers to acknowledge {percent(state.weight_bp)}")
    gap = evidence_gap(state, Observation(now_s, evidence=evidence), now_s)
    match state.phase:
        case Phase.STAGE:
            if acked_at_s is not None and state.waived_through < state.stage:
                waits += _stage_waits(state, evidence, now_s - acked_at_s)
        case Phase.BAKING:
            remaining_s = state.plan.bake_s - (now_s - state.entered_at_s)
            waits += (
                [f"{duration(math.ceil(remaining_s))} of bake"] if remaining_s > 0 else [gap] if gap else []
            )
        case Phase.PROMOTING:
            is_weight_set = state.weight_bp == state.plan.promoted_bp
            waits += (
                ["the routers"] if is_weight_set else ["full capacity", gap] if gap else ["full capacity"]
            )
        case Phase.MIRRORING:
            waits.append(progress_text(state, Observation(now_s, evidence=evidence)))
        case _:
            waits.append(f"{state.phase.value} of {state.canary.id}")
            if (judge := state.plan.judge) is not None and awaits_examination(state):
                waits.append(f"the examination of judge {judge.model}")
    return tuple(waits)


def _stage_waits(state: RolloutState, evidence: EvidenceStatus | None, elapsed_s: float) -> list[str]:
    if evidence is None:
        return ["readable evidence"]
    if state.plan.is_ab_test:
        return [f"canaryctl ab stop {state.service}: an A/B test is never promoted automatically"]
    stage, waits = state.plan.stages[state.stage], []
    if elapsed_s < stage.duration_s:
        waits.append(f"{duration(math.ceil(stage.duration_s - elapsed_s))} at {percent(stage.weight_bp)}")
    if evidence.canary_requests < stage.min_canary:
        waits.append(f"{stage.min_canary - evidence.canary_requests} canary requests")
    if evidence.verdict is not Verdict.PASS:
        unproven = [
            gate for gate in evidence.gates if gate.side == "promotion" and gate.verdict is not Verdict.PASS
        ]
        silent = [gate.gate for gate in unproven if _has_no_score(gate)]
        provable = [gate.gate for gate in unproven if gate.gate not in silent]
        if provable or not silent:
            waits.append(_proof(provable) if provable else "a PASS verdict")
        if silent:
            names = ", ".join(silent)
            waits.append(f"a first score for {names} (POST /v1/feedback), without which nothing is promoted")
    stopped = {gate.metric for gate in evidence.gates if gate.source is Source.STOPPED and not gate.is_alarm}
    waits += [f"{metric} to arrive again" for metric in sorted(stopped)]
    return waits + [f"data to judge {name}" for name in evidence.missing]


def _proof(gates: list[str]) -> str:
    """What these gates have to show, in words."""
    return f"proof that {', '.join(gates)} {'is' if len(gates) == 1 else 'are'} no worse"


def _has_no_score(gate: GateReport) -> bool:
    """Whether the gate is on scores that come after the answer, and none has come in this rollout."""
    metric = CATALOGUE.get(gate.metric)
    return metric is not None and metric.arrives_later and gate.last_value_s is None
