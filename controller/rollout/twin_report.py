"""What a stage took, and what a twin run found: stable against itself, so whatever fires is a false alarm."""

from __future__ import annotations

import math

from controller.quantities import duration, percent
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import Passage, RolloutState, StagePass
from evaluation.report import GateReport, Verdict


def twin_id(stable: str) -> str:
    """The id that a twin has in the fleet and the route table, where no two versions may share one."""
    return f"{stable}-twin"


def stage_pass(state: RolloutState, how: Passage, evidence: EvidenceStatus | None, now_s: float) -> StagePass:
    """The stage that is left now, with the last of its proofs and the rollback gate that came nearest."""
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
    return StagePass(
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
    )


def _decides(gate: GateReport) -> bool:
    return not gate.is_alarm and 0 < gate.limit < math.inf


def twin_report(state: RolloutState) -> str:
    """What the run showed, in one line: each stage's proof, and how near anything came to rolling back."""
    stages = ", ".join(_proof(one) for one in state.passed)
    text = f"twin run: nothing to promote; {stages}; nothing would have rolled back"
    last = state.passed[-1] if state.passed else None
    if last is None or last.nearest_gate is None or last.nearest_ratio is None:
        return text
    return f"{text} (nearest: {last.nearest_gate}, {last.nearest_ratio:.0%} of the evidence that it takes)"


def unproven(state: RolloutState) -> str:
    """`; not proven: ...` for the stages that were left on point estimates; empty: there are none."""
    names = [str(one.stage + 1) for one in state.passed if one.how == "point_estimates"]
    if not names:
        return ""
    which = f"stage {names[0]} was" if len(names) == 1 else f"stages {', '.join(names)} were"
    return f"; not proven: {which} promoted on point estimates"


def _proof(one: StagePass) -> str:
    at = percent(one.weight_bp)
    if one.proven_canary is None:
        return f"{at} passed after {one.canary_requests} canary requests in {duration(round(one.held_s))}"
    after = f" and {duration(round(one.proven_after_s))}" if one.proven_after_s is not None else ""
    return f"{at} proven after {one.proven_canary} canary requests{after}, last by {one.last_gate}"
