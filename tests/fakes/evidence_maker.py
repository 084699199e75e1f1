"""Small recorded rollouts for tests, as columns and as a stream of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.betting.unit_block import UnitBlock
from evaluation.evaluator import Evaluator
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, Score

Columns = dict[str, np.ndarray]
ONE_STAGE = (StagePlan(0.5, 0),)
LATER = ("quality", "hallucinated")


def unit_block(
    arm: np.ndarray, w: float | np.ndarray, y: np.ndarray, *, n: float = 1.0, first: int = 0
) -> UnitBlock:
    """Units with one outcome each, tossed in order from number `first` on."""
    rows = np.arange(first, first + len(arm))
    return UnitBlock(
        draw=rows,
        arm=np.asarray(arm, dtype=np.bool_),
        w=np.broadcast_to(np.asarray(w, dtype=np.float64), (len(arm),)).copy(),
        y=np.asarray(y, dtype=np.float64),
        n=np.full(len(arm), n),
        seq=rows,
        canary=np.cumsum(arm),
        at_s=rows.astype(np.float64),
        stage=np.zeros(len(arm), dtype=np.int64),
    )


def settings_of(policy: GatePolicy, gate: str) -> dict[str, Any]:
    """Settings of one gate, as in a policy file."""
    gates = policy.to_mapping()["gates"]
    assert isinstance(gates, dict)
    return dict(gates[gate])


def requests(
    rows: int,
    *,
    seed: int = 0,
    w: float | np.ndarray = 0.2,
    error: tuple[float, float] = (0.02, 0.02),
    slower: float = 1.0,
    worse: float = 0.0,
    before: int = 0,
) -> Columns:
    """`rows` requests, each its own unit, one a second; the first `before` are from before the canary."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(rows) < before, 0.0, w)
    arm = (rng.random(rows) < weight).astype(np.int64)
    canary = arm == 1
    return {
        "t_s": np.arange(rows, dtype=np.float64),
        "unit": np.arange(rows),
        "arm": arm,
        "w": weight,
        "assigned_by": np.full(rows, "request"),
        "error": (rng.random(rows) < np.where(canary, error[1], error[0])).astype(np.float64),
        "latency_ms": rng.lognormal(6.0, 0.4, rows) * np.where(canary, slower, 1.0),
        "quality": np.clip(rng.normal(0.75, 0.15, rows) - np.where(canary, worse, 0.0), 0.0, 1.0),
        "hallucinated": (rng.random(rows) < 0.03).astype(np.float64),
    }


def sticky(rows: int, *, people: int, seed: int = 0, w: float | np.ndarray = 0.2, **more: object) -> Columns:
    """Requests of `people` users, each with a fixed bucket."""
    columns = requests(rows, seed=seed, w=0.5, **more)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed + 1000)
    unit = rng.integers(0, people, rows)
    columns["unit"], columns["assigned_by"] = unit, np.full(rows, "sticky")
    columns["w"] = np.broadcast_to(np.asarray(w, dtype=np.float64), (rows,)).copy()
    columns["arm"] = (rng.random(people)[unit] < columns["w"]).astype(np.int64)
    return columns


def draw_at(columns: Mapping[str, np.ndarray], row: int) -> Draw:
    """One row as the record of a router."""

    def value(name: str) -> float | None:
        if name not in columns or np.isnan(columns[name][row]):
            return None
        return float(columns[name][row])

    error = value("error")
    return Draw(
        request_id=f"{row:09d}",
        unit=str(columns["unit"][row]),
        at_s=float(columns["t_s"][row]),
        arm=int(columns["arm"][row]),
        w=float(columns["w"][row]),
        assigned_by=str(columns["assigned_by"][row]),
        error=None if error is None else error == 1.0,
        latency_ms=value("latency_ms"),
        ttft_ms=value("ttft_ms"),
    )


def scores_at(columns: Mapping[str, np.ndarray], row: int, delay_s: float = 1.0) -> list[Score]:
    """The row's scores, received `delay_s` after the draw."""
    return [
        Score(f"{row:09d}", name, float(columns[name][row]), float(columns["t_s"][row]) + delay_s)
        for name in LATER
        if name in columns and not np.isnan(columns[name][row])
    ]


def streamed(
    columns: Mapping[str, np.ndarray],
    policy: GatePolicy,
    *,
    stages: Sequence[StagePlan] = ONE_STAGE,
    seed: int = 0,
    max_batch: int = 400,
    reload_ratio: float = 0.0,
) -> Evaluator:
    """An evaluator fed with the columns as records: shuffled within random batches of up to `max_batch` rows,
    with reports and restarts in between."""
    rng = np.random.default_rng(seed)
    evaluator = Evaluator.start(policy, stages=stages, seed_latency_ms={})
    rows, start = len(columns["t_s"]), 0
    while start < rows:
        stop = min(rows, start + int(rng.integers(1, max_batch)))
        for row in rng.permutation(np.arange(start, stop)).tolist():
            evaluator.add(draw_at(columns, row))
            for score in scores_at(columns, row, delay_s=float(rng.uniform(0.0, 50.0))):
                evaluator.add(score)
        through_s = float(columns["t_s"][stop]) if stop < rows else float("inf")
        evaluator.advance(through_s, through_s)
        if rng.random() < 0.3:
            evaluator.report()
        if rng.random() < reload_ratio:
            evaluator = Evaluator.restore(policy, stages, evaluator.snapshot())
        start = stop
    return evaluator
