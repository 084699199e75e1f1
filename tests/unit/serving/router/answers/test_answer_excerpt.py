"""The text of an answer, taken from its bytes as they pass, compared with what its events say."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.judging.signals import Call
from serving.router.answers.answer_excerpt import FOLDED, LINE_LIMIT, TEXT_LIMIT, AnswerExcerpt

CHAT = "/v1/chat/completions"


def _events(*deltas: dict[str, Any]) -> list[bytes]:
    chunks = [
        {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]


def _read(path: str, *pieces: bytes) -> tuple[str, int]:
    excerpt = AnswerExcerpt(path)
    for piece in pieces:
        excerpt.add(piece)
    return excerpt.text()


def _calls(*pieces: bytes) -> list[Call] | None:
    excerpt = AnswerExcerpt(CHAT)
    for piece in pieces:
        excerpt.add(piece)
    excerpt.text()
    calls = excerpt.calls()
    return None if calls is None else list(calls)


@pytest.mark.slow
@given(st.lists(st.text(max_size=40), max_size=30), st.booleans())
def test_the_text_of_a_stream_is_that_of_its_deltas(texts: list[str], ascii_only: bool) -> None:
    pieces = []
    for text in texts:
        chunk = {"choices": [{"index": 0, "delta": {"content": text}}]}
        data = json.dumps(chunk, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        pieces.append(b"data: " + data + b"\n\n")
    whole = "".join(texts)
    if ascii_only or whole.isprintable():
        assert _read(CHAT, *pieces) == (whole, len(whole))


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (CHAT, {"choices": [{"message": {"role": "assistant", "content": 'Say "hi"\n\u00e9 \\'}}]}),
        ("/v1/completions", {"choices": [{"text": 'Say "hi"\n\u00e9 \\', "logprobs": {"tokens": ["a"]}}]}),
        ("/v1/messages", {"content": [{"type": "text", "text": 'Say "hi"\n\u00e9 \\'}]}),
        (
            "/v1/responses",
            {"output": [{"content": [{"type": "output_text", "text": 'Say "hi"\n\u00e9 \\'}]}]},
        ),
    ],
)
def test_the_text_of_a_whole_answer(path: str, answer: dict[str, Any]) -> None:
    assert _read(path, json.dumps(answer).encode()) == ('Say "hi"\n\u00e9 \\', 12)
    assert _read(path, json.dumps(answer, indent=1, ensure_ascii=False).encode())[0] == 'Say "hi"\n\u00e9 \\'


def test_a_pair_of_surrogates_that_is_cut_between_events_is_one_character() -> None:
    first, second = (
        piece.replace(b"@", half)
        for piece, half in zip(
            _events({"content": "@"}, {"content": "@"}), (b"\\ud83d", b"\\ude00"), strict=True
        )
    )
    assert _read(CHAT, first, second) == ("\U0001f600", 1)


def test_a_responses_text_counts_once() -> None:
    events = [
        ("response.output_text.delta", {"delta": "Hel"}),
        ("response.output_text.delta", {"delta": "lo"}),
    ]
    events += [
        ("response.output_text.done", {"text": "Hello"}),
        ("response.function_call_arguments.delta", {"delta": "{"}),
    ]
    pieces = [
        f"event: {name}\ndata: {json.dumps({**data, 'type': name})}\n\n".encode() for name, data in events
    ]
    assert _read("/v1/responses", *pieces) == ("Hello", 5)


def test_hidden_reasoning_and_log_probabilities_are_no_text() -> None:
    pieces = _events({"reasoning_content": "hm"}, {"content": "Yes"})
    answer = {
        "choices": [
            {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "bytes": [1]}]}}
        ]
    }
    assert _read(CHAT, *pieces) == ("Yes", 3)
    assert _read(CHAT, json.dumps(answer).encode()) == ("Yes", 3)


def test_a_quoted_field_inside_a_text_is_text() -> None:
    text = '{"content":"x"}, "content": "y"'
    assert _read(CHAT, *_events({"content": text})) == (text, len(text))


def test_a_long_text_is_cut_and_its_length_is_still_counted() -> None:
    pieces = _events(*[{"content": "word " * 20}] * 1000)
    text, characters = _read(CHAT, *pieces)
    assert len(text) <= TEXT_LIMIT
    assert characters == 100_000
    whole = json.dumps({"choices": [{"message": {"content": "\n" * 200_000}}]}).encode()
    text, characters = _read(CHAT, whole)
    assert set(text) == {"\n"}
    assert len(text) <= TEXT_LIMIT


def test_what_has_passed_is_not_kept() -> None:
    excerpt = AnswerExcerpt(CHAT)
    for piece in _events(*[{"content": "a"}] * 2000):
        excerpt.add(piece)
        assert sum(map(len, excerpt._parts)) < FOLDED + len(piece)


def test_calls_are_joined_from_their_pieces() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": function}]}

    pieces = _events(
        call(0, name="weather", arguments=""),
        call(0, arguments='{"city":'),
        call(0, arguments=' "Paris"}'),
        call(1, name="now", arguments="{}"),
    )
    assert _calls(*pieces) == [Call("weather", '{"city": "Paris"}'), Call("now", "{}")]


def test_calls_of_a_whole_answer_in_any_order_of_their_fields() -> None:
    one = {"function": {"arguments": '{"a": 1}', "name": "f"}}
    two = {"function": {"arguments": "{}", "name": "g"}}
    answer = {"choices": [{"message": {"content": None, "tool_calls": [one, two]}}]}
    assert _calls(json.dumps(answer).encode()) == [Call("f", '{"a": 1}'), Call("g", "{}")]


def test_parallel_calls_in_turns_keep_their_own_arguments() -> None:
    def call(index: int, **function: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": function}]}

    pieces = _events(
        call(0, name="weather", arguments=None),
        call(1, name="now"),
        call(0, name="weather", arguments='{"city":'),
        call(0, name="", arguments=' "Paris"}'),
    )
    assert _calls(*pieces) == [Call("weather", '{"city": "Paris"}'), Call("now", "")]


def test_an_answer_without_calls_has_none() -> None:
    assert _calls(*_events({"content": '"name": "f", "arguments": "{}"'})) == []
    empty = {"choices": [{"message": {"tool_calls": [], "content": "x"}}], "name": "engine"}
    assert _calls(json.dumps(empty).encode()) == []


def test_calls_that_cannot_be_told_apart_are_not_known() -> None:
    many = {"function": {"name": "f", "arguments": "{}"}}
    one = {"message": {"tool_calls": [many]}}
    for answer in (
        {"choices": [{"message": {"tool_calls": [many] * 65}}]},
        {"choices": [one, one]},
        {"choices": [{"message": {"tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}}]},
    ):
        assert _calls(json.dumps(answer).encode()) is None


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_calls_of_a_large_event_are_not_known(is_stream: bool) -> None:
    """To make objects of an event of 0.9 MB took 100 ms, at each."""
    for count, expected in ((30_000, None), (3000, [Call("f", "{}")])):
        one = {"function": {"name": "f", "arguments": "{}"}, "x": [[]] * count}
        answer = {"choices": [{"message": {"tool_calls": [one]}}]}
        piece = json.dumps(answer).encode()
        assert _calls(b"data: " + piece + b"\n\n" if is_stream else piece) == expected


def test_a_refusal_field_is_seen_and_is_text() -> None:
    excerpt = AnswerExcerpt(CHAT)
    excerpt.add(_events({"refusal": "I can't help."})[0])
    assert excerpt.text()[0] == "I can't help."
    assert excerpt.refuses
    quiet = AnswerExcerpt(CHAT)
    quiet.add(json.dumps({"choices": [{"message": {"content": "Hi", "refusal": None}}]}).encode())
    quiet.text()
    assert not quiet.refuses


@pytest.mark.slow
@given(st.lists(st.binary(max_size=100), max_size=20))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    excerpt = AnswerExcerpt(CHAT)
    for piece in pieces:
        excerpt.add(b'{"content":"' + piece)
    text, characters = excerpt.text()
    assert len(text) <= characters
    excerpt.calls()


def _delta_of(index: int, name: str, arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}}]}


def test_names_of_calls_count_as_text() -> None:
    """64 names of 60 kB were 128 bytes."""
    few = [_delta_of(n, chr(97 + n) * 30_000, "{}") for n in range(2)]
    excerpt = AnswerExcerpt(CHAT)
    for piece in _events(*few):
        excerpt.add(piece)
    excerpt.text()
    assert excerpt.size == 60_004
    assert _calls(*_events(*few, _delta_of(2, "c" * 30_000, "{}"))) is None


@pytest.mark.parametrize("field", ["content", "tool_calls"])
def test_what_is_held_is_about_what_it_says(field: str) -> None:
    """32,000 pieces of two characters held 1.9 MB, and their size was 64 kB."""
    one: dict[str, Any] = {"content": "ab"} if field == "content" else _delta_of(0, "f", "12")
    (event,) = _events(one)
    tracemalloc.start()
    excerpt = AnswerExcerpt(CHAT)
    for _ in range(10_000):
        excerpt.add(event)
    excerpt.text()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 20_000 <= excerpt.size < 20_100
    assert held < 3 * excerpt.size + 64_000


@pytest.mark.parametrize("text", ["x", "\\", "\n", "\x01", '"'])
@pytest.mark.parametrize("before", [0, 30_000, LINE_LIMIT])
def test_of_one_long_event_the_beginning_is_read_and_its_length_counted(text: str, before: int) -> None:
    """An event of 0.9 MB of escapes took 59 ms in one step."""
    long = {"other": "o" * before, "content": text * 200_000}
    read, characters = _read(CHAT, *_events({"content": "a"}, long, {"content": "b"}))
    whole = before < LINE_LIMIT - TEXT_LIMIT

    assert read.startswith("a" + text * 1000 if before < LINE_LIMIT else "ab")
    assert set(read) <= {"a", "b", text}
    assert len(read) > (TEXT_LIMIT if whole else 40_000 if before < LINE_LIMIT else 0) // len(
        json.dumps(text)
    )
    assert characters >= 190_000


@pytest.mark.parametrize("escape", ["\\\\", "\\n", "\\u0041", "\\\\u0041"])
def test_a_text_that_is_cut_ends_with_a_whole_character(escape: str) -> None:
    for before in range(8):
        text = "b" * before + escape * TEXT_LIMIT
        read, _ = _read(CHAT, b'data: {"choices": [{"delta": {"content": "' + text.encode() + b'"}}]}\n\n')
        ends = {f"u{'0041'[:n]}"[-1] for n in range(5)} if escape.startswith("\\\\u") else set[str]()
        assert read[-1] in {json.loads(f'"{escape}"')[-1], "\\", *ends}
        assert len(read) >= TEXT_LIMIT // len(escape) - 1
        assert read == json.loads(f'"{text}"')[: len(read)]
