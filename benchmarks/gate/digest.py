"""Digest of the gate's results: which rows may stand in one table."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from benchmarks.gate.cases import CASES
from benchmarks.gate.published import equal_metrics, prefix, proof_result, rollback_result
from benchmarks.gate.traffic import simulate
from benchmarks.gate.trial_cases import TRIALS
from benchmarks.gate.trials import FIRST_RUNG, PRESETS
from benchmarks.gate.worlds import World, columns_of
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.policy import GatePolicy

CASE_PREFIX = 300  # canary requests of each published case
TRIAL_PREFIX = 120  # and of each trial


def gate_digest() -> str:
    """Twelve hex digits of the gate's results, to the bit, on the beginning of every case and trial.

    It changes with the traffic, the bets and the limits, and not with a refactoring.
    """
    digest = hashlib.sha256()
    for case in CASES.values():
        columns = prefix(simulate(case, 0), CASE_PREFIX)
        for preset in PRESETS:
            for policy in (equal_metrics(preset), GatePolicy.named(preset)):
                result = proof_result(case, columns) if case.proofs else rollback_result(columns, policy)
                _add(digest, case.name, result)
    for trial in TRIALS.values():
        world = getattr(trial.measure, "world", None)
        if isinstance(world, World):
            small = replace(world, canary_requests=TRIAL_PREFIX, stable_first=400, late=0, stages=1)
            columns = columns_of(small, [0])
            for preset in PRESETS:
                _add(digest, trial.name, run(columns, GatePolicy.named(preset), stages=(FIRST_RUNG,)))
    return digest.hexdigest()[:12]


def _add(digest: hashlib._Hash, name: str, result: BacktestResult) -> None:
    digest.update(f"{name} {dict(result.log_e)} {dict(result.proofs)}".encode())
    digest.update(" ".join(f"{r.gate} {r.log_e!r} {r.limit!r} {r.verdict}" for r in result.gates).encode())
