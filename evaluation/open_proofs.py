"""Why a proof stays open: values that are recorded in steps, values that are missing without a cause."""

from __future__ import annotations

from evaluation.betting.histogram import Steps
from evaluation.betting.latency import Exceedance, ShapeProof
from evaluation.betting.wealth import Channel
from evaluation.pipeline import Pipeline, stage_proofs
from evaluation.policy.gates import Gate, StagePlan
from evaluation.units.gate_channels import Track
from evaluation.units.metric_evidence import MetricEvidence

MUCH_MISSING = 0.05  # share of answers without a value that is named where a proof is open


def steps_text(metric: MetricEvidence, gate: Gate, margin: float) -> str:
    """That a metric's values are recorded in steps, and what that means for a proof of one of its gates;
    empty: they are not."""
    channels = [t.channel for t in metric.tracks if t.gate is gate and isinstance(t.channel, Channel)]
    holders = [*(channel.bettor for channel in channels), *metric.exceedances]
    steps = [Steps(h.points, h.is_mixed) for h in holders if isinstance(h, ShapeProof | Exceedance)]
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


def why_not(metric: MetricEvidence, track: Track) -> str:
    """What keeps a proof open, where that is values that are missing without a stated cause."""
    if track.missing_as != "harm" or metric.unexplained_share < MUCH_MISSING:
        return ""
    return (
        f": {metric.unexplained_share:.0%} of the answers have no {metric.name}, which could hide harm; if a "
        "judge samples by a coin tossed before the answer, state its `sampling`"
    )
