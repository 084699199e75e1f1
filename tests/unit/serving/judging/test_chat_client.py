"""The client of checks: what an endpoint may send, and what it can never do to us."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.judging import chat_client
from serving.judging.chat_answer import NO_WORD, Answer, ToolCall, _finish, streamed_answer, whole_answer
from serving.judging.chat_client import ChatClient, Malformed, NoAnswer, Rejected, Said
from tests.fakes.chat_endpoint import Model, Reply, chat_endpoint, good

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
KEYS = (
    *("choices", "message", "content", "tool_calls", "function", "name", "arguments", "delta"),
    *("finish_reason", "usage", "total_tokens", "index", "text", "reasoning"),
)
jsons = st.recursive(
    st.none() | st.integers(0, 2) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def asked(
    model: Model, *, is_streamed: bool = False, timeout_s: float = 20.0, max_tokens: int | None = None
) -> Said:
    body = HELLO if max_tokens is None else {**HELLO, "max_tokens": max_tokens}

    async def ask(url: str) -> Said:
        async with ChatClient(url, "m", timeout_s=timeout_s) as client:
            return await client.ask(body, is_streamed=is_streamed)

    with chat_endpoint(model) as served:
        return asyncio.run(ask(served.url))


@pytest.mark.slow
def test_an_answer_is_read_whole_and_as_a_stream() -> None:
    expected = Answer("It is as you would expect.", "stop", (), False, 10)
    assert asked(good) == expected
    streamed = asked(good, is_streamed=True)
    assert isinstance(streamed, Answer)
    assert (streamed.text, streamed.finish) == (expected.text, "stop")
    called = asked(lambda _body: Reply(None, "tool_calls", (("f", "{}"),)))
    assert isinstance(called, Answer)
    assert called.calls == (ToolCall("f", "{}"),)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(status=400), Rejected(400)),
        (Reply(status=500), Rejected(500)),
        (Reply(status=302), Rejected(302)),
        (Reply(status=401), NoAnswer("status 401")),
        (Reply(status=409), NoAnswer("status 409")),
        (Reply(raw="<html>"), Malformed("an answer that is not of the form of chat completions")),
        (Reply(raw="[" * 100_000), Malformed("an answer that is not of the form of chat completions")),
        (Reply(raw='{"choices": []}'), Malformed("an answer that is not of the form of chat completions")),
    ],
    ids=str,
)
def test_everything_else_is_a_refusal_or_nothing(reply: Reply, said: Said) -> None:
    assert asked(lambda _body: reply) == said


def test_an_answer_has_a_limit_in_bytes_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "ANSWER_LIMIT", 1000)
    assert asked(lambda _body: Reply("x" * 2000)) == Malformed("an answer of more than 1000 bytes")

    def slow(_body: dict[str, Any]) -> Reply:
        time.sleep(0.3)
        return Reply("late")

    assert asked(slow, timeout_s=0.05) == NoAnswer("no whole answer within 0.05 s")


def test_an_answer_may_be_as_long_as_the_tokens_that_it_was_asked_for() -> None:
    long = Reply("x" * 300_000)
    assert isinstance(asked(lambda _body: long, max_tokens=100), Answer)
    assert asked(lambda _body: long, max_tokens=16) == Malformed("an answer of more than 278528 bytes")


def test_a_stream_that_does_not_end_is_none() -> None:
    event = {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]}
    cut = f"data: {json.dumps(event)}\n\n".encode()
    assert streamed_answer(cut) is None
    assert streamed_answer(cut + b"data: [DONE]\n\n") == Answer("Hel", None, (), False, 0)
    assert streamed_answer(b"data: {\n\n") is None


def test_no_key_and_no_text_is_in_a_repr() -> None:
    client = ChatClient("http://h", "m", {"authorization": "Bearer sk-secret"})
    answer = Answer("a private text", "stop", (ToolCall("f", "private arguments"),))
    assert "secret" not in repr(client)
    assert "private" not in repr(answer)


@settings(max_examples=25)
@given(jsons)
def test_no_answer_breaks_the_reading(value: Any) -> None:
    found = whole_answer(value)
    assert found is None or isinstance(found.text, str)
    streamed = streamed_answer(f"data: {json.dumps(value)}\n\ndata: [DONE]\n\n".encode())
    assert streamed is None or isinstance(streamed.text, str)


@settings(max_examples=25)
@given(st.lists(jsons, max_size=3))
def test_no_choice_breaks_the_reading(choices: list[Any]) -> None:
    whole_answer({"choices": choices, "usage": choices})
    streamed_answer(f"data: {json.dumps({'choices': choices})}\n\n".encode())


@pytest.mark.parametrize("reason", ["x" * 65, "a user's\nsecret", "\ud800", "a secret of two words"])
def test_a_finish_reason_that_is_no_word_is_not_repeated(reason: str) -> None:
    """It is the endpoint's own text, and stands in the whys of a smoke test."""
    assert _finish({"finish_reason": reason}) == NO_WORD
    assert _finish({"finish_reason": "tool_calls"}) == "tool_calls"


@pytest.mark.parametrize(("said", "known"), [(10**9, 10**9), (10**9 + 1, 0), (10**310, 0), (-1, 0)])
def test_no_count_of_tokens_is_larger_than_an_answer_can_have(said: int, known: int) -> None:
    value = {"choices": [{"message": {"content": "YES"}}], "usage": {"total_tokens": said}}

    read = whole_answer(value)

    assert read is not None
    assert read.tokens == known
