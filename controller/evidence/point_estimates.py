"""Point estimates against a stage's margins, for `promote_if_point_ok`. They prove nothing: never a PASS.

An estimate counts every settled request of the rollout. Whatever is missing, harmful or not comparable puts
the whole outside, and so does an estimate that is not there.
"""

from __future__ import annotations

from controller.rollout.observation import PointEstimates
from evaluation.metrics import Kind
from evaluation.pipeline import stage_margins
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport, GateReport, Verdict


def point_estimates(report: EvaluationReport, policy: GatePolicy, stage: StagePlan) -> PointEstimates:
    """Where the estimates of the stage's gates lie. A stage that must prove nothing has none to look at."""
    margins, floor = stage_margins(policy, stage)
    if report.stage_verdict not in (Verdict.PASS, Verdict.UNDECIDED) or report.notes or report.frozen:
        why = next(iter((*report.notes, *report.missing)), "what is seen is no evidence")
        return PointEstimates(False, why)
    if not margins:
        return PointEstimates(False, "nothing has to be proven")
    proofs = {one.gate: one for one in report.gates if one.side == "promotion"}
    texts = []
    for name, margin in margins.items():
        one = proofs.get(name)
        if one is None or one.verdict is Verdict.INVALID or one.stable is None or one.canary is None:
            return PointEstimates(False, f"{name}: no estimate of both arms")
        text = f"{name} {one.canary:.3g} beside {one.stable:.3g}"
        if not _is_within(one, policy.gate(name), margin, floor):
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
        case Kind.SHAPE | Kind.PERCENTILE:
            return report.canary <= margin * report.stable
