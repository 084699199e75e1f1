"""A rollout in its first stage and one gate's report, for the tests of views."""

from __future__ import annotations

from dataclasses import replace

from controller.rollout.machine import begin
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from evaluation.report import GateReport, Verdict

STAGES = (Stage(1000, 60.0, 50, 300.0, 1), Stage(5000, 60.0, 100, 300.0, 1))
PLAN = Plan("medium", ("other tensors",), STAGES, 500, 120.0)
GATE = GateReport(
    "quality", "quality", "promotion", Verdict.UNDECIDED, 1.5, 3.0, "", 40, 400, 0.97, 0.95, (-0.1, 0.05),
    last_value_s=120.0,
)  # fmt: skip


def in_stage(**fields: object) -> RolloutState:
    """The rollout in its first stage at 10 %, with these fields changed."""
    state = begin("r-1", "chat", stable=VersionRef("v-old"), canary=VersionRef("v-new"), plan=PLAN, now_s=0.0)
    at = {"phase": Phase.STAGE, "weight_bp": 1000, "acked_at_s": 100.0, "exposed": True, "launched": True}
    return replace(state, **{**at, **fields})  # type: ignore[arg-type]
