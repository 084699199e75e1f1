"""`POST /v1/feedback` at the router's port: taken into its own log, whole or not at all."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.access import digest_of
from serving.messages import ANSWER_ID_LIMIT, ScoreRecord
from serving.router.front.admission import Sent
from serving.router.front.feedback import answer_feedback
from serving.router.front.paths import Found, find_target
from serving.router.front.request_parser import ParsedRequest
from serving.router.records.records_file import KeptFiles, RecordsFile
from serving.router.standalone.table_file import source_of
from serving.router.types import Refusal
from serving.table.records_log import RecordLog
from tests.fakes.feed_maker import a_record
from tests.fakes.virtual_wire import Wire, head, virtual_time, wire

CHAT, FEEDBACK = "/v1/chat/completions", "/v1/feedback"


def _answer(id: str = "chatcmpl-1") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    body = json.dumps({"id": id, "choices": [choice]}).encode()
    return head(kind="application/json", length=len(body)) + body


async def _sent(made: Wire, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of what a client gets."""
    transport = made.send(path, body)
    await asyncio.sleep(1.0)
    answer_head, _, data = transport.read.partition(b"\r\n\r\n")
    transport.leave()
    return int(answer_head.split()[1]), json.loads(data)


def _said(
    *feedback: Any, id: str = "chatcmpl-1"
) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[str, str, float]], Wire]:
    """What is answered to each feedback, after one request; and the scores in the records log."""

    async def run() -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[str, str, float]], Wire]:
        made = await wire(lambda _path, _body: [(0.0, _answer(id))], weight_bp=0)
        await _sent(made, CHAT, {"messages": []})
        made.core.on_table(None, sent_s=asyncio.get_running_loop().time())
        answers = [await _sent(made, FEEDBACK, one) for one in feedback]
        log = RecordLog()
        log.append_batch(made.core.report(now_s=1e3, wall_s=1e3), now_s=0.0, wall_s=1e3)
        page = log.read(0, 1000, now_s=0.0, wall_s=1e3)
        scores = [(e.id, e.metric, e.value) for e in page.events if isinstance(e, ScoreRecord)]
        await made.close()
        return answers, scores, made

    with virtual_time() as loop:
        return loop.run_until_complete(run())


@pytest.mark.parametrize(
    ("said", "metric", "value"),
    [
        ({"thumb": "up"}, "thumbs", 1.0),
        ({"thumb": "down"}, "thumbs", 0.0),
        ({"accepted": True}, "accepted", 1.0),
        ({"accepted": False}, "accepted", 0.0),
        ({"edited": 0.25}, "accepted", 0.75),
        ({"edited": True}, "accepted", 0.0),
        ({"regenerated": True}, "accepted", 0.0),
        ({"metric": "thumbs", "score": 0.5}, "thumbs", 0.5),
    ],
)
def test_what_a_user_says_is_a_score_in_the_records_log(
    said: dict[str, Any], metric: str, value: float
) -> None:
    [(status, body)], [(id, *score)], made = _said({"id": "chatcmpl-1", **said})

    assert (status, body) == (202, {"taken": 1, "repeated": 0})
    assert (id.startswith("req-"), *score) == (True, metric, value)
    assert made.engines["stable"].requests == 1  # feedback reaches no engine


def test_whatever_id_is_recorded_can_be_voted_on() -> None:
    """One of 201 to 256 characters was recorded, and refused here."""
    id = "a" * ANSWER_ID_LIMIT

    [(status, _)], [(scored, *_)], _ = _said({"id": id, "thumb": "up"}, id=id)

    assert (status, scored.startswith("req-")) == (202, True)  # it is known by its request


def test_a_second_vote_on_an_answer_is_told_and_does_not_count() -> None:
    up, down = {"id": "chatcmpl-1", "thumb": "up"}, {"id": "chatcmpl-1", "thumb": "down"}

    answers, scores, _ = _said(up, [down, {"id": "chatcmpl-1", "accepted": True}])

    assert [body for _, body in answers] == [{"taken": 1, "repeated": 0}, {"taken": 1, "repeated": 1}]
    assert [score[1:] for score in scores] == [("thumbs", 1.0), ("accepted", 1.0)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "0 items in one request; send 1 to 100"),
        ([{"id": "a", "thumb": "up"}] * 101, "101 items"),
        ("up", "feedback 0 is no JSON object"),
        ({"thumb": "up"}, "id is not 1 to 256 printable characters"),
        ({"id": "a" * 257, "thumb": "up"}, "id is not 1 to 256 printable characters"),
        ({"id": "x\ud800", "thumb": "up"}, "id is not 1 to 256 printable characters"),
        ({"id": "x\ny", "thumb": "up"}, "id is not 1 to 256 printable characters"),
        ({"id": "a"}, "it says none, or more than one, of thumb, accepted"),
        ({"id": "a", "thumb": "sideways"}, "it says none"),
        ({"id": "a", "thumb": "up", "accepted": True}, "more than one"),
        ({"id": "a", "edited": 1.5}, "it says none"),
        ({"id": "a", "metric": "quality", "score": 1}, "'quality' is not for users"),
        ({"id": "a", "metric": "thumbs", "score": 2}, "not a number from 0 to 1"),
        ({"id": "a", "metric": "thumbs", "score": True}, "not a number from 0 to 1"),
        ([{"id": "a", "thumb": "up"}, 7], "feedback 1 is no JSON object"),
    ],
)
def test_what_is_no_feedback_is_refused_whole_in_one_line(body: Any, said: str) -> None:
    [(status, answer)], scores, _ = _said(body)

    assert (status, scores) == (400, [])
    assert said in answer["error"]["message"]


def test_a_router_without_a_place_for_feedback_says_so() -> None:
    async def run() -> tuple[int, dict[str, Any]]:
        made = await wire(lambda _path, _body: [(0.0, _answer())], weight_bp=0)
        made.core.outbox.votes.are_kept = False
        answer = await _sent(made, FEEDBACK, {"id": "a", "thumb": "up"})
        await made.close()
        return answer

    with virtual_time() as loop:
        status, body = loop.run_until_complete(run())

    assert (status, body["error"]["code"]) == (501, "no_feedback")


def test_unknown_votes_are_taken_whole_or_not_at_all() -> None:
    hundred = [{"id": f"invented-{n}", "thumb": "up"} for n in range(100)]
    more = [{"id": f"other-{n}", "thumb": "up"} for n in range(100)]

    answers, scores, _ = _said(hundred, [*more[:99], {"id": "chatcmpl-1", "thumb": "up"}])

    assert [status for status, _ in answers] == [202, 429]
    assert len(scores) == 100
    assert all(id.startswith("invented") for id, *_ in scores)


TWO = """
services:
  - service: a
    stable: {{url: "http://127.0.0.1:8001"}}
    keys: [{{name: one, sha256: "{one}"}}]
    keys_required: true
  - service: b
    stable: {{url: "http://127.0.0.1:8002"}}
    keys: [{{name: two, sha256: "{two}"}}]
    keys_required: true
"""


def test_a_key_of_one_service_votes_on_no_answer_of_another(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(TWO.format(one=digest_of("sk-one"), two=digest_of("sk-two")))
    feedback = KeptFiles(feedback=RecordsFile(tmp_path / "feedback.jsonl"))
    cores = source_of(path, feedback).cores
    cores["b"].outbox.votes.answered(replace(a_record(1), request_id="req-b", answer_id="c-b"))
    headers = ((b"authorization", b"Bearer sk-one"),)
    body = json.dumps([{"id": id, "thumb": "down"} for id in ("c-b", "unknown")]).encode()
    parsed = ParsedRequest("POST", FEEDBACK.encode(), headers, body, True, True)
    sent = Sent("POST", FEEDBACK.encode(), headers, "10.0.0.1")
    found = find_target("POST", FEEDBACK.encode(), tuple(cores))
    assert isinstance(found, Found)

    answer = answer_feedback(cores, parsed, found, sent)

    assert not isinstance(answer, Refusal)
    assert [one.id for one in cores["a"].outbox.votes.take(9)] == ["c-b", "unknown"]
    assert cores["b"].outbox.votes.take(9) == ()
