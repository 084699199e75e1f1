"""Verdicts in any order, with restarts in between: each sampled answer is counted once, and always alike."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.evidence.judged import JudgedAnswers
from controller.rollout.judge_plan import JudgeState
from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord
from tests.fakes.feed_maker import ROLLOUT, START_S, a_record
from tests.fakes.judged import a_verdict, admitted, an_anchor

DEADLINE_S = 60.0
Fate = tuple[int, bool | None, float | None]  # arm; verdict, None: missing; seconds to it, None: it is lost


def answers() -> JudgedAnswers:
    made = JudgedAnswers(ROLLOUT, "quality", deadline_s=DEADLINE_S, max_missing=0.1)
    made.follow(JudgeState(1, admitted()))
    return made


def events_of(fates: list[Fate]) -> list[RequestRecord | JudgeRecord]:
    events: list[RequestRecord | JudgeRecord] = []
    for n, (arm, bad, after_s) in enumerate(fates):
        record = replace(a_record(n, arm=arm), judged=True)
        events.append(record)
        if after_s is not None:
            cause = None if bad is not None else "timeout"
            events.append(a_verdict(f"q{n}", bad, at_s=record.at_s + after_s, cause=cause))
        events.append(an_anchor(n % 3 > 0, n % 5 > 0))
    return events


def feed(made: JudgedAnswers, event: RequestRecord | JudgeRecord) -> None:
    if isinstance(event, JudgeRecord):
        made.take(event)
    else:
        made.sample(event)


def restarted(made: JudgedAnswers) -> JudgedAnswers:
    again = answers()
    again.restore(json.loads(json.dumps(made.to_mapping())))
    return again


_delays = st.none() | st.floats(0.1, 2 * DEADLINE_S)
_fates = st.lists(st.tuples(st.integers(0, 1), st.none() | st.booleans(), _delays), max_size=40)


@pytest.mark.slow
@given(fates=_fates, seed=st.integers(0, 10**6))
def test_each_sampled_answer_is_counted_once_whatever_the_order_and_the_restarts(
    fates: list[Fate], seed: int
) -> None:
    rng = random.Random(seed)
    plain, other = answers(), answers()
    events = events_of(fates)
    anchors = [event for event in events if isinstance(event, JudgeRecord) and event.label is not None]
    rest = [event for event in events if event not in anchors]
    for event in events:
        feed(plain, event)
    for event in (*rng.sample(rest, len(rest)), *anchors):  # anchors keep their order: drift has one
        feed(other, event)
        if rng.random() < 0.3:
            other = restarted(other)
    for made in (plain, other):
        made.expire(START_S + 1e6, START_S + 1e6)

    status = plain.status()
    assert status == other.status()
    assert status is not None
    for arm in (0, 1):
        mine = [(bad, after_s) for one, bad, after_s in fates if one == arm]
        in_time = sum(
            bad is not None and after_s is not None and after_s <= DEADLINE_S for bad, after_s in mine
        )
        assert (status.verdicts[arm], status.missing[arm]) == (in_time, len(mine) - in_time)
