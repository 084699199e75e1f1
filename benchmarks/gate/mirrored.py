"""Trial of mirrored pairs: harmless ones in both directions stay, harmful ones are found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.gate.trials import PRESETS, Row, seed_of
from evaluation.evaluator import Evaluator
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Pair

PAIRS = 600


@dataclass(frozen=True, slots=True)
class Mirrored:
    """Measure: whether pairs of one metric roll back. `stable`, `canary`: mean score, or rate of events."""

    name: str
    metric: str  # quality or hallucinated
    stable: float
    canary: float

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        rng = np.random.default_rng(seed_of(self.name, rep))
        if self.metric == "quality":
            own = [rng.beta(4 * mean, 4 * (1 - mean), PAIRS) for mean in (self.stable, self.canary)]
        else:
            own = [(rng.random(PAIRS) < rate).astype(np.float64) for rate in (self.stable, self.canary)]
        pairs = list(zip(own[0].tolist(), own[1].tolist(), strict=True))
        row: Row = {"rep": rep}
        for preset in PRESETS:
            row[preset] = "rollback" if self._rolls_back(preset, pairs) else "undecided"
        return row

    def _rolls_back(self, preset: str, pairs: list[tuple[float, float]]) -> bool:
        policy = GatePolicy.named(preset)
        gates = tuple(replace(gate, mirrored=True) for gate in policy.gates if gate.metric == self.metric)
        policy = replace(policy, gates=gates)
        stages = (StagePlan(0.05, 0, {}),)
        evaluator = Evaluator.start(policy, stages=stages, seed_latency_ms={})
        for index, (stable, canary) in enumerate(pairs):
            evaluator.add(Pair(f"c{index}", self.metric, stable, canary, float(index)))
        evaluator.advance(float(PAIRS + 1), float(PAIRS + 1))
        return evaluator.report().rollback is not None
