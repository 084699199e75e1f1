"""Trials of gates with covariates: optional, so published apart; without and with them on the same events."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.gate.trials import HARMED, NO_PROOF, Goal, Quantile, Row, Share, Trial, seed_of
from benchmarks.gate.worlds import Arm, World, columns_of
from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy

#: Quality lost; canary requests of a run; the median's limit with covariates and without; runs.
HARMS = ((0.05, 1200, 165, 205, 1000), (0.02, 6000, 1000, 1300, 400))
EXPLAINED = 0.3
SAYS = "body_bytes explains 30 % of the variance of scores; `without`: the same events without covariates"


@dataclass(frozen=True, slots=True)
class WithCovariates:
    """Measure: canary requests at the rollback of quality, at `strict`'s own part of alpha, without and with
    the covariate body_bytes; None: not found."""

    name: str
    world: World

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        columns = columns_of(self.world, seed_of(self.name, rep))
        policy = GatePolicy.strict().only("quality")
        row: Row = {"rep": rep}
        for word, names in (("without", ()), ("with", ("body_bytes",))):
            gates = tuple(replace(gate, covariates=names) for gate in policy.gates)
            result = run(columns, replace(policy, gates=gates), stages=(NO_PROOF,))
            row[word] = result.decision
            row[f"{word}_at"] = result.canary_requests if result.decision == "rollback" else None
        return row


def covariate_trials() -> list[Trial]:
    """The trials: harm is found as soon as promised, and identical versions stay."""
    base = World(sticky=False, w=0.05, stable_first=4000, metrics=("quality",), explained=EXPLAINED)
    trials = []
    for harm, length, with_them, without, runs in HARMS:
        name = f"covariates: quality -{harm:g}, R2 {EXPLAINED:g}"
        world = replace(base, canary=Arm(quality=0.75 - harm), canary_requests=length)
        goals: dict[str, Goal] = {
            "with": Quantile("with_at", with_them),
            "without": Quantile("without_at", without),
        }
        measure = WithCovariates(name, world)
        trials.append(Trial(name, "power", f"strict; {SAYS}", measure, goals, runs=runs, quick_runs=10))
    name = "covariates: no harm"
    world = replace(base, w=0.2, canary_requests=1000)
    goals = {"with": Share("with", HARMED, 0.016, 0.01), "without": Share("without", HARMED, 0.016, 0.01)}
    trials.append(Trial(name, "stays", f"identical versions; {SAYS}", WithCovariates(name, world), goals))
    return trials
