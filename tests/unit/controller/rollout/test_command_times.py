"""A command counts from when it was given: a controller that was away reads it late."""

from __future__ import annotations

import pytest

from controller.rollout.machine import step
from controller.rollout.observation import CommandKind, ManualCommand, Observation, SplitStatus
from controller.rollout.state import Phase
from tests.fakes.view_maker import in_stage


@pytest.mark.parametrize(
    ("at_s", "logged_s"),
    [
        (900.0, 900.0),
        (5000.0, 4600.0),  # given by a clock that is ahead: not later than it was read
        (50.0, 900.0 - 800.0),  # ... or before the rollout's last tick: not before that
    ],
)
def test_a_direct_rollback_is_logged_and_timed_from_its_request(at_s: float, logged_s: float) -> None:
    state = in_stage(ticked_at_s=100.0, started_at_s=0.0)
    command = ManualCommand(1, CommandKind.ROLLBACK, "direct", "admin", "3 a.m.", at_s)
    seen = Observation(4600.0, None, None, None, commands=(command,), resumed=True, away_s=4500.0)

    after, _ = step(state, seen)

    asked = next(line for line in after.log if line.text.startswith("rollback requested by direct"))
    assert after.departure is not None
    assert (after.phase, after.entered_at_s) == (Phase.ROLLING_BACK, 4600.0)
    assert (asked.at_s, after.departure.started_at_s) == (logged_s, logged_s)
    assert after.departure.step_at_s == 4600.0


def test_the_log_of_a_tick_is_in_the_order_of_time() -> None:
    """A controller that was away reads two requests; what it did after the first stood before the second."""
    state = in_stage(ticked_at_s=100.0, started_at_s=0.0)
    commands = tuple(
        ManualCommand(seq, CommandKind.ROLLBACK, "direct", "admin", "3 a.m.", at_s)
        for seq, at_s in ((1, 900.0), (2, 950.0))
    )
    seen = Observation(4600.0, None, None, None, commands=commands, resumed=True, away_s=4500.0)

    after, _ = step(state, seen)

    new = after.log[len(state.log) :]
    assert [(line.seq, line.at_s) for line in new] == [(2, 900.0), (3, 950.0), (4, 4600.0)]
    assert new[1].text.endswith("the canary is leaving already")
    assert new[2].text == "rolling_back: user: 3 a.m."


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("acknowledged", "(acknowledged)"),
        ("fenced", "(engines refuse late requests)"),
        ("lease", "(a silent router's lease has run out)"),
    ],
)
def test_the_log_says_in_plain_words_why_a_weight_is_in_effect(how: str, words: str) -> None:
    split = SplitStatus(1, 1, "v-old", "v-new", 1000, True, how)
    state = in_stage(acked_at_s=None)

    after, _ = step(state, Observation(130.0, split, (), None))

    assert after.log[-1].text == f"10 % is applied on every router {words}"


def test_a_direct_rollback_is_named_as_what_it_was() -> None:
    split = SplitStatus(1, 1, "v-old", None, 0, True, tombstoned=("r-1",))

    after, _ = step(in_stage(), Observation(130.0, split, (), None))

    assert after.log[-1].text == (
        "rolling_back: direct rollback: this rollout was ended in the route table, without a controller"
    )
