"""Trace of a backtest for a plot: log wealth of each gate over time, and its limit.

The pipeline is fed the rows of a backtest in pieces and read between them. Its bits do not depend on the
pieces, so the end of the trace is the result of `backtest.run`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.betting.everyone import EveryoneChannel
from evaluation.offline.backtest import feed
from evaluation.offline.columns import checked_table, policy_for_columns, stages_for_columns
from evaluation.pipeline import Pipeline
from evaluation.policy.alpha_split import gate_alpha, log_limit
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import stage_proofs
from evaluation.units.gate_channels import Track, deciding, rollback_tracks
from evaluation.units.metric_evidence import MetricEvidence

POINTS = 200


@dataclass(frozen=True, slots=True)
class Trace:
    """Log wealth of harm by gate (nats) at each time; a gate rolls back where it reaches its limit.

    Arrays of equal length, in order of time. A gate's line is that of its channel nearest to its own limit,
    shifted so that it crosses the gate's limit where the channel crosses its own.
    """

    t_s: NDArray[np.float64]
    canary_requests: NDArray[np.int64]
    log_e: Mapping[str, NDArray[np.float64]]
    limit: Mapping[str, float]
    proofs: Mapping[str, NDArray[np.float64]]  # log wealth of the proof of the last stage's margin, by gate
    proof_limit: float


def trace(
    columns: Mapping[str, ArrayLike],
    policy: str | GatePolicy | Mapping[str, object] | None = None,
    *,
    stages: Sequence[StagePlan] | None = None,
    points: int = POINTS,
) -> Trace:
    """The log wealth at about `points` times, equally many rows apart. Columns and errors: `backtest.run`."""
    if points < 2:
        raise ValueError(f"points {points} is below 2; a line needs two")
    whole_policy = gate_policy_of(policy)
    gate_policy = policy_for_columns(columns, whole_policy)
    table = checked_table(columns, gate_policy)
    plan = stages_for_columns(stages, whole_policy, gate_policy)
    pipeline = Pipeline(gate_policy, plan)
    cuts = np.unique(np.linspace(0, len(table.requests), points, dtype=np.int64)[1:])
    cuts = cuts[cuts > 0]  # no rows, no cuts
    limits = {
        gate: log_limit(gate_alpha(gate_policy, gate)) for gate in gate_policy.gates if not gate.is_alarm
    }
    log_e: dict[str, list[float]] = {gate.name: [] for gate in limits}
    proof_tracks = _proof_tracks(pipeline, plan[-1])
    proofs: dict[str, list[float]] = {name: [] for name in proof_tracks}
    canary = []
    start = 0
    for stop in cuts:
        feed(pipeline, table.pick(slice(start, int(stop))))
        start = int(stop)
        canary.append(pipeline.canary)
        for gate, limit in limits.items():
            log_e[gate.name].append(_log_e(pipeline.metrics[gate.metric], gate, limit))
        for name, tracks in proof_tracks.items():
            proofs[name].append(min(_now(track) for track in deciding(tracks)))
    return Trace(
        table.requests.at_s[cuts - 1],
        np.array(canary, dtype=np.int64),
        {name: np.array(values) for name, values in log_e.items()},
        {gate.name: limit for gate, limit in limits.items()},
        {name: np.array(values) for name, values in proofs.items()},
        log_limit(gate_policy.promotion_alpha),
    )


def _proof_tracks(pipeline: Pipeline, stage: StagePlan) -> dict[str, list[Track]]:
    """The channels of the proof that a stage needs, by gate; of two, the one of the stage's own units."""
    needed = {name: proofs[-1] for name, proofs in stage_proofs(pipeline.policy, stage).items()}
    out: dict[str, list[Track]] = {}
    for metric in pipeline.metrics.values():
        for track in metric.tracks:
            if track.use == "proof" and track.proof == needed.get(track.gate.name):
                out.setdefault(track.gate.name, []).append(track)
    return out


def _now(track: Track) -> float:
    """The present log wealth; of everyone, at the last look."""
    channel = track.channel
    return channel.decision.log_e if isinstance(channel, EveryoneChannel) else channel.wealth.log_e


def _log_e(metric: MetricEvidence, gate: Gate, limit: float) -> float:
    def lead(track: Track) -> float:
        own = track.channel.decision.limit
        return _now(track) - own if np.isfinite(own) else -np.inf

    best = max(min(map(lead, tracks)) for tracks in rollback_tracks(metric.tracks, gate).values())
    return float(limit + best) if np.isfinite(best) else 0.0
