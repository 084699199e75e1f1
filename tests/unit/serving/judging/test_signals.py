"""Signals of an answer from what its request asked for."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.judging.forms import Form
from serving.judging.signals import REQUEST_LIMIT, Asked, Call, asked_of, signals_of

ENGLISH = "Please tell me how the settings of my account can be changed by an administrator."
GERMAN = "Öffnen Sie die Einstellungen Ihres Kontos und wählen Sie dort die Benachrichtigungen aus."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def _asked(**fields: Any) -> Asked:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": ENGLISH}]
    return asked_of(json.dumps({"model": "m", "messages": turns, **fields}).encode())


def _json_schema() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


def _tool(name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def test_an_answer_in_another_language_than_the_users_is_seen() -> None:
    assert signals_of(_asked(), GERMAN).other_language
    assert not signals_of(_asked(), ENGLISH).other_language
    assert not signals_of(_asked(), "42").other_language


def test_the_users_last_turn_tells_the_language() -> None:
    turns = [{"role": "user", "content": ENGLISH}, {"role": "assistant", "content": "Yes."}]
    parts = [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": GERMAN}]
    asked = asked_of(json.dumps({"messages": [*turns, {"role": "user", "content": parts}]}).encode())
    assert asked.text == GERMAN
    assert asked_of(json.dumps({"prompt": GERMAN}).encode()).text == GERMAN


def test_where_no_form_was_asked_none_is_missed() -> None:
    assert not signals_of(_asked(), "Paris").invalid
    assert not signals_of(_asked(n=2, response_format={"type": "json_object"}), "{}{}").invalid


def test_json_that_ended_at_its_limit_is_none() -> None:
    asked = _asked(response_format={"type": "json_object"})
    assert signals_of(asked, '{"a": [1, 1, 1', characters=90_000, is_cut=True).invalid
    assert not signals_of(_asked(), "cut off", is_cut=True).invalid


def test_json_that_was_asked_for_must_parse_and_conform() -> None:
    anything, place = _asked(response_format={"type": "json_object"}), _asked(response_format=_json_schema())
    assert signals_of(anything, '{"a": 1}').invalid is False
    assert signals_of(anything, "Sure! {}").invalid is True
    assert signals_of(anything, "[1]").invalid is True
    assert signals_of(place, '{"city": "Paris"}').invalid is False
    assert signals_of(place, '{"town": "Paris"}').invalid is True
    assert signals_of(place, '{"city": "Par').invalid is True


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_invalid_in_a_text_and_in_a_call(number: str) -> None:
    assert signals_of(_asked(response_format={"type": "json_object"}), f'{{"a": {number}}}').invalid


def test_json_that_was_not_kept_whole_is_not_checked() -> None:
    place = _asked(response_format=_json_schema())
    assert signals_of(place, '{"city": "Par', characters=100_000).invalid is False


def test_a_call_must_name_a_tool_and_fit_it() -> None:
    asked = _asked(tools=[_tool()])
    assert signals_of(asked, "It is warm.").invalid is False
    assert signals_of(asked, "", calls=[Call("weather", '{"city": "Paris"}')]).invalid is False
    assert signals_of(asked, "", calls=[Call("wether", '{"city": "Paris"}')]).invalid is True
    assert signals_of(asked, "", calls=[Call("weather", '{"city": 3}')]).invalid is True
    assert signals_of(asked, "", calls=[Call("weather", '{"city": ')]).invalid is True


def test_one_wrong_call_of_several_is_enough() -> None:
    calls = [Call("weather", '{"city": "Paris"}'), Call("weather", "{}")]
    assert signals_of(_asked(tools=[_tool()]), "", calls=calls).invalid is True


def test_a_tool_of_another_kind_is_not_checked() -> None:
    asked = _asked(tools=[_tool(), {"type": "custom", "custom": {"name": "shell"}}])
    assert not signals_of(asked, "", calls=[Call("shell", "ls")]).invalid
    assert signals_of(asked, "", calls=[Call("weather", "ls")]).invalid


def test_many_calls_of_many_patterns_take_no_long_time() -> None:
    """500 patterns, compiled anew for each of 64 calls, took 6.6 s."""
    patterns = {f"p{n}": {"type": "string", "pattern": f"^(a|b{n}){{1,50}}$"} for n in range(500)}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": patterns}}}
    began = time.process_time()
    signals_of(_asked(tools=[tool]), "", calls=[Call("f", "{}")] * 64)
    assert time.process_time() - began < 2  # an end, no measurement


def test_the_language_of_a_responses_input_is_read() -> None:
    turns = [{"role": "user", "content": [{"type": "input_text", "text": GERMAN}]}]
    assert asked_of(json.dumps({"input": turns}).encode()).text == GERMAN
    assert asked_of(json.dumps({"input": GERMAN}).encode()).text == GERMAN


def test_a_tool_without_arguments_takes_any() -> None:
    asked = _asked(tools=[{"type": "function", "function": {"name": "now"}}])
    assert signals_of(asked, "", calls=[Call("now", "")]).invalid is False
    assert signals_of(asked, "", calls=[Call("now", "[]")]).invalid is True


def test_a_refusal_is_told_by_its_field_or_its_words() -> None:
    assert signals_of(_asked(), "", refusal=True).refused
    assert signals_of(_asked(), "I'm sorry, but I can't help with that.").refused
    assert not signals_of(_asked(), ENGLISH).refused


def test_an_echoed_token_of_the_request_is_no_leak() -> None:
    asked = asked_of(json.dumps({"prompt": "What does <|im_end|> mean?"}).encode())
    assert not signals_of(asked, "<|im_end|> ends a turn.").leaked
    assert signals_of(asked, "It ends a turn.<|eot_id|>").leaked


def test_what_cannot_be_read_asked_for_nothing() -> None:
    for body in (b"", b"not json", b"[" * 100_000, b'"' + b"a" * REQUEST_LIMIT + b'"', b'{"tools":[3,{}]}'):
        asked = asked_of(body)
        assert (asked.text, asked.form) == ("", Form())
        assert not signals_of(asked, ENGLISH).invalid


@pytest.mark.slow
@given(st.binary(max_size=300), st.text(max_size=300))
def test_no_request_breaks_the_signals(body: bytes, text: str) -> None:
    assert signals_of(asked_of(body), text).characters == len(text)
