"""Why a proof stays open: values that are recorded in steps, values that are missing without a cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evaluation.betting.exceedance import Exceedance
from evaluation.betting.latency import ShapeProof
from evaluation.betting.left import FEW_LEFT
from evaluation.betting.wealth import Channel
from evaluation.metrics import UNANSWERED, Kind
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import Gate, Proof, StagePlan
from evaluation.policy.stage_proofs import stage_proofs
from evaluation.report import GateReport, Verdict
from evaluation.units.gate_channels import Track
from evaluation.units.metric_evidence import MetricEvidence

SHAPE_TO = 0.99  # a shape's proof is of what lies below: its rarest alternatives begin there (`latency.py`)
FEW_UNKNOWN = 0.0005  # share of requests without an outcome that is not named
MUCH_MISSING = 0.05  # share of answers without a value that is named where a proof is open
MOST_AT_CAP = 0.02  # share of an arm's values, for a proof of their mean


def steps_text(metric: MetricEvidence, gate: Gate, margin: float) -> str:
    """That a metric's values are recorded in steps, and what that means for a proof of one of its gates;
    empty: they are not."""
    channels = [t.channel for t in metric.tracks if t.gate is gate and isinstance(t.channel, Channel)]
    holders = [*(channel.bettor for channel in channels), *metric.exceedances]
    steps = [holder.steps.get() for holder in holders if isinstance(holder, ShapeProof | Exceedance)]
    text = max((found.text(margin) for found in steps), default="", key=len)
    return f"{metric.name} is {text}; record it in milliseconds" if text else ""


def step_notes(pipeline: Pipeline, stage: StagePlan) -> list[str]:
    """A line for each metric whose values are recorded in steps, by the smallest margin that `stage` must
    prove of it."""
    notes = []
    proofs = stage_proofs(pipeline.policy, stage)
    for metric in pipeline.metrics.values():
        texts = [
            (proof.margin, steps_text(metric, gate, proof.margin))
            for gate in metric.gates
            for proof in proofs.get(gate.name, ())
        ]
        if texts and (text := min(texts)[1]):
            notes.append(text)
    return notes


def of_those_who_waited(report: GateReport, pipeline: Pipeline) -> GateReport:
    """The report, which says whom a percentile is of, where many requests were cancelled."""
    metric, cancelled = pipeline.metrics.get(report.metric), pipeline.metrics.get("cancelled")
    is_decided = report.verdict in (Verdict.PASS, Verdict.FAIL)
    is_open = report.verdict is Verdict.UNDECIDED and report.side == "promotion"
    if metric is None or cancelled is None or not (is_decided or is_open):
        return report
    percentile = next((gate.percentile for gate in metric.gates if gate.name == report.gate), None)
    stable, canary = (share or 0.0 for share in cancelled.points.means())
    if percentile is None or max(stable, canary) <= FEW_LEFT * (1.0 - percentile):
        return report
    whom = f"; of those who waited: {stable:.1%} of stable's requests and {canary:.1%} of the canary's"
    whom += " are cancelled"
    return replace(report, reason=report.reason + whom)


def what_forbids(metric: MetricEvidence, gate: Gate, proofs: Sequence[Proof]) -> str:
    """Why nothing of a gate is proven meanwhile, by which values are missing; empty: nothing forbids it."""
    if (doubt := metric.doubt()) is not None:
        return doubt
    if gate.kind is Kind.MEAN:
        return _hidden_by_cap(metric, proofs)
    if gate.kind is Kind.SCORE:
        return _hidden_by_judge(metric, proofs)
    if metric.lacking is None:
        return ""
    most = FEW_LEFT * (1.0 - (SHAPE_TO if gate.percentile is None else gate.percentile))
    scopes = {not proof.is_whole for proof in proofs}
    above = [of_stage for of_stage in sorted(scopes) if metric.lacking.is_above(most, of_stage=of_stage)]
    if not above:
        return ""
    stable, canary = metric.lacking.shares(of_stage=above[0])
    return (
        f"{stable:.1%} of stable's and {canary:.1%} of the canary's answers have no {metric.name}, and could "
        f"be the slowest ones ({most:.2%} may); if what is recorded is sampled by a coin tossed before the "
        "answer, state its `sampling`"
    )


def _hidden_by_cap(metric: MetricEvidence, proofs: Sequence[Proof]) -> str:
    """Why values beyond the cap of a mean forbid its proofs; empty: they do not.

    More at the cap than some per cent of an arm's could hide any ratio. Fewer, and dear ones, show in the
    means of the values as they are.
    """
    capped = metric.capped
    if capped is None:
        return ""
    for is_whole in sorted({proof.is_whole for proof in proofs}):
        if capped.at_cap.is_above(MOST_AT_CAP, of_stage=not is_whole):
            stable, canary = capped.at_cap.shares(of_stage=not is_whole)
            return (
                f"{stable:.1%} of stable's and {canary:.1%} of the canary's values are above the cap, "
                f"{capped.cap:.4g}, and count as that ({MOST_AT_CAP:.0%} may)"
            )
    margin = min(proof.margin for proof in proofs)
    under_cap, of_all = (points.ratio() for points in (capped.parts_points, capped.points))
    if under_cap is None or of_all is None or of_all < margin or under_cap >= margin:
        return ""
    return f"with what is above the cap, {capped.cap:.4g}, the canary's mean is {of_all:.2f}x stable's"


def _hidden_by_judge(metric: MetricEvidence, proofs: Sequence[Proof]) -> str:
    """Why answers that were drawn for a score and have none forbid a proof; empty: they do not.

    A proof holds with them as the worst, and as stable's mean, on both arms. Where both lack as many, the
    canary's may yet be its worst and stable's not: that hides as much as their share, at most the margin.
    """
    for proof in proofs:
        if metric.unjudged.is_above(proof.margin, of_stage=not proof.is_whole):
            stable, canary = metric.unjudged.shares(of_stage=not proof.is_whole)
            return (
                f"{stable:.1%} of stable's and {canary:.1%} of the canary's sampled answers have no "
                f"{metric.name}, and could be the worst ones ({proof.margin:.1%} may)"
            )
    return ""


def why_not(metric: MetricEvidence, track: Track) -> str:
    """What keeps a proof open, where that is values that are missing without a stated cause, or clients who
    left."""
    if track.left is not None:
        return f": {track.left.text}"
    if track.missing_as == "late":
        return " if requests left late are slow, too"
    if track.missing_as == "recent":
        return " at the percentile of stable's recent values"
    if track.missing_as in ("near", "far"):
        return " at what stable's percentile may be, of some thousand values"
    if metric.name in UNANSWERED and (share := metric.unexplained_share) >= FEW_UNKNOWN:
        return f": {share:.1%} of requests have no {metric.name}: a proof counts one for each of the canary's"
    if track.missing_as != "harm" or metric.unexplained_share < MUCH_MISSING:
        return ""
    return (
        f": {metric.unexplained_share:.0%} of the answers have no {metric.name}, which could hide harm; if a "
        "judge samples by a coin tossed before the answer, state its `sampling`"
    )
