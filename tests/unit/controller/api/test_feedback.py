"""Feedback: what becomes of scores is said, score by score and log by log."""

from __future__ import annotations

import pytest

from controller.api.feedback import parse_scores, write_scores
from controller.errors import BadInput, Unreachable
from serving.messages import ANSWER_ID_LIMIT
from tests.fakes.controller import FakeEnvironment

SCORES = [("a-1", "quality", 0.5, 1.0), ("b-1", "quality", 0.7, 1.0), ("new", "quality", 0.9, 1.0)]


@pytest.fixture
def logs() -> FakeEnvironment:
    """Two services, each with one recorded request."""
    return FakeEnvironment(requests={"a-1": "a", "b-1": "b"})


def test_a_score_without_a_metric_is_quality() -> None:
    assert parse_scores([{"id": "x", "score": 1}], now_s=2.0) == [("x", "quality", 1.0, 2.0)]


def test_whatever_id_is_recorded_can_be_scored() -> None:
    """One of 201 to 256 characters was recorded, and refused here."""
    id = "a" * ANSWER_ID_LIMIT

    assert parse_scores([{"id": id, "score": 1}], now_s=2.0) == [(id, "quality", 1.0, 2.0)]
    with pytest.raises(BadInput, match="1 to 256 characters"):
        parse_scores([{"id": id + "a", "score": 1}], now_s=2.0)


def test_each_score_goes_to_the_service_that_answered_and_an_unknown_one_to_all(
    logs: FakeEnvironment,
) -> None:
    result = write_scores(logs, ["a", "b"], SCORES)

    assert sorted(logs.written) == [("a", "a-1"), ("a", "new"), ("b", "b-1"), ("b", "new")]
    assert (result.taken, result.matched, result.waiting, result.unreachable) == (3, 2, 1, ())


def test_an_unknown_id_is_told_apart_from_a_recorded_one(logs: FakeEnvironment) -> None:
    result = write_scores(logs, ["a"], [("never-heard-of", "quality", 1.0, 1.0)])

    assert (result.taken, result.matched, result.waiting) == (1, 0, 1)


def test_a_log_that_does_not_answer_fails_only_its_own_scores(logs: FakeEnvironment) -> None:
    logs.silent_logs = {"b"}

    result = write_scores(logs, ["a", "b"], SCORES)

    assert sorted(logs.written) == [("a", "a-1"), ("a", "new")]
    assert (result.taken, result.unreachable) == (2, ("b",))


def test_scores_that_no_log_takes_are_refused(logs: FakeEnvironment) -> None:
    logs.silent_logs = {"a", "b"}

    with pytest.raises(Unreachable, match="the records log of a, b does not answer"):
        write_scores(logs, ["a", "b"], SCORES)


def test_without_a_read_log_nothing_is_said_about_requests(
    logs: FakeEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEnvironment, "has_request", lambda *_: None)

    result = write_scores(logs, ["a", "b"], SCORES)

    assert (result.taken, result.matched, result.waiting) == (3, None, None)


def test_repeats_are_told_from_first_scores(logs: FakeEnvironment) -> None:
    """The first score of a request and metric counts; whoever sends another is told that it does not."""
    logs.scored = {("a-1", "quality")}
    again = ("b-1", "quality", 0.1, 2.0)

    result = write_scores(logs, ["a", "b"], [*SCORES, again])

    assert (result.taken, result.matched, result.repeated) == (4, 3, 2)


def test_the_answer_says_when_requests_are_forgotten_early(logs: FakeEnvironment) -> None:
    assert write_scores(logs, ["a", "b"], SCORES).forgotten_after_s is None

    logs.forgotten_s = {"a": 700.0, "b": 300.0}

    assert write_scores(logs, ["a", "b"], SCORES).forgotten_after_s == 300.0
