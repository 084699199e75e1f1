"""An event of very many lines is passed on unread: each line costs a step that no turn ends."""

from __future__ import annotations

import pytest

from serving.router.answers import answer_scan
from serving.router.answers.answer_scan import LINES_LIMIT, PARSE_LIMIT, AnswerScan
from serving.router.upstreams.decompressed import PIECE

CHAT = "/v1/chat/completions"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}'


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines each block had that was read."""
    read = list[int]()

    def noted(block: bytes) -> bool:
        read.append(max(block.count(b"\n"), block.count(b"\r")))
        return False

    monkeypatch.setattr(answer_scan, "is_sound", noted)
    return read


def fed(scan: AnswerScan, body: bytes, size: int = PIECE) -> bytes:
    passed = b"".join(scan.feed(body[at : at + size]) for at in range(0, len(body), size))
    scan.end()
    return passed + (scan.rest or b"")


@pytest.mark.parametrize("is_ours", [False, True])
@pytest.mark.parametrize("line", [b":\n", b"data:\n", b"id:\n", b"event:\n", b"x\n", b":\r", b"data:\r\n"])
@pytest.mark.parametrize("ends", [True, False])
def test_of_one_event_a_bounded_number_of_lines_is_read(
    ends: bool, line: bytes, is_ours: bool, lines: list[int]
) -> None:
    end = line.lstrip(b":dateivnx") if ends else b""
    body = line * ((PARSE_LIMIT - 1000) // len(line)) + EVENT + end * 2
    scan = AnswerScan(CHAT, "text/event-stream", 1, is_ours, True)
    passed = fed(scan, body)

    assert passed == body
    assert max(lines, default=0) <= LINES_LIMIT + PIECE
    assert (scan.is_between_events, scan.fault) == (False, None)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 100, PIECE])
def test_the_lines_of_many_events_are_read(size: int) -> None:
    scan = AnswerScan(CHAT, "text/event-stream", 1)
    first = EVENT.replace(b'"stop"', b"null") + b"\n\n"
    body = first + (b": a\nid: 1\n" + first) * LINES_LIMIT + EVENT + b"\n\n"
    passed = fed(scan, body, size)

    assert passed == body
    assert (scan.events, scan.is_finished, scan.fault) == (LINES_LIMIT + 2, True, None)


def test_an_event_of_as_many_lines_as_are_read_is_read() -> None:
    scan = AnswerScan(CHAT, "text/event-stream", 1)
    passed = fed(scan, b"".join([b": a\r\n"] * (LINES_LIMIT - 1)) + EVENT + b"\r\n\r\n", 1000)

    assert passed.endswith(b"\r\n\r\n")
    assert (scan.has_content, scan.is_finished) == (True, True)
