"""Estimates of both arms as the reports show them, and the budget of an alarm on a mean."""

from __future__ import annotations

from evaluation.metrics import UNANSWERED, Kind
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import Gate
from evaluation.units.metric_evidence import MetricEvidence


def unanswered_shares(pipeline: Pipeline) -> tuple[float, float]:
    """Shares of stable's and the canary's requests that have no answer; 0 where nothing says so."""
    means = [pipeline.metrics[name].points.means() for name in sorted(UNANSWERED & pipeline.metrics.keys())]
    stable, canary = (min(sum(mean[arm] or 0.0 for mean in means), 1.0) for arm in (0, 1))
    return stable, canary


def point_estimates(
    metric: MetricEvidence, gate: Gate, unanswered: tuple[float, float]
) -> tuple[float | None, float | None]:
    """Stable's and the canary's mean (rates, scores, sizes), median (shape) or percentile over the same
    traffic (`Points`), in the metric's unit.

    A percentile of a time is of all requests, as the gate compares them: those without an answer are slowest,
    so it may be infinite. Of tokens and costs it is of the answers that have one. None: no values.
    """
    if gate.kind is Kind.MEAN and metric.capped is not None:
        return metric.capped.points.means()
    if not metric.takes_values:
        return metric.points.means()
    return metric.points.percentiles(_share(gate), (0.0, 0.0) if metric.is_size else unanswered)


def first_estimates(
    metric: MetricEvidence, gate: Gate, unanswered: tuple[float, float]
) -> tuple[float | None, float | None]:
    """`point_estimates` of values that are too few for it, of a gate that fired on them. None: no values."""
    shown = point_estimates(metric, gate, unanswered)
    are_all = None not in shown or not metric.points.waiting.size
    if are_all or gate.kind is Kind.MEAN or not metric.takes_values:
        return shown
    return metric.points.first_percentiles(_share(gate), (0.0, 0.0) if metric.is_size else unanswered)


def _share(gate: Gate) -> float:
    """The percentile that a gate on values is shown by, 0-1: its own, else the median."""
    return gate.percentile if gate.kind is Kind.PERCENTILE and gate.percentile is not None else 0.5


def statistic_of(metric: MetricEvidence, gate: Gate) -> str:
    """What `point_estimates` estimates: mean, p50, p99, ..."""
    is_mean = gate.kind is Kind.MEAN or not metric.takes_values
    return "mean" if is_mean else f"p{100 * _share(gate):g}"


def is_over_budget(metric: MetricEvidence, gate: Gate) -> bool:
    """Whether the canary's mean is the gate's limit times stable's or more, as all values say so far: an
    alarm's by its threshold, a gate's by what it tolerates.

    That it is above the tolerance must be no chance (the bets, on values up to a cap), and how far must be
    the limit: what is said of a mean must be true of the values as they are, too.
    """
    stable, canary = point_estimates(metric, gate, (0.0, 0.0))
    return stable is not None and canary is not None and canary >= _limit(gate) * stable


def within_text(metric: MetricEvidence, gate: Gate) -> str:
    """That the mean is not above the gate's limit."""
    if gate.is_alarm:
        return f"below the budget, {_limit(gate):g}x"
    ratio = None if metric.capped is None else metric.capped.points.ratio()
    return f"the mean of all values is {'not known' if ratio is None else f'{ratio:.2f}x'}"


def _limit(gate: Gate) -> float:
    return 1.0 + (gate.threshold if gate.is_alarm else gate.tolerance)


def budget_text(metric: MetricEvidence, gate: Gate) -> str:
    """Both means, their ratio and the limit: `cost_alarm 0.0125 an answer beside 0.01: 1.25x, limit 1.2x`."""
    stable, canary = point_estimates(metric, gate, (0.0, 0.0))
    if not stable or canary is None:
        return gate.name
    figures = f"{canary:.4g} an answer beside {stable:.4g}: {canary / stable:.2f}x"
    return f"{gate.name} {figures}, limit {1 + gate.threshold:g}x"
