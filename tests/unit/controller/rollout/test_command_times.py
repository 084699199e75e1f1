"""A command counts from when it was given: a controller that was away reads it late."""

from __future__ import annotations

import pytest

from controller.rollout.machine import step
from controller.rollout.observation import CommandKind, ManualCommand, Observation
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
