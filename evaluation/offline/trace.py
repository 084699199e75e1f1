"""How a backtest's evidence grew: log evidence by gate over time, beside its limit, for a plot.

The pipeline is fed the rows of a backtest in pieces and read between them; it gives the same bits however
they are cut, so the end of the trace is what `backtest.run` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.offline.backtest import feed
from evaluation.offline.columns import Table, checked_stages, checked_table, policy_for_columns
from evaluation.pipeline import Pipeline, stage_margins
from evaluation.policy.alpha import log_limit
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.metric_evidence import MetricEvidence, Track

POINTS = 200


@dataclass(frozen=True, slots=True)
class Trace:
    """Evidence of harm by gate (nats) after each of the times; a gate rolls back where it reaches its limit.

    Arrays of equal length, in order of time. Of a gate's channels the one nearest to its own limit is shown,
    shifted so that it crosses the gate's limit where it crosses its own.
    """

    t_s: NDArray[np.float64]
    canary_requests: NDArray[np.int64]
    log_e: Mapping[str, NDArray[np.float64]]
    limit: Mapping[str, float]
    proofs: Mapping[str, NDArray[np.float64]]  # evidence that the harm is below the last stage's margin
    proof_limit: float


def trace(
    columns: Mapping[str, ArrayLike],
    policy: str | GatePolicy | Mapping[str, object] | None = None,
    *,
    stages: Sequence[StagePlan] | None = None,
    points: int = POINTS,
) -> Trace:
    """The evidence at about `points` times, evenly many rows apart. Columns and errors as `backtest.run`."""
    if points < 2:
        raise ValueError(f"points {points} is below 2; a line needs two")
    chosen = policy_for_columns(columns, policy)
    table = checked_table(columns, chosen)
    plan = checked_stages(stages, chosen)
    pipeline = Pipeline(chosen, plan)
    cuts = np.unique(np.linspace(0, len(table.at_s), points, dtype=np.int64)[1:])
    cuts = cuts[cuts > 0]  # without rows there is nothing to cut
    deciding = [gate for gate in chosen.gates if gate.alpha_share > 0]
    log_e: dict[str, list[float]] = {gate.name: [] for gate in deciding}
    proving = _proving(pipeline, chosen, plan[-1])
    proofs: dict[str, list[float]] = {name: [] for name in proving}
    canary = []
    start = 0
    for stop in cuts:
        feed(pipeline, _cut(table, slice(start, int(stop))))
        start = int(stop)
        canary.append(pipeline.canary)
        for gate in deciding:
            log_e[gate.name].append(_log_e(pipeline.metrics[gate.metric], gate, _limit(chosen, gate)))
        for name, track in proving.items():
            proofs[name].append(track.channel.wealth.log_e)
    return Trace(
        table.at_s[cuts - 1],
        np.array(canary, dtype=np.int64),
        {name: np.array(values) for name, values in log_e.items()},
        {gate.name: _limit(chosen, gate) for gate in deciding},
        {name: np.array(values) for name, values in proofs.items()},
        log_limit(chosen.promotion_alpha),
    )


def _proving(pipeline: Pipeline, policy: GatePolicy, stage: StagePlan) -> dict[str, Track]:
    """The proofs that a stage needs, by gate."""
    margins, floor = stage_margins(policy, stage)
    wanted = {(name, margin, floor) for name, margin in margins.items()}
    tracks = [
        track for metric in pipeline.metrics.values() for track in metric.tracks if track.use == "proof"
    ]
    return {t.gate.name: t for t in tracks if (t.gate.name, t.margin, t.floor) in wanted}


def _cut(table: Table, rows: slice) -> Table:
    return Table(
        table.at_s[rows],
        table.arm[rows],
        table.w[rows],
        table.kind[rows],
        table.unit[rows],
        table.stage[rows],
        table.fell_back[rows],
        table.failed[rows],
        {name: values[rows] for name, values in table.values.items()},
    )


def _limit(policy: GatePolicy, gate: Gate) -> float:
    return log_limit(policy.alpha * gate.alpha_share)


def _log_e(metric: MetricEvidence, gate: Gate, limit: float) -> float:
    def lead(track: Track) -> float:
        own = track.channel.decision.limit
        return track.channel.wealth.log_e - own if np.isfinite(own) else -np.inf

    best = max(lead(track) for track in metric.tracks if track.gate is gate and track.use != "proof")
    return float(limit + best) if np.isfinite(best) else 0.0
