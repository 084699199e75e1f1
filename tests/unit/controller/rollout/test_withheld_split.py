"""A split that gives traffic to a version without a ready replica waits while what is published answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollout.actions import SetSplit
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase
from tests.fakes.driven import NEW, OLD, PLAN, Driven


def in_stage() -> Driven:
    driven = Driven(replace(PLAN, stages=(replace(PLAN.stages[0], deadline_s=3600.0),)))
    driven.until(Phase.STAGE)
    driven.ticks(2)
    return driven


def resumed_from_an_older_copy() -> Driven:
    """The database is from the stage; since then the canary was promoted and the old version unloaded."""
    driven = in_stage()
    driven.plane.table(NEW, None, 0)
    driven.ready = {OLD: 0, NEW: 1}
    driven.wanted.clear()
    driven.tick(resumed=True)
    return driven


def splits(driven: Driven) -> list[SetSplit]:
    return [action for action in driven.wanted if isinstance(action, SetSplit)]


def test_a_resumed_stage_gives_no_traffic_to_an_unloaded_stable_version() -> None:
    driven = resumed_from_an_older_copy()

    driven.ticks(300)

    assert (splits(driven), driven.state.phase) == ([], Phase.STAGE)
    text = "50 % is not published: v-old has no ready replica, and what is published answers"
    assert driven.lines.count(text) == 1

    driven.ready[OLD] = 1
    driven.ticks(5)
    assert driven.plane.split is not None
    assert (driven.plane.split.canary, driven.plane.split.weight_bp) == (NEW, 5000)


def test_its_rollback_waits_for_stable_with_the_table_as_it_is() -> None:
    driven = resumed_from_an_older_copy()
    driven.command(CommandKind.ROLLBACK)

    driven.ticks(120)
    assert (splits(driven), driven.state.phase) == ([], Phase.ROLLING_BACK)

    driven.ready[OLD] = 1
    driven.ticks(60)
    assert driven.state.phase is Phase.ROLLED_BACK
    assert driven.plane.split is not None
    assert (driven.plane.split.stable, driven.plane.split.canary) == (OLD, None)


def test_a_withdrawn_canary_without_a_replica_gets_no_traffic_until_it_is_ready() -> None:
    driven = in_stage()
    driven.plane.table(OLD, None, 0)
    driven.ready[NEW] = 0
    driven.wanted.clear()
    driven.tick(resumed=True)
    driven.ticks(20)
    assert splits(driven) == []

    driven.ready[NEW] = 1
    driven.ticks(5)
    assert driven.plane.split is not None
    assert driven.plane.split.weight_bp == 5000


def test_a_canary_that_stays_away_is_rolled_back_all_the_same() -> None:
    driven = in_stage()
    driven.plane.table(OLD, None, 0)
    driven.ready[NEW] = 0
    driven.tick(resumed=True)

    assert driven.ticks(60).phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)


@pytest.mark.parametrize("published", [(OLD, None), (None, None)], ids=["a silent version", "an empty table"])
def test_a_split_is_published_where_what_is_published_does_not_answer(
    published: tuple[str | None, str | None],
) -> None:
    driven = in_stage()
    driven.plane.table(*published, 0)
    driven.ready[OLD] = 0

    driven.ticks(2)

    assert driven.plane.split is not None
    assert (driven.plane.split.canary, driven.plane.split.weight_bp) == (NEW, 5000)
