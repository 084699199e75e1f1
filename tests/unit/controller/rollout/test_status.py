"""Status of a rollout: start, exit code, effect of a rollback."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.errors import BadInput
from controller.rollout.machine import begin
from controller.rollout.plan import Plan, VersionRef
from controller.rollout.state import Cause, CauseKind, Departure, DepartureStep, Phase, RolloutState
from controller.rollout.status import exit_code, rollback_effect

PLAN = Plan("low", (), (), 500, 60.0)


def at(phase: Phase, **fields: object) -> RolloutState:
    state = begin("r-1", "chat", stable=VersionRef("v-old"), canary=VersionRef("v-new"), plan=PLAN, now_s=1.0)
    return replace(state, phase=phase, **fields)  # type: ignore[arg-type]


def test_both_arms_cannot_be_one_version() -> None:
    same = VersionRef("v-old")

    with pytest.raises(BadInput, match="v-old is in production already; deploy another version"):
        begin("r-1", "chat", stable=same, canary=same, plan=PLAN, now_s=0.0)


def test_the_exit_code_is_the_outcome_of_the_rollout() -> None:
    not_proven = Cause(CauseKind.NOT_PROVEN, "")

    assert exit_code(at(Phase.SUCCEEDED)) == 0
    assert exit_code(at(Phase.FAILED)) == 1
    assert exit_code(at(Phase.ROLLED_BACK)) == 5
    assert exit_code(at(Phase.ROLLED_BACK, cause=not_proven)) == 6
    assert exit_code(at(Phase.STAGE)) is None


def test_the_effect_of_a_rollback_depends_on_the_phase() -> None:
    new_serves = Departure("v-old", "v-new", DepartureStep.UNLOAD, 0.0, 0.0)

    assert rollback_effect(None) == "already"
    assert rollback_effect(at(Phase.LOADING)) == "abort"
    assert rollback_effect(at(Phase.STAGE)) == "abort"
    assert rollback_effect(at(Phase.BAKING)) == "switch_back"
    assert rollback_effect(at(Phase.UNLOADING)) == "restore"
    assert rollback_effect(at(Phase.SUCCEEDED, departure=new_serves)) == "undo"
    assert rollback_effect(at(Phase.SUCCEEDED)) == "already"  # a twin run
    assert rollback_effect(at(Phase.ROLLED_BACK)) == "already"
    assert rollback_effect(at(Phase.FAILED)) == "already"
    assert rollback_effect(at(Phase.FAILED, departure=new_serves)) == "undo"


def test_a_second_rollback_never_takes_back_an_undo() -> None:
    undo = replace(PLAN, undo=True)
    restored = Departure("v-old", "v-new", DepartureStep.UNLOAD, 0.0, 0.0)

    assert rollback_effect(at(Phase.BAKING, plan=undo)) == "already"
    assert rollback_effect(at(Phase.SUCCEEDED, plan=undo, departure=restored)) == "already"
    assert rollback_effect(at(Phase.ROLLED_BACK, plan=undo)) == "undo"
