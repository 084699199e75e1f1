"""What a rollout waits for, in every phase."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import Departure, DepartureStep, Hold, HoldKind, Phase, RolloutState
from controller.views.waiting import waiting_for
from evaluation.report import Verdict
from tests.fakes.view_maker import GATE, in_stage


def test_a_stage_lists_every_condition_that_it_waits_for() -> None:
    held = (Hold(HoldKind.PAUSE, "ann", "lunch", 0.0),)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=(GATE,), missing=("ttft_ms",), canary_requests=20)

    assert waiting_for(in_stage(holds=held), evidence, 130.0) == (
        "pause (ann): lunch",
        "30 s at 10 %",
        "30 canary requests",
        "proof that quality is no worse",
        "data to judge ttft_ms",
    )


def test_a_proof_by_scores_waits_for_the_first_of_them() -> None:
    silent = replace(GATE, stable=None, canary=None, last_value_s=None)
    error = replace(GATE, gate="error", metric="error", last_value_s=None)
    evidence = EvidenceStatus(0, Verdict.UNDECIDED, gates=(silent, error), canary_requests=50)

    assert waiting_for(in_stage(), evidence, 160.0) == (
        "proof that error is no worse",
        "a first score for quality (POST /v1/feedback), without which nothing is promoted",
    )


@pytest.mark.parametrize(
    ("state", "waits"),
    [
        (in_stage(acked_at_s=None), ("the routers to acknowledge 10 %",)),
        (in_stage(), ("readable evidence",)),
        (in_stage(phase=Phase.BAKING, entered_at_s=100.0), ("1 min 30 s of bake",)),
        (in_stage(phase=Phase.PROMOTING), ("full capacity", "the evidence cannot be read")),
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
