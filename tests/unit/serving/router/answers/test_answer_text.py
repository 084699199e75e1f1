"""What an answer says, however it was sent."""

from __future__ import annotations

import json

from serving.router.answers.answer_text import said


def stream(*events: object) -> bytes:
    lines = [f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in events]
    return (": keep-alive\n\n" + "".join(lines)).encode()


def delta(index: int = 0, **fields: object) -> dict[str, object]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": None}]}


def test_a_stream_says_what_the_whole_answer_says() -> None:
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ": 1}"}}
    streamed = stream(
        *(delta(role="assistant"), delta(reasoning_content="Hm"), delta(content="He"), delta(content="llo")),
        *(delta(1, content="Bye"), delta(tool_calls=[call]), delta(tool_calls=[more]), "[DONE]"),
    )
    function = {"name": "f", "arguments": '{"a": 1}'}
    first = {"content": "Hello", "reasoning": "Hm", "tool_calls": [{"id": "2", "function": function}]}
    whole = {"choices": [{"index": 1, "message": {"content": "Bye"}}, {"index": 0, "message": first}]}
    expected = ({"text": "Hello", "reasoning": "Hm", "tool_calls": [function]}, {"text": "Bye"})

    assert said(streamed, is_stream=True) == expected
    assert said(json.dumps(whole).encode(), is_stream=False) == expected
    assert said(streamed.replace(b"\n", b"\r\n"), is_stream=True) == expected


def test_completions_say_their_text() -> None:
    assert said(b'{"choices":[{"text":"Hi"}]}', is_stream=False) == ({"text": "Hi"},)
    assert said(
        b'data: {"choices":[{"text":"H"}]}\n\ndata: {"choices":[{"text":"i"}]}\n\n', is_stream=True
    ) == ({"text": "Hi"},)


def test_a_content_in_parts_says_the_text_of_them() -> None:
    """Two such answers said nothing, and were the same text."""
    parts = [{"type": "thinking", "thinking": [{"text": "Hm"}]}, {"type": "text", "text": "Hi"}]
    whole = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    assert said(whole, is_stream=False) == ({"text": "Hi"},)
    assert said(stream(delta(content=parts[1:])), is_stream=True) == ({"text": "Hi"},)


def test_a_mark_of_byte_order_begins_no_event() -> None:
    body = b"\xef\xbb\xbf" + stream(delta(content="Hi")).partition(b"\n\n")[2]
    assert said(body, is_stream=True) == ({"text": "Hi"},)


def test_what_cannot_be_read_says_nothing() -> None:
    for body in (b"", b"[]", b"{", b'{"choices": {}}', b'{"choices": [1, null]}', b"\xff" * 99, b"[" * 9999):
        assert said(body, is_stream=False) is None
        assert said(b"data: " + body + b"\n\n", is_stream=True) is None


def test_odd_values_are_no_error_and_bound_the_choices() -> None:
    odd = {
        "choices": [
            {"index": n, "delta": {"content": 1, "tool_calls": [7, {"function": 1}]}} for n in range(999)
        ]
    }
    found = said(stream(odd, {"choices": [{"index": "x"}]}), is_stream=True)

    assert found is not None
    assert len(found) == 256


def test_calls_are_told_apart_by_place_in_a_whole_answer_and_by_id_in_a_stream() -> None:
    def call(index: int, call_id: str) -> dict[str, object]:
        return {"index": index, "id": call_id, "function": {"name": "f", "arguments": "{}"}}

    called = {"name": "f", "arguments": "{}"}
    for indexes in ((0, 0), (-1, -1), (0, 1)):
        calls = [call(*one) for one in zip(indexes, "ab", strict=True)]
        whole = json.dumps({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}).encode()
        assert said(whole, is_stream=False) == ({"tool_calls": [called, called]},)
    streamed = stream(*(delta(tool_calls=[call(0, call_id)]) for call_id in "ab"))
    assert said(streamed, is_stream=True) == ({"tool_calls": [called, called]},)
