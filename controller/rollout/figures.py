"""Figures of a gate's report in words, for the reason of a rollback: estimates of both arms, and their n."""

from __future__ import annotations

import math

from controller.quantities import figure
from controller.rollout.state import StageProof
from evaluation.metrics import CATALOGUE
from evaluation.report import GateReport


def with_figures(gate: GateReport) -> str:
    """The report's reason, which names the limit, with the estimates of both arms and their requests.

    `error above 1.25x shown by sessions; canary 5.21 % (n 412), stable 1.02 % (n 3,900)`.
    """
    return f"{gate.reason or f'{gate.gate}: {gate.verdict.value}'}; {estimates(gate)}"


def estimates(gate: GateReport | StageProof) -> str:
    """`canary 5.21 % (n 412), stable 1.02 % (n 3,900)`."""
    canary, stable = _shown(gate, gate.canary), _shown(gate, gate.stable)
    return f"canary {canary}(n {gate.n_canary:,}), stable {stable}(n {gate.n_stable:,})"


def _shown(gate: GateReport | StageProof, value: float | None) -> str:
    """The value in the metric's unit with a space, a share in percent; '' for None. Infinite: no answer."""
    if value is None:
        return ""
    if math.isinf(value):
        return f"{gate.statistic} without an answer "
    metric = CATALOGUE.get(gate.metric)
    unit = metric.unit if metric is not None else ""
    if unit.startswith("share"):
        return f"{figure(100 * value, 3)} % "
    percentile = "" if gate.statistic == "mean" else f"{gate.statistic} "
    return f"{percentile}{figure(value, 4)} {f'{unit} ' if unit in ('ms', 'tokens') else ''}"
