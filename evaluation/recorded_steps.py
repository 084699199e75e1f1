"""Words for values that are recorded in steps: their proofs are harder, or impossible."""

from __future__ import annotations

from evaluation.betting.histogram import Steps
from evaluation.betting.latency import Exceedance, ShapeProof
from evaluation.betting.wealth import Channel
from evaluation.pipeline import Pipeline, stage_proofs
from evaluation.policy.gates import Gate, StagePlan
from evaluation.units.metric_evidence import MetricEvidence


def steps_text(metric: MetricEvidence, gate: Gate, margin: float) -> str:
    """That a metric's values are recorded in steps, and what that means for a proof of one of its gates;
    empty: they are not."""
    channels = [t.channel for t in metric.tracks if t.gate is gate and isinstance(t.channel, Channel)]
    holders = [*(channel.bettor for channel in channels), *metric.exceedances]
    steps = [Steps(h.points, h.is_open) for h in holders if isinstance(h, ShapeProof | Exceedance)]
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
