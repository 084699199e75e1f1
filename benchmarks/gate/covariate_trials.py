"""Trials of gates with covariates: optional, so published apart; without and with them on the same events."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.gate.trials import HARMED, NO_PROOF, Goal, Quantile, Ratio, Row, Share, Trial, seed_of
from benchmarks.gate.world_columns import columns_of
from benchmarks.gate.worlds import Arm, World
from evaluation.offline.backtest import run
from evaluation.policy.policy import GatePolicy

#: Quality lost; canary requests of a run; the median's limit with covariates; runs.
HARMS = ((0.05, 1200, 165, 1000), (0.02, 6000, 1000, 400))
SOONER = 0.8  # of the median without covariates, on the same events
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
        row: Row = {"rep": rep}
        for word, policy in self.policies().items():
            result = run(columns, policy, stages=(NO_PROOF,))
            row[word] = result.decision
            row[f"{word}_at"] = result.canary_requests if result.decision == "rollback" else None
        return row

    @staticmethod
    def policies() -> dict[str, GatePolicy]:
        """The policies that are compared, by the words of their columns."""
        without = GatePolicy.strict().only("quality")
        gates = tuple(replace(gate, covariates=("body_bytes",)) for gate in without.gates)
        return {"without": without, "with": replace(without, gates=gates)}


def covariate_trials() -> list[Trial]:
    """The trials: harm is found as soon as promised, and identical versions stay."""
    base = World(sticky=False, w=0.05, stable_first=4000, metrics=("quality",), explained=EXPLAINED)
    trials = []
    for harm, length, limit, runs in HARMS:
        name = f"covariates: quality -{harm:g}, R2 {EXPLAINED:g}"
        world = replace(base, canary=Arm(quality=0.75 - harm), canary_requests=length)
        goals: dict[str, Goal] = {
            "with": Quantile("with_at", limit),
            "with / without": Ratio("with_at", "without_at", SOONER),
        }
        measure = WithCovariates(name, world)
        trials.append(Trial(name, "power", f"strict; {SAYS}", measure, goals, runs=runs, quick_runs=10))
    name = "covariates: no harm"
    world = replace(base, w=0.2, canary_requests=1000)
    goals = {"with": Share("with", HARMED, 0.016, 0.01), "without": Share("without", HARMED, 0.016, 0.01)}
    trials.append(Trial(name, "stays", f"identical versions; {SAYS}", WithCovariates(name, world), goals))
    return trials
