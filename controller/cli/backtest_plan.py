"""What a backtest must judge: the stages of a recorded ramp, and the gates that a promotion needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.cli.evidence_files import EvidenceFile
from controller.errors import BadInput
from controller.quantities import FULL_BP, percent
from controller.spec.policy import PolicySpec
from evaluation.metrics import STREAMED
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import stage_margins

REPLAY_WEIGHT = 0.5  # P(canary) of each request of a replay
TOLERANCE = 1e-6  # between a row's w and the weight of its stage


@dataclass(frozen=True, slots=True)
class Needed:
    """Gates that decide, by what happens where their metric has no column.

    named: by the user's policy; they block a promotion. preset: a preset's; they block it until
    acknowledged. Streaming times of a preset are neither: where nothing streams, they do not exist.
    """

    named: frozenset[str]
    preset: frozenset[str]

    def blocking(self, *, is_acknowledged: bool) -> frozenset[str]:
        """The gates without which nothing is promoted."""
        return self.named if is_acknowledged else self.named | self.preset


def needed_gates(spec: PolicySpec, policy: GatePolicy) -> Needed:
    """The deciding gates of a policy; one that a key, a margin or a range of the file names is the user's."""
    named = {name for name, gate in spec.gates.items() if gate is not None} | spec.observed_ranges.keys()
    for margins in (*(s.margins for s in spec.stages or ()), *(r.margins for r in spec.rungs or ())):
        named |= (margins or {}).keys()
    deciding = {gate.name: gate.metric for gate in policy.gates if not gate.is_alarm}
    deciding |= {gate.name: gate.metric for gate in policy.observed_ranges}
    preset = {name for name, metric in deciding.items() if name not in named and metric not in STREAMED}
    return Needed(frozenset(named & deciding.keys()), frozenset(preset))


@dataclass(frozen=True, slots=True)
class Ramp:
    """The stages of a recorded rollout, and the stage of each row. `note`: where they come from."""

    stages: tuple[StagePlan, ...]
    column: np.ndarray | None  # None: one stage
    note: str | None = None


def ramp_of(spec: PolicySpec, evidence: EvidenceFile) -> Ramp | None:
    """The stages of the policy, else of the file's column; None: neither has any. Raises BadInput.

    Without a column, a row's stage is the one whose weight is its w. Rows at the bake's weight or at 100 %
    form a last stage that has nothing to prove.
    """
    given = np.asarray(evidence.columns["stage"], dtype=np.float64) if "stage" in evidence.columns else None
    w = np.asarray(evidence.columns["w"], dtype=np.float64)
    stages = [stage for stage in spec.stages or () if stage.bp < FULL_BP]
    if not stages:
        return _ramp_of_column(given, w)
    plan = [StagePlan(s.bp / FULL_BP, s.min_canary, s.margins, s.floor) for s in stages]
    if evidence.is_replay:
        stage = replay_stage(spec)
        return Ramp((stage,), None, _one_stage_note(stage, len(plan))) if stage is not None else None
    bake = 1.0 - spec.holdback / FULL_BP
    if given is None and len(plan) > 1:
        given = _stages_by_weight(evidence, w, [stage.weight for stage in plan], bake)
    if given is not None and bool((given == len(plan)).any()):
        plan.append(StagePlan(bake, 0, {}))
    if given is not None and len(given) and given.max() >= len(plan):
        row = int(np.argmax(given))
        raise BadInput(
            f"{evidence.place(row)}: stage {given[row]:g} does not exist; the policy has {len(stages)} stages"
            f" from 0 on, and stage {len(stages)}, the bake"
        )
    return Ramp(tuple(plan), given)


def replay_stage(spec: PolicySpec) -> StagePlan | None:
    """The one stage that a replay is: at its own weight, with all that the policy's stages must prove, by the
    narrowest margin and floor and the largest min_canary. None: the policy names no stages.

    A replay draws at one weight, so a stage of another one would never have a row.
    """
    stages = [stage for stage in spec.stages or () if stage.bp < FULL_BP]
    if not stages:
        return None
    gates = spec.gate_policy()
    margins: dict[str, float] = {}
    floors = []
    for stage in stages:
        planned = StagePlan(stage.bp / FULL_BP, stage.min_canary, stage.margins, stage.floor)
        given, floor = stage_margins(gates, planned)
        floors.append(floor)
        for name, margin in given.items():
            margins[name] = min(margin, margins.get(name, margin))
    return StagePlan(REPLAY_WEIGHT, max(stage.min_canary for stage in stages), margins, min(floors))


def _one_stage_note(stage: StagePlan, planned: int) -> str | None:
    if planned == 1:
        return None
    margins = ", ".join(f"{name} {margin:g}" for name, margin in (stage.margins or {}).items())
    return (
        f"a replay is one stage of {stage.weight:.0%}: it must prove what the policy's {planned} stages must "
        f"({margins or 'nothing'}; floor {stage.floor:g}; min_canary {stage.min_canary})"
    )


def _ramp_of_column(given: np.ndarray | None, w: np.ndarray) -> Ramp | None:
    if given is None or not len(given) or not np.isfinite(given).all() or given.max() < 1:
        return None
    plan = []
    for index in range(int(given.max()) + 1):
        weights = w[(given == index) & (w > 0.0)]
        plan.append(StagePlan(float(np.median(weights)) if len(weights) else 0.5, 0))
    note = f"{len(plan)} stages by column stage; each must prove the first rung (your own: --policy FILE)"
    return Ramp(tuple(plan), given, note)


def _stages_by_weight(
    evidence: EvidenceFile, w: np.ndarray, weights: Sequence[float], bake: float
) -> np.ndarray:
    """Each row's stage by its w; rows from before the canary (w = 0) belong to the stage before them."""
    stage = np.full(len(w), -1.0)
    for index, weight in enumerate(weights):
        stage[np.abs(w - weight) < TOLERANCE] = index
    stage[w >= bake - TOLERANCE] = len(weights)
    stage[w == 0.0] = 0
    if bool((stage < 0).any()):
        row = int(np.argmax(stage < 0))
        shown = ", ".join(percent(round(weight * FULL_BP)) for weight in weights)
        raise BadInput(
            f"{evidence.place(row)}: w {w[row]:g} is the weight of no stage of the policy ({shown}); "
            "name the stages that were run (--policy FILE; those of a router by itself: "
            "examples/router-policy.yaml), or give a column stage"
        )
    before = w == 0.0
    stage[before] = np.maximum.accumulate(np.where(before, 0, stage))[before]
    return stage
