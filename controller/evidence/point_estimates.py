"""Point estimates against a stage's margins, for `promote_if_point_ok`. They prove nothing: never a PASS.

An estimate covers every settled request of the rollout. Harm, missing evidence, arms that cannot be compared
and a missing estimate all count as outside the margins.
"""

from __future__ import annotations

import math

from controller.rollout.observation import PointEstimates
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import stage_margins
from evaluation.report import EvaluationReport, GateReport, Verdict


def point_estimates(report: EvaluationReport, policy: GatePolicy, stage: StagePlan) -> PointEstimates:
    """Whether the stage's estimates lie within their margins; False for a stage with nothing to prove."""
    margins, floor = stage_margins(policy, stage)
    if report.stage_verdict not in (Verdict.PASS, Verdict.UNDECIDED) or report.notes or report.frozen:
        why = next(iter((*report.notes, *report.missing)), "the evidence is not valid")
        return PointEstimates(False, why)
    if not margins:
        return PointEstimates(False, "the stage has nothing to prove")
    gates = {gate.gate: gate for gate in report.gates if gate.side == "promotion"}
    texts = []
    for name, margin in margins.items():
        gate = gates.get(name)
        if gate is None or gate.verdict is Verdict.INVALID or gate.stable is None or gate.canary is None:
            return PointEstimates(False, f"{name}: no estimate of both arms")
        if not (math.isfinite(gate.stable) and math.isfinite(gate.canary)):
            return PointEstimates(False, f"{name} {gate.statistic}: too many requests have no answer")
        text = f"{name} {gate.canary:.3g} beside {gate.stable:.3g}"
        if not _is_within(gate, policy.gate(name), margin, floor):
            return PointEstimates(False, f"{text} is outside its margin, {margin:g}")
        texts.append(text)
    return PointEstimates(True, ", ".join(texts))


def _is_within(report: GateReport, gate: Gate, margin: float, floor: float) -> bool:
    if report.verdict is Verdict.PASS:
        return True
    assert report.stable is not None
    assert report.canary is not None
    match gate.kind:
        case Kind.RATE:
            return report.canary <= max(margin * report.stable, report.stable + floor)
        case Kind.SCORE:
            return report.canary >= report.stable - margin
        case Kind.SHAPE | Kind.PERCENTILE | Kind.MEAN:
            return report.canary <= margin * report.stable
