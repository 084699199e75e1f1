"""Mirrored pairs at a router's judge: two blind questions, one budget, one record."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from serving.judge_messages import JudgeRecord
from serving.judging.pairs import MirroredPair
from serving.judging.questions import revision
from serving.judging.worker import BLOCK, QUEUE_LIMIT, JudgeWorker
from tests.fakes.judge_endpoint import spoken
from tests.unit.serving.judging.test_worker import ORDER, _body, asked, by_answer, of_answers, wait, words


def a_pair(
    number: int = 1, stable: str | None = "Paris.", canary: str | None = "Lyon.", rollout: str = "r-1"
) -> MirroredPair:
    body = _body("What is the capital of France?")
    return MirroredPair(rollout, f"q-{number}", f"u-{number}", 7.5, body, stable, canary)


def without_anchors(worker: JudgeWorker) -> None:
    worker._place, worker._anchor_at = -(10**6), BLOCK


def test_both_answers_have_a_verdict_and_the_pair_one_record() -> None:
    with asked(by_answer) as (worker, records):
        assert worker.takes_pair("r-1")
        worker.ask_pair(a_pair())
        wait(lambda: len(of_answers(records)) == 1)
    (record,) = of_answers(records)
    assert (record.pair, record.bad, record.cause, record.tokens) == ((False, True), None, None, 200)
    assert (record.request_id, record.unit, record.assigned_at_s) == ("q-1", "u-1", 7.5)
    assert (record.rollout, record.revision) == ("r-1", revision("m"))


def test_a_question_of_a_pair_is_one_as_any_other() -> None:
    """Neither that there is another answer, nor whose it is, may show, in words or order."""
    seen: list[str] = []

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(words(body))
        return spoken("no")

    with asked(says) as (worker, records):
        without_anchors(worker)
        worker.ask("r-1", "live", a_pair().body, "Paris.")
        wait(lambda: len(seen) == 1)
        firsts = Counter[str]()
        for number in range(16):
            worker.ask_pair(a_pair(number))
            wait(lambda: not worker._pending)
            own = seen[1 + 2 * number :]
            assert {one.replace("Lyon", "Paris") for one in own} == {seen[0]}
            firsts[own[0]] += 1
    assert len(of_answers(records)) == 17
    assert len(firsts) == 2  # by chance always the same: 3e-5


def test_the_same_text_is_asked_of_once_for_both() -> None:
    with asked(by_answer) as (worker, records):
        without_anchors(worker)
        worker.ask_pair(a_pair(stable="Lyon.", canary="Lyon."))
        wait(lambda: len(records) == 1)
    assert (records[0].pair, records[0].tokens) == ((True, True), 100)


@pytest.mark.parametrize(
    ("pair", "cause"),
    [
        (a_pair(canary=None), "no answer"),
        (a_pair(stable=None), "no answer"),
        (a_pair(rollout="r-2"), "no judge"),
    ],
)
def test_a_pair_that_cannot_be_judged_says_why(pair: MirroredPair, cause: str) -> None:
    with asked(by_answer) as (worker, records):
        worker.ask_pair(pair)
    assert [(one.pair, one.cause, one.tokens) for one in records] == [((None, None), cause, 0)]
    assert records[0].revision == ("" if pair.rollout == "r-2" else revision("m"))


def test_one_answer_without_a_verdict_leaves_the_other_and_its_cause() -> None:
    def says(body: dict[str, Any]) -> tuple[int, Any]:
        return spoken("perhaps") if "Lyon" in words(body).partition("ANSWER")[2] else spoken("yes")

    with asked(says) as (worker, records):
        without_anchors(worker)
        worker.ask_pair(a_pair())
        wait(lambda: len(records) == 1)
    assert (records[0].pair, records[0].cause) == ((True, None), "unreadable")


def test_pairs_share_the_budget_and_are_refused_before_an_answer_exists() -> None:
    clock = [0.0]
    worker = JudgeWorker("router-1", lambda _record: None, clock=lambda: clock[0])
    worker.use(replace(ORDER, per_minute=80), "r-1")  # holds 20
    taken = [worker.takes_pair("r-1") for _ in range(20)]
    for clock[0] in range(1, 601):
        taken.append(worker.takes_pair("r-1"))
    worker.stop()
    assert sum(taken[:20]) == 9  # two each and their part of the anchors
    assert 372 <= sum(taken[20:]) <= 384  # 800 questions in ten minutes, 20 in 19 of them for answers
    assert not worker.takes_pair("r-1")
    assert JudgeWorker("r", lambda _record: None).takes_pair("r-1") is False


def test_a_tiny_budget_has_pairs_now_and_then() -> None:
    clock = [0.0]
    worker = JudgeWorker("router-1", lambda _record: None, clock=lambda: clock[0])
    worker.use(replace(ORDER, per_minute=4), "r-1")
    taken = 0
    for clock[0] in range(600):
        taken += worker.takes_pair("r-1")
    worker.stop()
    assert 17 <= taken <= 21  # 40 questions in ten minutes


def test_anchors_are_among_pairs_as_among_answers() -> None:
    with asked(lambda _body: spoken("no")) as (worker, records):
        for number in range(2 * BLOCK):
            wait(lambda: len(worker._pending) < QUEUE_LIMIT // 2)
            worker.ask_pair(a_pair(number))
        wait(lambda: not worker._pending)
    anchors = [one for one in records if one.label is not None]
    assert len(of_answers(records)) == 40
    assert 3 <= len(anchors) <= 5  # one of twenty questions
    assert all(one.pair is None for one in anchors)


def test_what_waits_is_bounded_and_ends_as_missing() -> None:
    released = threading.Event()

    def hangs(_body: dict[str, Any]) -> tuple[int, Any]:
        released.wait(20)
        return spoken("no")

    with asked(hangs) as (worker, records):
        without_anchors(worker)
        for number in range(QUEUE_LIMIT):
            worker.ask_pair(a_pair(number))
        assert len(worker._pending) == QUEUE_LIMIT
        assert [one.cause for one in records] == ["judge too slow"] * (QUEUE_LIMIT // 2)
        assert worker.takes_pair("r-1") is False  # nor is another begun
        worker.stop()
        released.set()
    assert Counter(one.cause for one in records) == {
        "judge too slow": QUEUE_LIMIT // 2,
        "stopped": QUEUE_LIMIT // 2,
    }
    assert (worker._bytes, {one.pair for one in records}) == (0, {(None, None)})


def test_no_record_holds_a_text_and_an_older_router_s_has_no_pair() -> None:
    pair = a_pair(stable="Zebulon", canary="Quarterstaff")
    assert "Zebulon" not in repr(pair)
    record = JudgeRecord(0, "r", "a1", 1.0, "q", None, None, None, 9, "router", (True, None), "u", 2.0)
    older: JudgeRecord = object.__new__(JudgeRecord)
    older.__setstate__([0, "r", "a1", 1.0, "q", None, True, None, 9, "router"])
    assert (older.bad, older.pair, older.unit, older.assigned_at_s) == (True, None, "", 0.0)
    assert pickle.loads(pickle.dumps(record)) == record
