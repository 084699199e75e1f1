"""A canary that slows stable down on shared hardware: what the coin cannot see."""

from __future__ import annotations

from evaluation.metrics import CATALOGUE
from evaluation.pipeline import Pipeline

SLOWDOWN_FACTOR = 2.0  # times the harm to detect: a slowdown of stable itself that needs a cause


def interference(pipeline: Pipeline) -> list[str]:
    """Metrics by which stable itself became slower when the canary's weight rose, and still is: invisible to
    the coin on shared hardware, so it holds and pages. Where some clients are always sent to the canary,
    stable before and during it had other clients, and nothing is said."""
    if pipeline.has_always_canary:
        return []
    slower = {
        name: metric.own_speed.slowdown()
        for name, metric in pipeline.metrics.items()
        if CATALOGUE[name].unit == "ms"
    }
    return [
        f"stable's own {name} rose to {times:.1f}x of before the canary: shared hardware?"
        for name, times in slower.items()
        if times > 1.0 + SLOWDOWN_FACTOR * max(gate.threshold for gate in pipeline.metrics[name].gates)
    ]
