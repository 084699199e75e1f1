"""Record of each passed stage, and the report of a twin run, in which every alarm is a false one."""

from __future__ import annotations

import math

from controller.quantities import duration, percent
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import PassedStage, RolloutState, StageExit, StageProof
from evaluation.report import GateReport, Verdict


def twin_id(stable: str) -> str:
    """Id of a twin in the fleet and the route table, where two versions may not share one."""
    return f"{stable}-twin"


def passed_stage(
    state: RolloutState, how: StageExit, evidence: EvidenceStatus | None, now_s: float
) -> PassedStage:
    """Record of the stage being left: its last proof, and the rollback gate that came closest to firing."""
    since_s = state.acked_at_s if state.acked_at_s is not None else now_s
    gates = evidence.gates if evidence is not None else ()
    proofs = [
        gate
        for gate in gates
        if gate.side == "promotion" and gate.verdict is Verdict.PASS and gate.decided_canary is not None
    ]
    last = max(proofs, key=lambda gate: gate.decided_canary or 0, default=None)
    harm = [gate for gate in gates if gate.side == "rollback" and _decides(gate)]
    nearest = max(harm, key=lambda gate: gate.log_e / gate.limit, default=None)
    proven_at_s = last.decided_at_s if last is not None else None
    return PassedStage(
        stage=state.stage,
        weight_bp=state.weight_bp,
        how=how,
        at_s=now_s,
        held_s=max(0.0, now_s - since_s),
        canary_requests=evidence.canary_total if evidence is not None else None,
        proven_canary=last.decided_canary if last is not None else None,
        proven_after_s=max(0.0, proven_at_s - since_s) if proven_at_s is not None else None,
        last_gate=last.gate if last is not None else None,
        nearest_gate=nearest.gate if nearest is not None else None,
        nearest_ratio=max(0.0, nearest.log_e / nearest.limit) if nearest is not None else None,
        proofs=tuple(_stage_proof(gate) for gate in gates if gate.side == "promotion"),
    )


def _stage_proof(gate: GateReport) -> StageProof:
    return StageProof(
        gate=gate.gate,
        metric=gate.metric,
        is_proven=gate.verdict is Verdict.PASS,
        reason=gate.reason,
        stable=gate.stable,
        canary=gate.canary,
        n_stable=gate.n_stable,
        n_canary=gate.n_canary,
        statistic=gate.statistic,
        decided_canary=gate.decided_canary,
    )


def _decides(gate: GateReport) -> bool:
    return not gate.is_alarm and 0 < gate.limit < math.inf


def twin_report(state: RolloutState) -> str:
    """Result of a twin run in one line: the proof of each stage, and the closest false rollback."""
    stages = ", ".join(_proof(stage) for stage in state.passed)
    text = f"twin run: nothing to promote; {stages}; nothing would have rolled back"
    last = state.passed[-1] if state.passed else None
    if last is None or last.nearest_gate is None or last.nearest_ratio is None:
        return text
    return f"{text} (nearest: {last.nearest_gate}, at {last.nearest_ratio:.0%} of the required evidence)"


def unproven(state: RolloutState) -> str:
    """`; not proven: ...` of an undo, and of stages passed on point estimates; empty: all was proven."""
    if state.plan.undo:
        return "; not proven: an undo"
    names = [str(stage.stage + 1) for stage in state.passed if stage.how == "point_estimates"]
    if not names:
        return ""
    which = f"stage {names[0]} was" if len(names) == 1 else f"stages {', '.join(names)} were"
    return f"; not proven: {which} promoted on point estimates"


def _proof(stage: PassedStage) -> str:
    weight = percent(stage.weight_bp)
    if stage.proven_canary is None:
        held = duration(round(stage.held_s))
        return f"{weight} passed after {stage.canary_requests} canary requests in {held}"
    after = f" and {duration(round(stage.proven_after_s))}" if stage.proven_after_s is not None else ""
    return f"{weight} proven after {stage.proven_canary} canary requests{after}, last by {stage.last_gate}"
