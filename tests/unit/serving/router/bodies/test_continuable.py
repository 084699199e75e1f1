"""Which requests can be continued from token ids: a list of what can be."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.router.bodies.body_facts import read_facts
from serving.router.bodies.continuable import BODY_LIMIT, count_ids, fields_of, is_continuable
from serving.router.exchange.takeover import tokenize_body

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "chat", "messages": MESSAGES, "stream": True}


def continuable(**fields: object) -> bool:
    return is_continuable(json.dumps({**CHAT, **fields}).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "repetition_penalty": 1.1},
        {"max_tokens": 5, "max_completion_tokens": None, "user": "u", "metadata": {"a": "b"}},
        {"stream_options": {"include_usage": True}, "ignore_eos": True, "stop_token_ids": [2]},
        {"n": 1, "stop": [], "tools": None, "tool_choice": "none", "logprobs": False, "logit_bias": {}},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "response_format": {"type": "text"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "type"}]}]},
        {"messages": [{"role": "user", "content": 'a "type"'}, {"role": "assistant", "content": None}]},
    ],
)
def test_what_can_be_continued(fields: dict[str, object]) -> None:
    assert continuable(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": {"type": "json_object"}},
        {"guided_json": {}},
        {"structured_outputs": {"regex": "a"}},
        {"n": 2},
        {"best_of": 2},
        {"logprobs": True},
        {"logprobs": 0},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -1},
        {"stop": "\n"},
        {"stop": ["a"]},
        {"min_tokens": 1},
        {"logit_bias": {"5": 1}},
        {"bad_words": ["a"]},
        {"reasoning_effort": "low"},
        {"documents": []},
        {"echo": True},
        {"a_field_of_a_later_release": None},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}, {"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"image_url": "x"}], "type": 1}]},
        {"messages": "x", "type": 1},
        {"prompt": "both"},
    ],
)
def test_what_cannot_be_continued(fields: dict[str, object]) -> None:
    assert not continuable(**fields)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", True),
        (["text"], True),
        ([1, 2, 3], True),
        ([1.0, 2], False),
        ([True], False),
        ([None], False),
        (["a", "b"], False),
        ([[1, 2]], False),
        ([[1], [2]], False),
        ([], False),
        (None, False),
        (5, False),
        ([5], True),
        ([-1], False),
        ([{}], False),
        ([1, "a"], False),
        (["a", 1], False),
    ],
)
def test_a_completion_of_one_prompt_can_be_continued(prompt: object, expected: bool) -> None:
    body = json.dumps({"model": "chat", "prompt": prompt}).encode()

    assert is_continuable(body) is expected
    with nullcontext() if expected else pytest.raises(ValueError, match="is no text"):
        tokenize_body(fields_of(body))  # it agrees


@pytest.mark.parametrize(
    ("ids", "count"),
    [
        (b"[1,2]", 2),
        (b"[ 1 ,\n22 ]", 2),
        (b"[ ]", 0),
        (b"[]", 0),
        (b"[1e3]", None),
        (b"12", None),
        (b"[[1]]", None),
    ],
)
def test_ids_are_counted_as_they_are_written(ids: bytes, count: int | None) -> None:
    assert count_ids(fields_of(b'{"prompt":' + ids + b"}")["prompt"]) == count


def test_a_body_that_is_too_long_to_be_continued_between_two_events_is_not() -> None:
    texts = ["a" * (BODY_LIMIT - 200), "a" * BODY_LIMIT]

    assert [continuable(messages=[{"content": text}]) for text in texts] == [True, False]


@pytest.mark.slow
@given(prompt=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_what_can_be_continued_has_a_prompt(prompt: object) -> None:
    body = json.dumps({"model": "chat", "prompt": prompt}).encode()

    if is_continuable(body):
        assert tokenize_body(fields_of(body))


@pytest.mark.parametrize(("more", "expected"), [(0, True), (1, False)])
def test_a_chat_of_very_many_turns_is_not_looked_through(more: int, expected: bool) -> None:
    assert continuable(messages=[{"content": "x"}] * (4096 + more)) is expected


def test_only_streams_are_looked_at_and_a_body_that_is_none_is_not() -> None:
    whole, stream = ({**CHAT, "stream": stream} for stream in (False, True))
    facts = [read_facts(json.dumps(body).encode()) for body in (whole, stream)]

    assert [one.continuable for one in facts if one is not None] == [False, True]
    assert not is_continuable(b"[1]")
    assert not is_continuable(b'{"messages": [' + b"[" * 5000)
