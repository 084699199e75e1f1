"""The conversation of a request as a judge reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.judging.conversation import BODY_LIMIT, conversation

CALL = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": [user("Hi")]}, "Hi"),
        ({"prompt": "Once"}, "Once"),
        ({"prompt": ["Once"]}, "Once"),
        ({"input": "Hi"}, "Hi"),
        ({"system": "Be short.", "messages": [user("Hi")]}, "system: Be short.\n\nuser: Hi"),
        ({"instructions": "Be short.", "input": "Hi"}, "system: Be short.\n\nuser: Hi"),
        (
            {"messages": [user("Hi"), {"role": "assistant", "content": "Ho"}, user("Why?")]},
            "user: Hi\n\nassistant: Ho\n\nuser: Why?",
        ),
        ({"messages": [user([{"type": "text", "text": "What is it?"}, IMAGE])]}, "What is it?\n[image_url]"),
        (
            {"messages": [user("Hi"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            'user: Hi\n\nassistant: [calls find({"q": 1})]',
        ),
        (
            {
                "input": [
                    user("Hi"),
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    {"output": "7"},
                ]
            },
            "user: Hi\n\nassistant: [calls f({})]\n\ntool: 7",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]},
                    user([{"type": "tool_result", "content": [{"type": "text", "text": "7"}]}]),
                ]
            },
            'assistant: [calls f({"a": 1})]\n\nuser: 7',
        ),
    ],
)
def test_each_api_says_what_was_said(body: dict[str, Any], text: str) -> None:
    assert conversation(json.dumps(body).encode()) == text


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"no json", b"[]", b"{}", b'{"messages": []}', b'{"messages": 7}', b'{"messages": [7]}'),
        *(
            b'{"messages": [{"role": "user", "tool_calls": 5}]}',
            b'{"prompt": [1, 2]}',
            b'{"prompt": ["a", "b"]}',
        ),
        b'{"messages": [' + b"[" * 5_000 + b"]" * 5_000 + b"]}",
        b'{"prompt": "' + b"x" * BODY_LIMIT + b'"}',
        b'{"prompt": "x", "more": [' + b"1," * 20_000 + b"1]}",
    ],
)
def test_what_cannot_be_read_says_nothing(body: bytes) -> None:
    assert conversation(body) is None


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "text",
                    "type",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "output",
                    "input",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "system", "instructions"]), _VALUES))
def test_no_form_of_a_request_is_an_error(body: dict[str, Any]) -> None:
    found = conversation(json.dumps(body).encode())
    assert found is None or found
