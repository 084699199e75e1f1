"""Measurement of the published cases: the presets as shipped, the like-for-like policy, the other methods.

As shipped: each preset's gates with their own parts of its alpha of 0.01, late-onset restarts included. Like
for like (`*_equal`): four equal metrics at 0.0025 each, without restarts, as at commit 7f28581 and as the
other methods get; `*_crossing` is the same decision before it is rounded up to a look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.gate import growing
from benchmarks.gate.growing import Traffic
from benchmarks.gate.peers import LOOK, alarms, summary
from benchmarks.gate.speed import FOUR
from benchmarks.gate.traffic import Case, Columns, Events, simulate
from benchmarks.gate.trials import PRESETS, Row
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy

ALPHA_METRIC = 0.01 / len(FOUR)
REPS = {"no_harm": 1000, "rollback": 1000, "promotion": 1000, "boundary": 400}
QUICK_REPS = {"no_harm": 12, "rollback": 15, "promotion": 15, "boundary": 4}
EQUAL_REPS = {"no_harm": 100, "rollback": 120}  # of these, also like for like
# All runs: their goals are at the crossing. Nothing decides on -0.02 under `default`.
MORE_EQUAL = frozenset(
    {("quality -0.05", "strict"), ("quality -0.05", "default"), ("quality -0.02", "strict")}
)
DRIFT_REPS = 300  # beside the same case without drift
FIRST_PREFIX = 500  # canary requests tried first where harm is expected; then four times as many


def equal_metrics(preset: str) -> GatePolicy:
    """A preset's gates on four metrics, each with a quarter of 0.01, without restarts."""
    policy = GatePolicy.named(preset)
    gates = tuple(replace(g, alpha_share=1 / len(FOUR)) for g in policy.gates if g.name in FOUR)
    return replace(policy, gates=gates, restart_share=0.0)


def reps_of(case: Case, *, quick: bool) -> int:
    """How many repetitions a case gets."""
    reps = (QUICK_REPS if quick else REPS)[case.kind]
    return min(reps, DRIFT_REPS) if case.kind == "rollback" and case.seeded_as else reps


def prefix(events: Events, canary_requests: int) -> Columns:
    """The rows up to so many canary requests."""
    arm = np.asarray(events.columns["arm"], dtype=np.int64)
    rows = int(np.searchsorted(np.cumsum(arm), canary_requests)) + 1
    return {name: column[:rows] for name, column in events.columns.items()}


def at_look(canary_requests: int | None) -> int | None:
    """The first look at or after this many canary requests; None for None."""
    return None if canary_requests is None else -(-canary_requests // LOOK) * LOOK


def rollback_time(case: Case, traffic: Traffic, policy: GatePolicy) -> int | None:
    """Canary requests at the rollback; None: no rollback by the end of the events."""
    lengths = [case.canary_requests if case.kind == "no_harm" else FIRST_PREFIX]
    while lengths[-1] < case.canary_requests:
        lengths.append(lengths[-1] * 4)
    return growing.rollback_time(traffic, policy, lengths)


def rollback_result(columns: Columns, policy: GatePolicy) -> BacktestResult:
    """A backtest with nothing to prove."""
    return run(columns, policy, stages=(StagePlan(0.5, 0, {}),))


def proof_result(case: Case, columns: Columns) -> BacktestResult:
    """A backtest of the case's margins, without gates that it does not name."""
    policy = GatePolicy.default()
    policy = replace(policy, gates=tuple(g for g in policy.gates if g.name in case.proofs), restart_share=0.0)
    stage = StagePlan(case.traffic.w, 0, case.proofs, case.floor)
    return run(columns, policy, stages=[stage] * (2 if "stage" in columns else 1))


def proof_time(case: Case, events: Events) -> int | None:
    """Canary requests at which the last margin of the case was proven; None: not within the events."""
    result = proof_result(case, events.columns)
    return max(result.proofs.values()) if set(result.proofs) == set(case.proofs) else None


def measure_case(case: Case, rep: int) -> Row:
    """All figures of one repetition of a case."""
    events = simulate(case, rep)
    row: Row = {"rep": rep}
    if case.proofs:
        proven = proof_time(case, events)
        return row | {"proven": at_look(proven), "proven_crossing": proven}
    traffic = Traffic(events.columns)
    for preset in PRESETS:
        row[preset] = at_look(rollback_time(case, traffic, GatePolicy.named(preset)))
        if rep < EQUAL_REPS[case.kind] or (case.name, preset) in MORE_EQUAL:
            crossing = rollback_time(case, traffic, equal_metrics(preset))
            row |= {f"{preset}_equal": at_look(crossing), f"{preset}_crossing": crossing}
    peers = alarms(events, alpha_metric=ALPHA_METRIC)
    return row | {name: getattr(peers, name) for name in peers.__slots__}


def summarise(case: Case, rows: list[Row]) -> dict[str, object]:
    """Figures of one case, for a row of the table."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "rep"))
    out: dict[str, object] = {
        "kind": case.kind,
        "reps": len(rows),
        "canary_requests": case.canary_requests,
        "target": dict(case.target),
    }
    for name in columns:
        values = [value for row in rows if name in row and not isinstance(value := row[name], str)]
        out[name] = summary(values)
    return out


def beside_baseline(baseline: Mapping[str, Any], rows: list[Row]) -> dict[str, object]:
    """Figures of commit 7f28581 and of today over the same repetitions, which have the same events.

    baseline: its times by column and repetition, or, where as many runs are measured today as it published,
    its figures and their number (`reps`).
    """
    out: dict[str, object] = {}
    for name, before in baseline.items():
        if name == "reps":
            continue
        today = "proven" if name == "proven" else f"{name}_equal"
        length = len(before) if isinstance(before, list) else baseline["reps"]
        new = {rep: row[today] for row in rows if (rep := _rep(row)) < length and today in row}
        if new:
            out[f"{name}_equal"] = summary([time for time in new.values() if not isinstance(time, str)])
            is_list = isinstance(before, list)
            out[f"{name}_7f28581"] = summary([before[rep] for rep in new]) if is_list else before
    return out


def _rep(row: Row) -> int:
    rep = row["rep"]
    assert isinstance(rep, int)
    return rep
