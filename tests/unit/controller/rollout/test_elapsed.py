"""Time that counts: limits move with a set clock and an absent controller, what users saw does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from controller.rollout.elapsed import carry_over
from controller.rollout.observation import Observation
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import Departure, DepartureStep, Hold, HoldKind, Notice, Phase, RolloutState
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

NOW_S = 1_800_000_000.0


def rolling_back() -> RolloutState:
    departure = Departure(CANARY, STABLE, DepartureStep.DRAIN, NOW_S - 20.0, NOW_S - 10.0)
    state = replace(
        a_rollout(now_s=NOW_S - 60.0), phase=Phase.ROLLING_BACK, departure=departure, deadline_at_s=NOW_S + 20
    )
    hold = Hold(HoldKind.PAUSE, "ann", "", NOW_S - 30.0)
    return replace(state, holds=(hold,), outbox=(Notice("r/x", "page", "", NOW_S - 5.0),))


@pytest.mark.parametrize(("jump_s", "away_s"), [(3600.0, 0.0), (-3600.0, 0.0), (0.0, 300.0), (-60.0, 90.0)])
def test_what_remains_of_each_limit_stays_the_same(jump_s: float, away_s: float) -> None:
    before, by_s = rolling_back(), jump_s + away_s

    after = carry_over(before, Observation(NOW_S + by_s, jump_s=jump_s, away_s=away_s), NOW_S + by_s)

    assert after.departure is not None
    assert before.departure is not None
    assert after.deadline_at_s == NOW_S + 20 + by_s
    assert after.departure.step_at_s == NOW_S - 10.0 + by_s
    assert after.departure.started_at_s == NOW_S - 20.0 + jump_s
    assert (after.holds[0].since_s, after.outbox[0].since_s) == (NOW_S - 30.0 + by_s, NOW_S - 5.0 + by_s)
    assert after.started_at_s == before.started_at_s


def test_only_a_long_standstill_is_in_the_log() -> None:
    before = rolling_back()
    texts = [
        [line.text for line in carry_over(before, Observation(NOW_S, away_s=away_s), NOW_S).log]
        for away_s in (2.0, 290.0)
    ]

    assert not any("stood still" in text for text in texts[0])
    assert texts[1][-1] == "the controller stood still for 4 min 50 s, which does not count"


def test_a_state_without_its_last_tick_still_loads() -> None:
    document = json.loads(state_to_json(rolling_back()))
    del document["rollout"]["ticked_at_s"]

    assert state_from_json(json.dumps(document)).ticked_at_s == 0.0
