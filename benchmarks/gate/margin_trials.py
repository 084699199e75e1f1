"""Trials of canaries exactly at a margin: at most one in twenty may be proven, whatever the traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.gate.trials import UNITS, NotProven, Share, Trial
from benchmarks.gate.worlds import Arm, World

#: By gate: the margin, the canary exactly at it, and the metrics needed.
AT_MARGIN: Mapping[str, tuple[float, Arm, tuple[str, ...]]] = {
    "error": (5.0, Arm(error=0.05), ("error",)),
    "hallucination": (3.0, Arm(hallucinated=0.09), ("error", "hallucinated")),
    "quality": (0.05, Arm(quality=0.70), ("error", "quality")),
    "latency_shape": (1.2, Arm(latency_scale=1.2), ("error", "latency_ms")),
    "latency_p99": (1.2, Arm(latency_scale=1.2), ("error", "latency_ms")),
}


def never(name: str, says: str, gate: str, world: World, limit: float = 0.05, **canary: float) -> Trial:
    """A canary exactly at the margin of one gate in a world, which at most a share of `limit` may prove.
    canary: what else it does."""
    margin, arm, metrics = AT_MARGIN[gate]
    world = replace(world, canary=replace(arm, **canary), metrics=metrics)  # type: ignore[arg-type]
    goal = Share("proven", frozenset({"promote"}), limit, 0.05 if limit <= 0.05 else limit)
    return Trial(
        name, "not proven", says, NotProven(name, world, {gate: margin}), {"promoted": goal}, runs=400
    )


def not_proven_trials() -> list[Trial]:
    """All of them, in the order of the table."""
    trials = []
    for before, after in ((4.0, 2.0), (3.0, 2.0), (8.0, 1.3)):
        for sigma in (0.5, 1.0):
            for gate in ("latency_shape", "latency_p99") if sigma == 1.0 else tuple(AT_MARGIN):
                world = World(
                    sticky=True, stable=Arm(turns=before), w=0.25, canary_requests=1200, sigma=sigma
                )
                trials.append(
                    never(
                        f"{gate} at the margin, turns {before:g} -> {after:g}, sigma {sigma:g}",
                        "conversations of unequal length prove nothing",
                        gate,
                        world,
                        turns=after,
                    )
                )
    for before, after in ((4.0, 2.0), (8.0, 1.3), (2.0, 4.0)):
        for deeper in (0.1, -0.05):
            world = World(sticky=True, stable=Arm(turns=before, deeper=deeper), w=0.25, canary_requests=1200)
            trials.append(
                never(
                    f"latency_shape at the margin, {deeper:+.0%} a turn, turns {before:g} -> {after:g}",
                    "outcomes that change with the depth of a conversation",
                    "latency_shape",
                    world,
                    limit=0.10,
                    turns=after,
                    deeper=deeper,
                )
            )
    for below, share in ((0.207, 2), (0.296, 5)):
        for units, sticky in UNITS.items():
            trials.append(
                never(
                    f"quality at the margin, the worst {share} % fail, {units}",
                    "the canary's worst answers fail and have no score; all of them have the margin's mean",
                    "quality",
                    World(sticky=sticky, w=0.25, canary_requests=2000),
                    fails_below=below,
                )
            )
    for gate in AT_MARGIN:
        for units, sticky in UNITS.items():
            world = World(sticky=sticky, w=0.25, canary_requests=3000, late=1500, stages=2)
            trials.append(
                never(
                    f"late harm, {gate}, {units}",
                    "as good as stable in the first stage, at the margin from the second on",
                    gate,
                    world,
                )
            )
    for units, sticky in UNITS.items():
        coarse = World(sticky=sticky, w=0.1, canary_requests=1500)
        for step in (1.0, 100.0, 400.0):
            trials.append(
                never(
                    f"coarse latency at the margin, steps of {step:g} ms, {units}",
                    "every latency is one of few values, the canary's exactly 1.2x",
                    "latency_shape",
                    replace(coarse, step_ms=step, sigma=0.0 if step == 1.0 else 0.5),
                )
            )
        for step in (500.0, 1000.0):
            trials.append(
                never(
                    f"latency rounded to {step:g} ms at the margin, {units}",
                    "the canary takes exactly 1.2x; what is recorded is rounded",
                    "latency_shape",
                    replace(coarse, step_ms=step, rounded=True),
                )
            )
        trials.append(
            never(
                f"quality 0 or 1 at the margin, {units}",
                "scores with many ties",
                "quality",
                replace(coarse, score_step=1.0),
            )
        )
    return trials
