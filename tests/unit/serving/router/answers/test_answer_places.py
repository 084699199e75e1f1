"""Texts and calls are taken by their places: thinking, quotations and results of tools are no answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.judging.signals import Call, asked_of, signals_of
from serving.router.answers.answer_events import WHOLE
from serving.router.answers.answer_excerpt import AnswerExcerpt

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
ARGUMENTS = {"city": "Oslo"}
CALLED = [Call("weather", json.dumps(ARGUMENTS))]


def read(path: str, *events: dict[str, Any], is_stream: bool = False) -> tuple[str, list[Call] | None]:
    """Text and calls of an answer: of a stream's events, or whole."""
    excerpt = AnswerExcerpt(path)
    for event in events:
        data = json.dumps(event).encode()
        name = str(event.get("type", "")).encode()
        excerpt.add(b"event: " + name + b"\ndata: " + data + b"\n\n" if is_stream else data)
    text, _ = excerpt.text()
    calls = excerpt.calls()
    return text, None if calls is None else list(calls)


def chat(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}}]}


def delta(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": message}]}


THOUGHT = "I cannot help with that if it is illegal"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, chat(content="Yes.", reasoning_details=[{"type": "reasoning.text", "text": THOUGHT}])),
        (
            CHAT,
            chat(
                content=[
                    {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
                    {"type": "text", "text": "Yes."},
                ]
            ),
        ),
        (
            CHAT,
            chat(
                content="Yes.", annotations=[{"type": "url_citation", "url_citation": {"content": THOUGHT}}]
            ),
        ),
        (
            MESSAGES,
            {
                "type": "message",
                "content": [
                    {"type": "thinking", "thinking": THOUGHT, "signature": "s"},
                    {"type": "mcp_tool_use", "id": "m", "name": "search", "input": {}},
                    {"type": "mcp_tool_result", "content": [{"type": "text", "text": THOUGHT}]},
                    {"type": "text", "text": "Yes.", "citations": [{"document": {"text": THOUGHT}}]},
                ],
            },
        ),
        (
            RESPONSES,
            {
                "output": [
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": THOUGHT}]},
                    {"type": "web_search_call", "action": {"sources": [{"text": THOUGHT}]}},
                    {"type": "message", "content": [{"type": "output_text", "text": "Yes."}]},
                ]
            },
        ),
    ],
)
def test_what_is_not_said_to_the_user_is_no_text(path: str, answer: dict[str, Any]) -> None:
    assert read(path, answer) == ("Yes.", [])


def test_thinking_in_a_stream_is_no_text_and_what_stands_between_is() -> None:
    events = [
        delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}]),
        delta(content="Ye"),
        delta(reasoning_details=[{"text": THOUGHT}], content="s"),
        delta(content=". \u00e9\U0001f600"),
    ]

    assert read(CHAT, *events, is_stream=True) == ("Yes. \u00e9\U0001f600", [])


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, chat(content=None, tool_calls=[{"function": {"name": "weather", "arguments": ARGUMENTS}}])),
        (CHAT, chat(content="", function_call={"name": "weather", "arguments": json.dumps(ARGUMENTS)})),
        (
            MESSAGES,
            {"type": "message", "content": [{"type": "tool_use", "name": "weather", "input": ARGUMENTS}]},
        ),
        (
            RESPONSES,
            {"output": [{"type": "function_call", "name": "weather", "arguments": json.dumps(ARGUMENTS)}]},
        ),
    ],
)
def test_a_call_of_a_tool_is_known_in_each_form(path: str, answer: dict[str, Any]) -> None:
    assert read(path, answer) == ("", CALLED)


def test_a_call_of_a_streamed_message_is_joined_from_its_parts() -> None:
    events: list[dict[str, Any]] = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I look."}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "weather", "input": {}},
        },
        *(
            {
                "type": "content_block_delta",
                "index": 1,
                "delta": {"type": "input_json_delta", "partial_json": part},
            }
            for part in ('{"city"', ': "Oslo"}')
        ),
        {"type": "content_block_stop", "index": 1},
    ]

    assert read(MESSAGES, *events, is_stream=True) == ("I look.", CALLED)


def test_a_call_of_a_streamed_response_counts_once() -> None:
    item = {"type": "function_call", "name": "weather", "arguments": json.dumps(ARGUMENTS)}
    events: list[dict[str, Any]] = [
        {"type": "response.output_text.delta", "delta": "I look."},
        {"type": "response.output_item.added", "output_index": 1, "item": {**item, "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"city"'},
        {"type": "response.output_item.done", "output_index": 1, "item": item},
        {"type": "response.completed", "response": {"output": [item]}},
    ]

    assert read(RESPONSES, *events, is_stream=True) == ("I look.", CALLED)


def test_calls_in_a_large_event_or_of_a_form_that_is_not_known_are_not_known() -> None:
    large = chat(tool_calls=[{"function": {"name": "weather", "arguments": "x" * WHOLE}}])

    assert read(CHAT, large)[1] is None
    assert read("/v2/chat", {"message": {"tool_calls": [{"function": {"name": "weather"}}]}})[1] is None


TOOL = {"name": "weather", "description": "d"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {**TOOL, "parameters": SCHEMA}},
        {"type": "function", **TOOL, "parameters": SCHEMA},
        {**TOOL, "input_schema": SCHEMA},
    ],
)
def test_a_call_is_checked_by_the_tools_of_each_form(tool: dict[str, Any]) -> None:
    asked = asked_of(json.dumps({"messages": [{"role": "user", "content": "x"}], "tools": [tool]}).encode())

    def is_invalid(name: str, arguments: str) -> bool:
        return signals_of(asked, "", calls=[Call(name, arguments)]).invalid

    assert not is_invalid("weather", '{"city": "Oslo"}')
    assert is_invalid("weather", '{"city": 7}')
    assert is_invalid("no_such_tool", "{}")


def test_a_tool_that_the_endpoint_runs_itself_has_no_form_to_check() -> None:
    body = {"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}
    asked = asked_of(json.dumps(body).encode())

    assert not signals_of(asked, "", calls=[Call("anything", "{}")]).invalid


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}},
        {"text": {"format": {"type": "json_schema", "name": "w", "schema": SCHEMA}}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    ],
)
def test_the_form_of_an_answer_is_checked_as_each_api_asks_for_it(form: dict[str, Any]) -> None:
    asked = asked_of(json.dumps({"input": "Where?", **form}).encode())

    assert not signals_of(asked, '{"city": "Oslo"}').invalid
    assert signals_of(asked, "in Oslo").invalid
    assert signals_of(asked, '{"town": "Oslo"}').invalid


def _called(index: int | None, call_id: str, arguments: str = '{"city": "Rome"}') -> dict[str, Any]:
    numbered = {} if index is None else {"index": index}
    return {**numbered, "id": call_id, "function": {"name": "weather", "arguments": arguments}}


TWO = [Call("weather", '{"city": "Rome"}'), Call("weather", '{"city": "Oslo"}')]


@pytest.mark.parametrize("indexes", [(0, 0), (-1, -1), (None, None), (1, 0), (5, 5)])
def test_in_a_whole_answer_a_calls_place_is_which_call_it_is(indexes: tuple[int | None, ...]) -> None:
    """Ollama writes 0 for each: two calls were one of two objects. SGLang writes -1: nothing was checked."""
    texts = [one.arguments for one in TWO]
    calls = [_called(*one) for one in zip(indexes, "ab", texts, strict=True)]
    assert read(CHAT, chat(tool_calls=calls)) == ("", TWO)


@pytest.mark.parametrize("index", [0, None])
def test_in_a_stream_another_id_with_a_name_begins_another_call(index: int | None) -> None:
    events = [
        delta(tool_calls=[_called(index, *one)]) for one in zip("ab", ('{"city": ', '{"city": '), strict=True)
    ]
    rests = [
        delta(tool_calls=[{"index": 0, "function": {"arguments": one}}]) for one in ('"Rome"}', '"Oslo"}')
    ]
    mixed = [events[0], rests[0], events[1], rests[1]]
    assert read(CHAT, *mixed, is_stream=True) == ("", TWO)


def test_an_id_that_comes_again_or_anew_without_a_name_begins_no_call() -> None:
    parts = [_called(0, "a", '{"city": '), _called(0, "a", '"Ro')]
    last = {"index": 0, "id": "b", "function": {"arguments": 'me"}'}}
    events = [delta(tool_calls=[part]) for part in (*parts, last)]
    assert read(CHAT, *events, is_stream=True) == ("", TWO[:1])


@pytest.mark.parametrize("kind", ["mcp_tool_use", "server_tool_use"])
def test_a_call_that_the_endpoint_makes_is_none_of_the_clients_in_a_stream_either(kind: str) -> None:
    block = {"type": kind, "id": "t", "name": "echo", "input": {}}
    events = [
        {"type": "content_block_start", "index": 1, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
        },
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "done"}},
    ]
    assert read("/v1/messages", *events, is_stream=True) == ("done", [])
