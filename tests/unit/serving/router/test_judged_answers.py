"""Of which requests a router has its judge asked, with what, and that no client waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.judging.questions import revision
from serving.messages import Arm, RequestRecord, RouteTable
from serving.router.assignment.judge_coin import RANDOMISED, JudgeCoin
from serving.router.bodies.body_facts import BodyFacts
from serving.router.exchange.answer_text_signals import AnswerText
from serving.router.types import Assignment
from tests.fakes.judge_endpoint import judge_endpoint, spoken
from tests.fakes.virtual_wire import LAST_CHUNK, Piece, Wire, chunked, head, virtual_time, wire

CHAT = "/v1/chat/completions"
ORDER = JudgeOrder("http://127.0.0.1:1", "m", None, revision("m"), 10_000, "quality", 600)
TABLE = RouteTable("chat", 1, 1, 1, "r-1", "salt", 100, Arm("v1"), Arm("v2"), judge=ORDER)
MARKED = "Zebulon Quarterstaff"
ASKED = {"messages": [{"role": "user", "content": f"Who is {MARKED}?"}]}


class NotedJudge:
    """Notes what a router hands over."""

    def __init__(self) -> None:
        self.questions: list[tuple[str, str, bytes, str]] = []
        self.others: list[tuple[str, str, str]] = []
        self.orders: list[JudgeOrder | None] = []

    def use(self, order: JudgeOrder | None, _rollout: str) -> None:
        self.orders.append(order)

    def ask(self, rollout: str, request_id: str, body: bytes, answer: str, via: bytes) -> None:
        assert via  # its own hop at least
        self.questions.append((rollout, request_id, body, answer))

    def no_verdict(self, rollout: str, request_id: str, cause: str) -> None:
        self.others.append((rollout, request_id, cause))

    def stop(self) -> None: ...


def whole(message: Mapping[str, Any]) -> list[Piece]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    body = json.dumps({"id": "a", "choices": [choice]}).encode()
    return [(0.1, head(kind="application/json", length=len(body)) + body)]


def stream(*words: str) -> list[Piece]:
    deltas: list[dict[str, Any]] = [{"content": word} for word in words]
    choices: list[Any] = [[{"index": 0, "delta": one, "finish_reason": None}] for one in deltas]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    events = [b"data: " + json.dumps({"id": "a", "choices": one}).encode() + b"\n\n" for one in choices]
    return [(0.1, head() + chunked(b"".join(events) + b"data: [DONE]\n\n") + LAST_CHUNK)]


BROKEN: list[Piece] = [(0.1, head(status=500, kind="application/json", length=2) + b"{}")]
CUT: list[Piece] = [
    (
        0.1,
        head() + chunked(b'data: {"id": "a", "choices": [{"delta": {"content": "Wor'),
    ),
    (0.1, "reset"),
]


async def _router(answers: Sequence[list[Piece]], *, arm: int, order: JudgeOrder | None = ORDER) -> Wire:
    """A router whose engines answer so, one after the other, with this order in its table."""
    left = iter(answers)
    made = await wire(
        lambda path, _body: next(left) if path else [], weight_bp=9999 if arm else 1, external=True
    )
    made.core.judge = NotedJudge()  # type: ignore[assignment]
    table = replace(made.table, change=3, judge=order)
    made.core.on_table(table, sent_s=asyncio.get_running_loop().time())
    return made


def run(
    *answers: list[Piece], arm: int = 1, path: str = CHAT, order: JudgeOrder | None = ORDER, **body: Any
) -> tuple[RequestRecord, NotedJudge]:
    """The record of one request, and what the judge was to be asked."""

    async def asks() -> tuple[RequestRecord, NotedJudge]:
        made = await _router(answers, arm=arm, order=order)
        transport = made.send(path, {**ASKED, **body, "user": "u"})
        records: list[RequestRecord] = []
        while not records:
            records += await made.records()
        transport.leave()
        await made.close()
        judge = made.core.judge
        assert isinstance(judge, NotedJudge)
        return records[0], judge

    with virtual_time() as loop:
        return loop.run_until_complete(asks())


@pytest.mark.parametrize("arm", [0, 1])
@pytest.mark.parametrize("answer", [whole({"content": "A baker."}), stream("A ", "baker.")])
def test_the_assigned_arms_whole_answer_is_judged(arm: int, answer: list[Piece]) -> None:
    is_stream = b"event-stream" in answer[0][1]
    record, judge = run(answer, arm=arm, stream=is_stream)
    ((rollout, request_id, body, text),) = judge.questions
    assert (record.judged, rollout, request_id, text) == (True, "r-1", record.request_id, "A baker.")
    assert json.loads(body)["messages"] == ASKED["messages"]
    assert judge.others == []


def test_calls_of_tools_are_a_part_of_the_answer() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"name": "Z"}'}}
    _, judge = run(whole({"content": None, "tool_calls": [call]}))
    assert [one[3] for one in judge.questions] == ['[calls find({"name": "Z"})]']


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([BROKEN, whole({"content": "A baker."})], id="stable answered"),
        pytest.param([CUT, stream("A ", "baker.")], id="cut, stable answered"),
        pytest.param([whole({"content": "w " * 50_000})], id="too large"),
        pytest.param([whole({"content": ""}), whole({"content": "A baker."})], id="empty"),
    ],
)
def test_where_the_arm_gave_no_whole_answer_there_is_none_to_judge(answers: list[list[Piece]]) -> None:
    record, judge = run(*answers, stream=CUT in answers)
    assert record.judged
    assert judge.questions == []
    assert judge.others == [("r-1", record.request_id, "no answer")]


def test_stables_error_and_a_client_that_left_are_judged_and_have_no_answer() -> None:
    record, judge = run(BROKEN, BROKEN, arm=0)
    assert (record.judged, record.error, judge.others[0][2]) == (True, True, "no answer")

    async def leaves() -> tuple[RequestRecord, NotedJudge]:
        made = await _router([[(5.0, b"")]], arm=1)
        transport = made.send(CHAT, {**ASKED, "user": "u"})
        await asyncio.sleep(1.0)
        transport.leave()
        (record,) = await made.records()
        await made.close()
        assert isinstance(made.core.judge, NotedJudge)
        return record, made.core.judge

    with virtual_time() as loop:
        record, judge = loop.run_until_complete(leaves())
    assert (record.outcome, record.judged) == ("cancelled", True)
    assert judge.others == [("r-1", record.request_id, "no answer")]


def test_without_an_order_nothing_is_judged() -> None:
    record, judge = run(whole({"content": "A baker."}), order=None)
    assert (record.judged, judge.questions, judge.others) == (False, [], [])


def test_answers_of_several_choices_or_of_numbers_are_not_judged() -> None:
    record, judge = run(whole({"content": "A baker."}), n=2)
    assert (record.judged, judge.questions, judge.others) == (False, [], [])
    vectors = json.dumps({"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}).encode()
    numbers: list[Piece] = [(0.1, head(kind="application/json", length=len(vectors)) + vectors)]
    record, judge = run(numbers, path="/v1/embeddings", input="x")
    assert (record.judged, judge.questions, judge.others) == (False, [], [])


def test_no_text_is_in_the_log_where_an_answer_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_text: AnswerText) -> str:
        raise ValueError(f"cannot read {MARKED}")

    monkeypatch.setattr(AnswerText, "judged", fail)
    with caplog.at_level(logging.DEBUG):
        record, judge = run(whole({"content": MARKED}))
    assert judge.others == [("r-1", record.request_id, "unreadable")]
    assert "an answer was not read for the judge" in caplog.text
    assert MARKED not in caplog.text + repr(record)


# ---- the coin

READABLE = json.dumps(ASKED).encode()


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [9906, 1917]},
        {"prompt": [[9906, 1917]]},
        {**ASKED, "tools": [[]] * 20_001},
        {"messages": [{"role": "user", "tool_calls": 5}]},
    ],
)
def test_a_request_that_cannot_be_read_is_not_drawn_for_the_judge(body: dict[str, Any]) -> None:
    """Known before its answer: a service of many such would have too many verdicts missing for ever."""
    coin = JudgeCoin(TABLE, ORDER)
    drawn = Assignment(0, 0.1, 5, "u", "k", "sticky", ("r-1", "v2"))
    assert coin.falls(drawn, CHAT, BodyFacts(), READABLE)
    assert not coin.falls(drawn, CHAT, BodyFacts(), json.dumps(body).encode())


def test_one_text_in_a_list_is_read() -> None:
    choice = {"index": 0, "text": "A baker.", "finish_reason": "stop"}
    answer = json.dumps({"id": "a", "choices": [choice]}).encode()
    pieces: list[Piece] = [(0.1, head(kind="application/json", length=len(answer)) + answer)]
    record, judge = run(pieces, path="/v1/completions", messages=None, prompt=["Who is it?"])
    assert (record.judged, [one[3] for one in judge.questions]) == (True, ["A baker."])


def _falls(unit: str, *, arm: int = 0, table: RouteTable = TABLE, share_bp: int = 2000, **drawn: Any) -> bool:
    coin = JudgeCoin(table, replace(ORDER, share_bp=share_bp))
    fields: dict[str, Any] = {"assigned_by": "sticky", "w": 0.1, "bucket": 5, "canary": ("r-1", "v2")} | drawn
    assignment = Assignment(
        arm, fields["w"], fields["bucket"], unit, "k", fields["assigned_by"], fields["canary"]
    )
    return coin.falls(assignment, CHAT, BodyFacts(), READABLE)


@pytest.mark.slow
@given(st.text(max_size=40), st.integers(1, 10_000), st.floats(0, 1))
def test_the_coin_knows_neither_arm_nor_weight_and_a_larger_share_keeps_its_units(
    unit: str, share_bp: int, w: float
) -> None:
    found = _falls(unit, share_bp=share_bp)
    assert found == _falls(unit, arm=1, w=w, bucket=9, share_bp=share_bp, assigned_by="pinned")
    assert not found or _falls(unit, share_bp=min(share_bp + 500, 10_000))
    assert _falls(unit, share_bp=10_000)


@pytest.mark.slow
def test_units_of_both_arms_have_the_same_share() -> None:
    """By the arm's own draw, of which the coin must be independent."""
    from serving.router.assignment.assignment import Salted, Units, salt_of

    coin, draw = JudgeCoin(TABLE, replace(ORDER, share_bp=2000)), Salted(salt_of("chat", "salt"))
    units = Units("key", "r-1")
    judged = {0: [0, 0], 1: [0, 0]}
    for number in range(20_000):
        arm = int(draw.bucket_of(f"user-{number}") < 3000)
        drawn = Assignment(arm, 0.3, 1, units.of(f"user-{number}"), "k", "sticky", ("r-1", "v2"))
        judged[arm][0] += coin.falls(drawn, CHAT, BodyFacts(), READABLE)
        judged[arm][1] += 1
    shares = [fell / all_ for fell, all_ in judged.values()]
    assert shares == pytest.approx([0.2, 0.2], abs=0.02)  # 4 standard errors of the smaller arm


def test_another_salt_or_service_is_another_coin() -> None:
    units = [f"u{number}" for number in range(400)]
    for other in (replace(TABLE, salt="other"), replace(TABLE, service="code")):
        assert [_falls(one) for one in units] != [_falls(one, table=other) for one in units]


@pytest.mark.parametrize("assigned_by", ["forced", "stateful", "capped", "no-capacity", "fenced"])
def test_what_was_not_drawn_is_not_judged(assigned_by: str) -> None:
    assert not _falls("u", share_bp=10_000, assigned_by=assigned_by)
    assert assigned_by not in RANDOMISED


# ---- with the worker itself


@pytest.fixture
def hanging() -> Iterator[str]:
    released = threading.Event()

    def says(_body: dict[str, Any]) -> tuple[int, Any]:
        released.wait(20)
        return spoken("no")

    with judge_endpoint(says) as url:
        yield url
        released.set()


def test_a_judge_that_hangs_slows_no_request_and_what_waits_is_reported_at_the_end(hanging: str) -> None:
    async def asks() -> tuple[list[RequestRecord], float, Sequence[JudgeRecord]]:
        answers = [whole({"content": "A baker."}) for _ in range(30)]
        left = iter(answers)
        made = await wire(lambda path, _body: next(left) if path else [], weight_bp=5000, external=True)
        loop = asyncio.get_running_loop()
        made.core.on_table(
            replace(made.table, change=3, judge=replace(ORDER, url=hanging)), sent_s=loop.time()
        )
        for number in range(30):
            made.send(CHAT, {**ASKED, "user": f"u{number}"}, more=b"connection: close\r\n")
        records: list[RequestRecord] = []
        while len(records) < 30:
            records += await made.records()
        ended_s = max(one.latency_ms or 0.0 for one in records)
        await made.close()
        return records, ended_s, made.core.report(now_s=loop.time(), wall_s=loop.time(), last=True).verdicts

    with virtual_time() as loop:
        records, slowest_ms, verdicts = loop.run_until_complete(asks())
    assert all(one.judged and one.error is False for one in records)
    assert slowest_ms < 300  # of virtual time: 100 are the engine's
    of_answers = [one for one in verdicts if one.label is None]
    assert {one.request_id for one in of_answers} == {one.request_id for one in records}
    assert {one.cause for one in verdicts} == {"stopped"}
