"""Traffic with every way of assignment and every kind of missing value; a policy with many decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from tests.fakes.evidence_maker import Columns, requests, settings_of

ROWS = 900
MARGINS = {"error": 3.0, "hallucination": 2.0, "quality": 0.1, "latency_shape": 1.4, "latency_p90": 1.6}
STAGES = tuple(StagePlan(weight, 0, MARGINS, 0.01, warmup_s=40.0) for weight in (0.2, 0.5))
SEED = {"latency_ms": np.random.default_rng(9).lognormal(6.0, 0.5, 300).tolist()}
STICKY, SINGLE = ("default", "strict"), "requests"
WITH_COVARIATES = "covariates"  # sticky, too
STATED = (STICKY[0], SINGLE, WITH_COVARIATES)  # the judge's sampling is; else answers only lack a value


def policy_of(case: str) -> GatePolicy:
    """Low limits, so that channels decide; a p90, so that exceedances are frequent enough."""
    name = "strict" if case == "strict" else "default"
    base = GatePolicy.named(name)
    gates = {
        "error": settings_of(base, "error"),
        "latency_p90": {**settings_of(base, "latency_p99"), "percentile": 0.9},
        "latency_shape": settings_of(base, "latency_shape"),
        "quality": settings_of(base, "quality"),
        "hallucination": {
            **settings_of(base, "hallucination"),
            **({"sampling": {"stable": 0.6, "canary": 0.9}} if case in STATED else {}),
        },
    }
    if case == WITH_COVARIATES:
        gates["quality"] = {**gates["quality"], "covariates": ["body_bytes", "depth"]}
    policy = parse_gate_policy({"base": name, "gates": gates, "proof_canary": 4})
    policy = replace(policy, alpha=0.3, promotion_alpha=0.3, served_share_alpha=0.3)
    return replace(policy, session_requests=4, session_s=100.0)  # so that later sessions have several rounds


def traffic(case: str) -> Columns:
    """A rollout from 0 over 20 to 50 %, with every way of assignment; for SINGLE, a long time without the
    canary, and then requests that are their own units."""
    rng = np.random.default_rng(len(case))
    row = np.arange(ROWS)
    stage = np.where(row < 700, 0, 1)
    w = np.where(row < (520 if case == SINGLE else 100), 0.0, np.where(stage == 0, 0.2, 0.5))
    columns = requests(ROWS, seed=5, w=w)
    columns["t_s"], columns["stage"] = np.cumsum(rng.exponential(2.0, ROWS)), stage
    if case != SINGLE:
        people = rng.integers(0, 90, ROWS)
        bucket = rng.random(90)[people]
        how = rng.choice(
            ["sticky", "request", "pin", "force", "fallback"], ROWS, p=[0.5, 0.3, 0.1, 0.05, 0.05]
        )
        single = np.isin(how, ["request", "force"])
        columns["arm"] = np.where(single, columns["arm"], bucket < w).astype(np.int64)
        columns["arm"][how == "pin"] = (bucket < 0.2)[how == "pin"]
        columns["unit"], columns["assigned_by"] = np.where(single, 1000 + row, people), how
    canary = columns["arm"] == 1
    columns["error"] = (rng.random(ROWS) < np.where(canary, 0.16, 0.1)).astype(float)
    columns["latency_ms"] = rng.lognormal(6.0, 0.5, ROWS) * np.where(canary, 1.15, 1.0) * (1.0 + row / ROWS)
    columns["quality"] = np.clip(rng.normal(0.75, 0.15, ROWS) - 0.04 * canary, 0.0, 1.0)
    columns["hallucinated"] = (rng.random(ROWS) < np.where(canary, 0.2, 0.15)).astype(float)
    columns["hallucinated"][rng.random(ROWS) > np.where(canary, 0.9, 0.6)] = np.nan
    columns["quality"][rng.random(ROWS) < 0.05] = np.nan
    for name in ("error", "latency_ms"):
        columns[name][rng.random(ROWS) < 0.02] = np.nan
    columns["body_bytes"] = np.exp(7.0 + 8.0 * (columns["quality"] - 0.75) + rng.standard_normal(ROWS))
    columns["depth"] = rng.integers(-2, 9, ROWS).astype(float)
    columns["body_bytes"][rng.random(ROWS) < 0.1] = np.nan
    columns["fell_back"] = np.where(canary, rng.random(ROWS) < 0.05, np.nan)
    return columns
