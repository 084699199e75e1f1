"""Digests of the gate's results: which measured rows still hold, and which may stand in one table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.gate.cases import CASES
from benchmarks.gate.covariate_trials import WithCovariates
from benchmarks.gate.published import equal_metrics, prefix, proof_result, rollback_result
from benchmarks.gate.survivor_trials import Survivors
from benchmarks.gate.traffic import Case, simulate
from benchmarks.gate.trial_cases import TRIALS
from benchmarks.gate.trials import FIRST_RUNG, PRESETS, Trial
from benchmarks.gate.world_columns import columns_of
from benchmarks.gate.worlds import World
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.policy import GatePolicy

CASE_PREFIX = 300  # canary requests of each published case
TRIAL_PREFIX = 120  # and of each trial
HEX_DIGITS = 12


def gate_digests() -> dict[str, str]:
    """By the name of every case and trial, a digest of the gate's results, to the bit, on its beginning.

    It changes with the traffic, the bets and the limits that concern this one, and not with a refactoring.
    """
    cases = {case.name: _of_case(case) for case in CASES.values()}
    return cases | {trial.name: _of_trial(trial) for trial in TRIALS.values()}


def whole_digest(digests: Mapping[str, str]) -> str:
    """The digest of a table with all of these cases and trials."""
    text = " ".join(f"{name}={digests[name]}" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()[:HEX_DIGITS]


def _of_case(case: Case) -> str:
    digest = hashlib.sha256(case.name.encode())
    columns = prefix(simulate(case, 0), CASE_PREFIX)
    for preset in PRESETS:
        for policy in (equal_metrics(preset), GatePolicy.named(preset)):
            _add(digest, proof_result(case, columns) if case.proofs else rollback_result(columns, policy))
    return digest.hexdigest()[:HEX_DIGITS]


def _of_trial(trial: Trial) -> str:
    digest = hashlib.sha256(f"{trial.name} {trial.measure!r}".encode())
    world = getattr(trial.measure, "world", None)
    if isinstance(world, World):
        small = replace(world, canary_requests=TRIAL_PREFIX, stable_first=400, late=0, stages=1)
        columns = columns_of(small, [0])
        for policy in _policies(trial):
            _add(digest, run(columns, policy, stages=(FIRST_RUNG,)))
    elif isinstance(trial.measure, Survivors):
        columns = replace(trial.measure, users=300, hours=2).columns([0])
        for policy in _policies(trial):
            _add(digest, run(columns, policy, stages=(FIRST_RUNG,)))
    elif not trial.skipped:
        digest.update(repr(trial.measure(0)).encode())
    return digest.hexdigest()[:HEX_DIGITS]


def _policies(trial: Trial) -> list[GatePolicy]:
    """The policies that a trial is about: the presets, or the gate on quality without and with covariates."""
    if isinstance(trial.measure, WithCovariates):
        return list(trial.measure.policies().values())
    return [GatePolicy.named(preset) for preset in PRESETS]


def _add(digest: hashlib._Hash, result: BacktestResult) -> None:
    digest.update(f"{dict(result.log_e)} {dict(result.proofs)}".encode())
    digest.update(" ".join(f"{r.gate} {r.log_e!r} {r.limit!r} {r.verdict}" for r in result.gates).encode())
