"""Recorded rollouts whose answers have costs or tokens, and a policy with a gate on their mean."""

from __future__ import annotations

import numpy as np

from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, requests, sticky

GATE = {"metric": "cost", "kind": "mean", "threshold": 0.2, "tolerance": 0.1, "alpha_share": 0.05}


def priced(
    ratio: float,
    *,
    seed: int = 1,
    metric: str = "cost",
    rows: int = 8_000,
    w: float = 0.2,
    people: int | None = None,
    drift: float = 0.0,
) -> Columns:
    """Requests whose answers cost 0.001 in the median, and of the canary `ratio` times as much.

    people: users with conversations, who are more or less dear themselves; None: each request is its own
    unit. drift: by how much all costs grow until the last request (1.0: they double).
    """
    rng = np.random.default_rng(seed + 50)
    if people is None:
        columns, own = requests(rows, seed=seed, w=w, error=(0.0, 0.0)), np.ones(rows)
    else:
        columns = sticky(rows, people=people, seed=seed, w=w, error=(0.0, 0.0))
        own = rng.lognormal(0.0, 0.6, people)[columns["unit"]]
    for name in ("latency_ms", "quality", "hallucinated"):
        del columns[name]
    costs = 0.001 * own * rng.lognormal(0.0, 0.6, rows) * (1.0 + drift * np.arange(rows) / rows)
    columns[metric] = costs * np.where(columns["arm"] == 1, ratio, 1.0)
    return columns


def policy(**changes: object) -> GatePolicy:
    """The default policy with a gate on the mean cost; changes: of that gate."""
    return gate_policy_of({"gates": {"quality": {"alpha_share": 0.15}, "cost": {**GATE, **changes}}})
