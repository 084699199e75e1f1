"""Signals in the record of a request: of which answers, alike on both arms, and never the text."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from serving.answer_signals import Signals
from serving.judging.signals import REQUEST_LIMIT
from serving.messages import RequestRecord
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.exchange import answer_text_signals
from serving.router.exchange.answer_text_signals import (
    READ_PER_S,
    TEXTS_BYTES,
    TEXTS_LIMIT,
    AnswerText,
    UnreadTexts,
)
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from tests.fakes.feed_maker import a_record
from tests.fakes.virtual_wire import LAST_CHUNK, Habit, Seen, ask, chunked, head, traffic, virtual_time

CHAT = "/v1/chat/completions"
MARKED = "The account of Zebulon Quarterstaff was closed yesterday.<|im_end|>"


def _whole(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = json.dumps({"id": "a", "choices": [choice]}).encode()
    return head(kind="application/json", length=len(body)) + body


def _stream(text: str) -> bytes:
    deltas = [{"content": word + " "} for word in text.split(" ")]
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": one, "finish_reason": None}] for one in deltas
    ]
    choices.append([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    events = [b"data: " + json.dumps({"id": "a", "choices": one}).encode() + b"\n\n" for one in choices]
    return head() + chunked(b"".join(events) + b"data: [DONE]\n\n") + LAST_CHUNK


def _answered(answer: bytes, *, arm: int = 1, **body: Any) -> Seen:
    with virtual_time() as loop:
        turns = [{"role": "user", "content": "What became of the account of my colleague, please?"}]
        asked = ask(
            lambda _path, _body: [(0.1, answer)],
            Habit(),
            arm=arm,
            path=CHAT,
            body={"messages": turns, **body},
            external=True,
        )
        return loop.run_until_complete(asked)


def _signals(seen: Seen) -> Signals:
    (record,) = seen.records
    assert record.signals is not None
    return record.signals


@pytest.mark.parametrize("arm", [0, 1])
def test_both_arms_have_the_same_signals_whole_or_streamed(arm: int) -> None:
    whole = _signals(_answered(_whole(MARKED), arm=arm))
    streamed = _signals(_answered(_stream(MARKED), arm=arm, stream=True))
    assert (whole.leaked, whole.refused, whole.other_language, whole.invalid) == (True, False, False, False)
    assert (streamed.leaked, streamed.characters) == (True, whole.characters + 1)


def test_a_refusal_and_a_broken_form_are_in_the_record() -> None:
    form = {"type": "json_object"}
    assert _signals(_answered(_whole("I'm sorry, but I can't help with that."))).refused
    assert _signals(_answered(_whole('{"a": 1'), response_format=form)).invalid is True
    assert _signals(_answered(_whole('{"a": 1}'), response_format=form)).invalid is False


def test_what_another_arm_answered_has_no_signals() -> None:
    broken = head(status=500, kind="application/json", length=2) + b"{}"
    with virtual_time() as loop:
        answers = iter([broken, _whole(MARKED)])
        asked = ask(
            lambda path, _body: [(0.1, next(answers) if path else b"")],
            Habit(),
            arm=1,
            path=CHAT,
            body={"messages": []},
            external=True,
        )
        (record,) = loop.run_until_complete(asked).records
    assert (record.error, record.signals) == (True, None)


def test_no_text_is_in_the_record_or_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        (record,) = _answered(_whole(MARKED)).records
    for text in (repr(record), caplog.text):
        assert "Zebulon" not in text
        assert "colleague" not in text


def test_a_text_that_cannot_be_read_is_logged_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: Any, **_values: Any) -> Signals:
        raise ValueError(f"cannot read {MARKED}")

    monkeypatch.setattr(answer_text_signals, "signals_in_steps", fail)
    (record,) = _answered(_whole(MARKED)).records
    assert record.signals is None
    assert "the signals of an answer were not read" in caplog.text
    assert "Zebulon" not in caplog.text


class _Text:
    size = 100
    client = "a"

    def in_steps(self) -> Generator[None, None, Signals]:
        yield
        return Signals(1, None, None, leaked=False, refused=False, other_language=False, invalid=False)


def test_what_waits_is_bounded_and_each_record_comes_once() -> None:
    unread, made, works = UnreadTexts(), list[RequestRecord](), list[Any]()
    unread.later = lambda work, _client: works.append(work)
    records = [a_record(n) for n in range(TEXTS_LIMIT + 2)]
    for record in records:
        unread.add(_Text(), record, lambda record=record: made.append(record))  # type: ignore[arg-type,misc]
    assert made == records[TEXTS_LIMIT:]
    assert all(record.signals is None for record in made)
    for work in works[: TEXTS_LIMIT // 2]:
        work()
    unread.read_all()
    for work in works:
        work()
    assert sorted(one.request_id for one in made) == sorted(one.request_id for one in records)
    assert records[0].signals is not None


def test_what_waits_is_bounded_by_its_bytes_too() -> None:
    """A thousand of the largest requests were 256 MiB, with their answers more."""
    unread, made, works = UnreadTexts(), list[RequestRecord](), list[Any]()
    unread.later = lambda work, _client: works.append(work)
    excerpt = AnswerExcerpt(CHAT)
    excerpt.add(b'{"choices": [{"message": {"content": "' + b"x" * 20_000 + b'"}}]}')
    excerpt.add(b'{"choices": [')
    text = AnswerText(b"b" * REQUEST_LIMIT, excerpt, "stop")
    room = TEXTS_BYTES // text.size
    for n in range(room + 2):
        record = a_record(n)
        unread.add(text, record, partial(made.append, record))

    assert 20_000 < text.size - REQUEST_LIMIT < 30_000
    assert (room < TEXTS_LIMIT, len(made)) == (True, 2)
    while len(made) < 3:
        works.pop(0)()  # each step has its turn
    late = a_record(room + 2)
    unread.add(text, late, partial(made.append, late))
    assert len(made) == 3  # the room of the one that was read
    unread.read_all()
    assert (len(made), unread.bytes) == (room + 3, 0)


def test_each_step_of_a_reading_has_a_turn_of_its_own() -> None:
    """All in one turn added up: 78 ms for a request of 258 kB and a list of 8,500 parts."""
    unread, made, works = UnreadTexts(), list[RequestRecord](), list[Any]()
    unread.later = lambda work, _client: works.append(work)
    record = a_record(1)
    unread.add(_Text(), record, lambda: made.append(record))  # type: ignore[arg-type]
    works.pop(0)()
    assert (made, record.signals) == ([], None)
    works.pop(0)()
    assert made == [record]
    assert record.signals is not None
    assert works == []


def test_of_answers_that_no_rollout_compares_few_a_second_are_read_and_of_others_all() -> None:
    unread, at_s = UnreadTexts(), 1e6
    assert [unread.wants(is_compared=False, now_s=at_s) for _ in range(READ_PER_S + 1)][-1] is False
    read = sum(unread.wants(is_compared=False, now_s=at_s + n / 1000) for n in range(10_000))
    assert read == pytest.approx(10 * READ_PER_S, abs=1)
    assert all(unread.wants(is_compared=True, now_s=at_s) for _ in range(100))


@pytest.mark.parametrize(("weight_bp", "is_compared"), [(0, False), (5000, True)])
def test_a_busy_router_reads_every_answer_of_a_rollout_and_some_of_others(
    weight_bp: int, is_compared: bool
) -> None:
    asked = [(0.0, CHAT, {"user": f"u{n}", "messages": []}) for n in range(2 * READ_PER_S)]
    answer = _whole("All is well.")
    with virtual_time() as loop:
        made = traffic(asked, lambda _path, _body: [(0.0, answer)], weight_bp=weight_bp)
        records, _ = loop.run_until_complete(made)

    with_signals = sum(one.signals is not None for one in records)
    assert (len(records), with_signals) == (len(asked), len(asked) if is_compared else READ_PER_S)


class _Background:
    """Notes what the outbox holds when the router has stopped."""

    def __init__(self, core: RouterCore) -> None:
        self.core, self.recorded = core, list[str]()

    async def start(self, core: RouterCore) -> None: ...

    async def stop(self) -> None:
        self.recorded = [one.request_id for one in self.core.outbox.next_batch(now_s=1e12).records]


async def test_a_router_that_stops_has_read_every_text() -> None:
    """The last records of a run were lost: their texts waited for a turn that did not come."""
    core = RouterCore("chat", router="r", lease_s=math.inf)
    background = _Background(core)
    front = WireFront(core, background)
    await front.start()
    core.unread.later = lambda _work, _client: None
    core.on_record(a_record(1), assigned_s=0.0, canary=None, text=_Text())  # type: ignore[arg-type]
    await front.stop(drain_s=0.0)
    assert background.recorded == ["q1"]
