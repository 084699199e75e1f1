"""Cost of the gate: CPU microseconds a request and metric (streaming, from arrays) and bytes of state."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.gate.traffic import STABLE_FIRST, Case, simulate
from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, Score

FOUR = ("error", "latency_shape", "quality", "hallucination")
STAGES = (StagePlan(0.05, 400),)
BATCH_CANARY = 5000
STREAM_CANARY = 500
TICK_S = 5.0  # of the simulated clock, between two calls of `advance`
BEST_OF = 3


def measure_speed() -> Mapping[str, float]:
    """Best of three, in process time, so that other load does not count."""
    policy = GatePolicy.default()
    policy = replace(policy, gates=tuple(g for g in policy.gates if g.name in FOUR))
    batch = simulate(Case("speed, batch", "no_harm", canary_requests=BATCH_CANARY), 0).columns
    cells = len(batch["t_s"]) * len(FOUR)
    batch_us = _best(lambda: run(batch, policy, stages=STAGES)) / cells * 1e6
    stream = simulate(Case("speed, streaming", "no_harm", canary_requests=STREAM_CANARY), 0).columns
    events = _events({name: np.asarray(column) for name, column in stream.items()})
    last: list[Evaluator] = []

    def live() -> None:
        last[:] = [_live(policy, events)]

    stream_us = _best(live) / (len(stream["t_s"]) * len(FOUR)) * 1e6
    return {
        "streaming_us": round(stream_us, 3),
        "batch_us": round(batch_us, 3),
        "state_bytes_a_metric": round(len(last[0].snapshot()) / len(FOUR)),
    }


def _best(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(BEST_OF):
        started_s = time.process_time()
        work()
        spent.append(time.process_time() - started_s)
    return min(spent)


def _events(columns: Mapping[str, np.ndarray]) -> list[tuple[Draw, tuple[Score, ...]]]:
    rows = zip(*(columns[name].tolist() for name in _ROW), strict=True)
    out: list[tuple[Draw, tuple[Score, ...]]] = []
    for t_s, unit, arm, w, by, error, latency_ms, quality, hallucinated in rows:
        name = str(unit)
        draw = Draw(name, name, t_s, arm, w, by, error=bool(error), latency_ms=latency_ms)
        scores = (
            Score(name, "quality", quality, t_s + 1),
            Score(name, "hallucinated", hallucinated, t_s + 1),
        )
        out.append((draw, scores))
    return out


_ROW = ("t_s", "unit", "arm", "w", "assigned_by", "error", "latency_ms", "quality", "hallucinated")


def _live(policy: GatePolicy, events: list[tuple[Draw, tuple[Score, ...]]]) -> Evaluator:
    """An evaluator fed like in the controller: one event at a time, with ticks in between."""
    seed = [draw.latency_ms for draw, _ in events[:STABLE_FIRST] if draw.latency_ms is not None]
    evaluator = Evaluator.start(policy, stages=STAGES, seed_latency_ms={"latency_ms": seed})
    evaluator.enter_stage(0, events[STABLE_FIRST][0].at_s)
    next_tick_s = 0.0
    for draw, scores in events[STABLE_FIRST:]:
        evaluator.add(draw)
        for score in scores:
            evaluator.add(score)
        if draw.at_s >= next_tick_s:
            evaluator.advance(draw.at_s, draw.at_s + 1)
            next_tick_s = draw.at_s + TICK_S
    evaluator.advance(events[-1][0].at_s + 1e6, events[-1][0].at_s + 1e6)
    return evaluator


if __name__ == "__main__":
    print(json.dumps(measure_speed(), indent=1))
