"""Whether stable answers its users, by the routers' records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.evidence.outages import Outage, StableAnswers
from serving.messages import CANARY, STABLE, RequestRecord
from tests.unit.controller.evidence.test_traffic_meter import REQUEST

FAILED = replace(REQUEST, error=True, status=503, outcome="failed", served_arm=None, cause="reset")


def counted(*records: RequestRecord) -> StableAnswers:
    """Each a second after the one before, from 101 on."""
    answers = StableAnswers()
    for number, record in enumerate(records, 1):
        answers.add(replace(record, done_at_s=100.0 + number))
    return answers


def test_requests_in_a_row_that_all_failed_are_an_outage_since_the_first() -> None:
    answers = counted(REQUEST, *[FAILED] * 7)

    assert answers.outage(110.0) == Outage(since_s=102.0, requests=7, cause="reset")
    assert answers.answered_s == 101.0


def test_a_few_failures_and_those_of_a_minute_ago_are_none() -> None:
    assert counted(*[FAILED] * 4).outage(110.0) is None
    assert counted(*[FAILED] * 5).outage(105.0 + 61.0) is None


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"arm": CANARY, "error": True, "outcome": "fallback"},  # stable answered the canary's request
        {"error": True, "retries": 1},  # at the second attempt
        {"rejected": True, "status": 400},
    ],
)
def test_one_answer_of_stable_ends_it(change: dict[str, Any]) -> None:
    assert counted(*[FAILED] * 9, replace(REQUEST, **change)).outage(111.0) is None


@pytest.mark.parametrize(
    "change",
    [
        {"arm": CANARY, "served_arm": CANARY},  # the canary's own answer says nothing of stable
        {"error": None, "status": None, "outcome": "cancelled"},  # its client left
        {"arm": CANARY, "error": True, "status": 503, "served_arm": STABLE},  # stable failed there, too
    ],
)
def test_what_says_nothing_of_an_answer_ends_nothing(change: dict[str, Any]) -> None:
    found = counted(*[FAILED] * 9, replace(REQUEST, **change)).outage(111.0)

    assert found == Outage(since_s=101.0, requests=9, cause="reset")
