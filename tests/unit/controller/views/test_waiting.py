"""What a rollout waits for, in every phase."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.machine import begin
from controller.rollout.observation import EvidenceStatus
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import Departure, DepartureStep, Hold, HoldKind, Phase, RolloutState
from controller.views.waiting import waiting_for
from evaluation.report import GateReport, Verdict

STAGES = (Stage(1000, 60.0, 50, 300.0, 1), Stage(5000, 60.0, 100, 300.0, 1))
PLAN = Plan("medium", ("other tensors",), STAGES, 500, 120.0)
GATE = GateReport(
    "quality", "quality", "promotion", Verdict.UNDECIDED, 1.5, 3.0, "", 40, 400, 0.97, 0.95, (-0.1, 0.05)
)


def in_stage(**fields: object) -> RolloutState:
    state = begin("r-1", "chat", stable=VersionRef("v-old"), canary=VersionRef("v-new"), plan=PLAN, now_s=0.0)
    at = {"phase": Phase.STAGE, "weight_bp": 1000, "acked_at_s": 100.0, "exposed": True, "launched": True}
    return replace(state, **{**at, **fields})  # type: ignore[arg-type]


def test_a_stage_lists_every_condition_that_it_waits_for() -> None:
    held = (Hold(HoldKind.PAUSE, "ann", "lunch", 0.0),)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=(GATE,), missing=("ttft_ms",), canary_requests=20)

    assert waiting_for(in_stage(holds=held), evidence, 130.0) == (
        "pause (ann): lunch",
        "30 s at 10 %",
        "30 canary requests",
        "proof of quality",
        "data to judge ttft_ms",
    )


@pytest.mark.parametrize(
    ("state", "waits"),
    [
        (in_stage(acked_at_s=None), ("the routers to acknowledge 10 %",)),
        (in_stage(), ("readable evidence",)),
        (in_stage(phase=Phase.BAKING, entered_at_s=100.0), ("1 min 30 s of bake",)),
        (in_stage(phase=Phase.PROMOTING), ("full capacity",)),
        (in_stage(phase=Phase.PROMOTING, weight_bp=9500), ("the routers",)),
        (in_stage(phase=Phase.LOADING), ("loading of v-new",)),
        (in_stage(phase=Phase.SUCCEEDED), ()),
        (
            in_stage(
                phase=Phase.ROLLING_BACK,
                departure=Departure("v-new", "v-old", DepartureStep.DRAIN, 100.0, 101.0, 12.5),
            ),
            ("drain of v-new",),
        ),
    ],
)
def test_every_phase_lists_what_it_waits_for(state: RolloutState, waits: tuple[str, ...]) -> None:
    assert waiting_for(state, None, 130.0) == waits
