"""The two time limits between what comes: `stall_s` counts events, `idle_s` bytes of any kind."""

from __future__ import annotations

import pytest

from tests.fakes.virtual_wire import LAST_CHUNK, LIMITS, Habit, Piece, Seen, ask, chunked, head, virtual_time

CHAT = "/v1/chat/completions"
EVENT = b'data: {"id":"a","choices":[{"index":0,"delta":{"content":"w"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
COMMENTS = {"comments": b": a tool runs\n\n", "pings": b"event: ping\ndata: {}\n\n", "blanks": b"\n"}


def answered(pieces: list[Piece]) -> Seen:
    body = {"messages": [], "stream": True, "tools": [{"type": "function"}]}
    with virtual_time() as loop:
        return loop.run_until_complete(ask(lambda *_: pieces, Habit(), arm=0, path=CHAT, body=body))


@pytest.mark.parametrize("kind", COMMENTS)
def test_stables_stream_goes_on_while_any_bytes_come(kind: str) -> None:
    """A tool that the server runs may take minutes. The long pause is an error on either arm."""
    waits: list[Piece] = [(1.0, chunked(COMMENTS[kind]))] * int(3 * LIMITS.idle_s)
    seen = answered([(0.1, head() + chunked(EVENT)), *waits, (1.0, chunked(EVENT + LAST) + LAST_CHUNK)])
    (record,) = seen.records

    assert (seen.answer.count(EVENT), seen.answer.count(LAST)) == (2, 1)
    assert b'"cut"' not in seen.answer
    assert (record.error, record.cause) == (True, "stalled")


def test_stables_stream_ends_at_idle_s_after_the_last_byte() -> None:
    waits: list[Piece] = [(1.0, chunked(COMMENTS["comments"]))] * 5
    late: Piece = (LIMITS.idle_s + 1.0, chunked(LAST) + LAST_CHUNK)
    seen = answered([(0.1, head() + chunked(EVENT)), *waits, late])

    assert b'"code": "cut"' in seen.answer
    assert LAST not in seen.answer
