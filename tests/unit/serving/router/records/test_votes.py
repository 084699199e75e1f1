"""Votes of users on answers of a router: one an answer and metric, and never without a bound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serving.messages import ScoreRecord
from serving.router.records import votes as module
from serving.router.records.votes import (
    ALL_UNKNOWN_AT_ONCE,
    ALL_UNKNOWN_PER_S,
    CLIENTS_LIMIT,
    UNKNOWN_AT_ONCE,
    UNKNOWN_PER_S,
    WAITING_LIMIT,
    Votes,
    VotesWaiting,
)
from tests.fakes.feed_maker import a_record


def _add(
    votes: Votes,
    id: str,
    metric: str = "thumbs",
    value: float = 1.0,
    now_s: float = 1e6,
    client: str = "key a",
) -> bool:
    votes.check([(id, metric, value)], client=client, now_s=now_s)
    return votes.add((id, metric, value), client=client, now_s=now_s, wall_s=5.0)


def test_the_first_vote_on_an_answer_counts_by_either_of_its_ids() -> None:
    votes = Votes()
    votes.answered(replace(a_record(1), request_id="req-1", answer_id="c-1"))

    assert _add(votes, "c-1", value=0.0)
    assert not _add(votes, "req-1", value=1.0)
    assert _add(votes, "req-1", "accepted", value=0.5)

    assert [(one.id, one.metric, one.value, one.at_s) for one in votes.take(9)] == [
        ("req-1", "thumbs", 0.0, 5.0),
        ("req-1", "accepted", 0.5, 5.0),
    ]
    assert votes.take(9) == ()


def test_an_answers_id_stays_with_the_first_request_that_had_it() -> None:
    votes = Votes()
    for request_id in ("req-1", "req-2"):
        votes.answered(replace(a_record(1), request_id=request_id, answer_id="same"))

    _add(votes, "same")

    assert votes.take(9)[0].id == "req-1"


@pytest.mark.slow
def test_of_invented_ids_few_a_second_are_taken_and_known_ones_are_not_held_up() -> None:
    votes, taken = Votes(), 0
    votes.answered(replace(a_record(1), request_id="req-1", answer_id=None))
    for n in range(10_000):
        try:
            taken += _add(votes, f"invented-{n}", now_s=1e6 + n / 1000)
        except VotesWaiting:
            continue

    assert taken == pytest.approx(UNKNOWN_AT_ONCE + 10 * UNKNOWN_PER_S, abs=2)
    assert _add(votes, "req-1")
    assert _add(votes, "of another router", client="key b", now_s=1e6 + 10)


@pytest.mark.slow
def test_what_many_clients_invent_is_bounded_and_so_is_what_is_known_of_them() -> None:
    votes, taken = Votes(), 0
    for n in range(10_000):
        try:
            taken += _add(votes, f"invented-{n}", client=f"address {n}", now_s=1e6 + n / 1000)
        except VotesWaiting:
            continue

    assert taken == pytest.approx(ALL_UNKNOWN_AT_ONCE + 10 * ALL_UNKNOWN_PER_S, abs=2)
    assert len(votes._unknown_of) == CLIENTS_LIMIT


def test_votes_of_one_request_are_checked_before_one_is_taken() -> None:
    votes = Votes()
    hundred = [(f"invented-{n}", "thumbs", 1.0) for n in range(100)]
    votes.check(hundred, client="key a", now_s=1e6)
    votes.add(("another", "thumbs", 1.0), client="key a", now_s=1e6, wall_s=5.0)
    with pytest.raises(VotesWaiting, match="does not know"):
        votes.check(hundred, client="key a", now_s=1e6)

    votes.check([*hundred[:99], *hundred[:99]], client="key a", now_s=1e6)  # twice the same is one
    assert len(votes.take(1000)) == 1


def test_what_waits_and_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN_LIMIT", 100)
    monkeypatch.setattr(module, "VOTED_LIMIT", 50)
    votes = Votes()
    for n in range(500):
        votes.answered(replace(a_record(n), request_id=f"req-{n}", answer_id=f"c-{n}"))
        _add(votes, f"req-{n}")
    assert (len(votes._known), len(votes._voted)) == (200, 50)

    votes = Votes()
    votes.waiting.extend([ScoreRecord(0, "req-0", "thumbs", 1.0, 0.0)] * WAITING_LIMIT)
    with pytest.raises(VotesWaiting, match="waits for the records log"):
        _add(votes, "req-1")
    assert len(votes.waiting) == WAITING_LIMIT
