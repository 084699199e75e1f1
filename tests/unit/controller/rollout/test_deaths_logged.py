"""An arm that loses its last replica: the log says so, and why; flapping does not fill it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.observation import VersionPhase
from controller.rollout.state import Phase
from tests.fakes.driven import NEW, OLD, PLAN, Driven


def died(driven: Driven, version: str) -> None:
    driven.ready[version] = 0
    driven.errors[version] = "its core has stopped"


def texts(driven: Driven) -> list[str]:
    return [line.text for line in driven.state.log if "ready" in line.text]


@pytest.mark.parametrize("phase", [Phase.STAGE, Phase.BAKING])
def test_the_death_of_the_canarys_engine_is_in_the_log_and_in_the_cause(phase: Phase) -> None:
    """31 s without a word, and then only that no replica was ready."""
    driven = Driven(replace(PLAN, bake_s=7200.0))
    driven.until(phase)
    driven.ticks(90)
    died(driven, NEW)

    driven.ticks(2)
    assert texts(driven)[-1] == "no replica of v-new is ready (its core has stopped); v-old answers for it"

    driven.until(Phase.ROLLED_BACK)
    assert driven.state.cause is not None
    assert driven.state.cause.text == "no canary replica was ready for 30 s: its core has stopped"


def test_a_replica_that_comes_back_is_in_the_log_too() -> None:
    driven = Driven()
    driven.until(Phase.STAGE)
    died(driven, NEW)
    driven.ticks(3)
    driven.ready[NEW] = 1
    driven.ticks(2)

    assert texts(driven)[-1] == "v-new is ready again"


def test_the_death_of_stable_is_in_the_log_and_nobody_answers_without_both() -> None:
    driven = Driven(replace(PLAN, unready_s=600.0))
    driven.until(Phase.STAGE)
    died(driven, NEW)
    driven.ticks(2)
    died(driven, OLD)
    driven.ticks(2)

    assert texts(driven)[-1] == "no replica of v-old is ready (its core has stopped); nobody answers"


def test_flapping_is_not_told_each_time() -> None:
    driven = Driven(replace(PLAN, unready_s=600.0))
    driven.until(Phase.STAGE)
    before = len(driven.state.log)
    for second in range(200):
        driven.ready[OLD] = 1 if second % 10 < 7 else 0
        driven.tick()

    told = [line for line in driven.state.log[before:] if OLD in line.text and "ready" in line.text]
    assert len(told) <= 8  # of 40 changes


def test_versions_that_load_or_leave_are_not_called_dead() -> None:
    driven = Driven()
    driven.until(Phase.SUCCEEDED)

    assert not [text for text in texts(driven) if "no replica of" in text]
    assert driven.plane.versions[NEW].phase is VersionPhase.READY
