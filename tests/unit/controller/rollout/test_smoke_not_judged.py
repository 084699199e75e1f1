"""A smoke test without a verdict never passes: held past its limit, it ends by a verdict or a person."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import ProbeKind
from controller.rollout.observation import CommandKind, ProbePhase
from controller.rollout.plan import PreflightPlan
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import CauseKind, HoldKind, Phase
from tests.fakes.driven import PLAN, Driven

ASKED = replace(PLAN, preflight=PreflightPlan(golden="/g.jsonl", golden_digest="ab", require=("tools",)))
WHY = "NOT JUDGED: stable gave no answer to 19 of 19 cases: status 503"


def smoked(phase: ProbePhase, detail: str, **fields: object) -> Driven:
    driven = Driven(replace(ASKED, **fields))  # type: ignore[arg-type]
    driven.plane.results[ProbeKind.SMOKE] = (phase, detail)
    return driven


def in_smoke(driven: Driven) -> Driven:
    while driven.state.phase is not Phase.SMOKE:
        driven.tick()
    return driven


def test_it_gives_no_weight_and_is_held_past_its_limit_with_a_page() -> None:
    driven = in_smoke(smoked("not_judged", WHY))
    driven.ticks(int(PLAN.smoke_s) * 3)

    assert (driven.state.phase, driven.state.weight_bp) == (Phase.SMOKE, 0)
    assert [one.kind for one in driven.state.holds] == [HoldKind.NOT_PROVEN]
    assert driven.pages == [
        f"chat: held (not_proven): {WHY}; rolled back after 3 d of hold, or at once by: "
        "canaryctl rollback chat"
    ]


@pytest.mark.slow
def test_a_verdict_ends_the_hold_either_way() -> None:
    for phase, after in (("passed", Phase.STAGE), ("failed", Phase.ROLLING_BACK)):
        driven = in_smoke(smoked("not_judged", WHY))
        driven.ticks(int(PLAN.smoke_s) * 3)
        driven.plane.results[ProbeKind.SMOKE] = (phase, "why")  # type: ignore[assignment]
        driven.ticks(2)

        assert (driven.state.phase, driven.state.holds) == (after, ())


@pytest.mark.slow
def test_it_is_rolled_back_as_not_proven_when_the_hold_has_lasted_too_long() -> None:
    driven = in_smoke(smoked("not_judged", WHY, hold_limit_s=600.0))
    driven.ticks(900)

    assert driven.state.phase is Phase.ROLLED_BACK
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.NOT_PROVEN
    assert WHY in driven.state.cause.text


def test_a_policy_that_rolls_back_on_missing_data_does_so_here() -> None:
    stages = (replace(PLAN.stages[0], on_missing="rollback"),)
    driven = in_smoke(smoked("not_judged", WHY, stages=stages))
    driven.ticks(int(PLAN.smoke_s) + 10)

    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.MISSING
    assert driven.state.cause.text == f"at the smoke phase's deadline: {WHY}"


def test_a_person_ends_it_at_once() -> None:
    driven = in_smoke(smoked("not_judged", WHY))
    driven.ticks(300)
    driven.command(CommandKind.ROLLBACK)

    assert driven.until(Phase.ROLLED_BACK).weight_bp == 0


def test_a_restarted_controller_asks_again_before_it_judges_the_time() -> None:
    driven = in_smoke(smoked("not_judged", WHY))
    driven.ticks(int(PLAN.smoke_s) * 3)
    driven.plane.results[ProbeKind.SMOKE] = ("running", "")
    driven.tick(resumed=True)
    driven.ticks(30)
    assert driven.state.phase is Phase.SMOKE
    driven.plane.results[ProbeKind.SMOKE] = ("passed", "")

    assert driven.ticks(2).phase is Phase.STAGE


def test_what_was_found_is_in_the_log_of_the_rollout() -> None:
    passed = smoked("passed", "smoke: chat passed; golden: 9 of 9 right")
    passed.until(Phase.STAGE)
    failed = smoked("failed", "refused: tools failed (tools-auto: no tool is called; stable passes)")
    failed.ticks(60)

    assert "smoke test passed: smoke: chat passed; golden: 9 of 9 right; now 50 %" in passed.lines
    assert failed.state.phase is Phase.ROLLED_BACK
    assert failed.state.weight_bp == 0
    assert "probe: smoke failed: refused: tools failed (tools-auto: no tool is called" in failed.lines


def test_the_plan_is_stored_and_read_again() -> None:
    state = Driven(ASKED).state

    assert state_from_json(state_to_json(state)).plan.preflight == ASKED.preflight


SILENT = "NOT JUDGED: the fleet does not say where v-new is; trying again"


@pytest.mark.parametrize(
    ("kind", "phase", "undo"),
    [
        (ProbeKind.PREFLIGHT, Phase.PREFLIGHT, False),
        (ProbeKind.WARM, Phase.WARMING, False),
        (ProbeKind.SMOKE, Phase.SMOKE, False),
        (ProbeKind.PREFLIGHT, Phase.PREFLIGHT, True),
        (ProbeKind.SMOKE, Phase.SMOKE, True),
    ],
)
def test_a_probe_that_could_not_begin_for_a_while_ends_neither_a_rollout_nor_an_undo(
    kind: ProbeKind, phase: Phase, undo: bool
) -> None:
    driven = Driven(replace(PLAN, undo=undo, stages=() if undo else PLAN.stages))
    driven.plane.results[kind] = ("not_judged", SILENT)
    while driven.state.phase is not phase:
        driven.tick()
    driven.ticks(30)
    waits_in = driven.state.phase
    driven.plane.results[kind] = ("passed", "")
    driven.ticks(2)

    assert waits_in is phase
    assert (driven.state.phase is phase, driven.state.cause) == (False, None)


def test_a_preflight_that_can_not_begin_ends_with_its_phase_and_says_why() -> None:
    driven = Driven(PLAN)
    driven.plane.results[ProbeKind.PREFLIGHT] = ("not_judged", SILENT)
    driven.ticks(int(PLAN.preflight_s) + 5)

    assert (driven.state.phase, driven.state.holds) == (Phase.FAILED, ())
    assert driven.state.cause is not None
    assert driven.state.cause.kind is CauseKind.DEADLINE
    assert SILENT in driven.state.cause.text
