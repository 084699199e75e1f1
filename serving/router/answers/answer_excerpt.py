"""The text of an answer and its calls of tools, taken from its bytes as they pass: for its signals. Pure.

Rules:
1. No event of text alone is decoded: the strings of the named fields are found by a pattern, some KiB at a
   time, so that an event costs about 1 us. Many events hold one token each. Those that hold more (calls of
   tools, thinking, quotations: `answer_places.is_odd`) are decoded, but for large ones (WHOLE), of which no
   objects are made: their calls are not known, and every string of such a name is text.
2. Bounded: FOLDED bytes of what has passed, TEXT_LIMIT bytes of text, arguments and names, CALLS_LIMIT calls.
   Of a whole answer the first WHOLE_LIMIT bytes are read, of an event LINE_LIMIT.

Invariant: the text leaves memory with the request. No record holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import msgspec

from serving.judging.signals import Call
from serving.router.answers.answer_events import WHOLE, json_object
from serving.router.answers.answer_places import CallPart, is_odd, may_call, places_of
from serving.router.answers.call_numbers import CallNumbers, Number

FOLDED = 16 << 10  # bytes that are kept before their texts are taken from them
TEXT_LIMIT = 64 << 10  # bytes of text, and of names and arguments of calls, as JSON writes them
LINE_LIMIT = TEXT_LIMIT + (16 << 10)  # of one event, which has other fields before its text
PIECES_LIMIT = 64  # pieces of a call's arguments that are objects of their own
WHOLE_LIMIT = 256 << 10
CALLS_LIMIT = 64

_STRING = rb'"([^"\\]*(?:\\.[^"\\]*)*)'  # perhaps without its end
_TEXT = re.compile(rb'"(?:content|text|refusal)"\s*:\s*' + _STRING, re.DOTALL)
_REFUSAL = re.compile(rb'"refusal"\s*:\s*"[^"]')
_TEXT_OF = msgspec.json.Decoder(str).decode
# The same text comes again when a part of a response is done; a delta is known by its event's name.
_DELTA = re.compile(rb'event: ?response\.output_text\.delta\r?\n[^\n]*?"delta"\s*:\s*' + _STRING, re.DOTALL)


class AnswerExcerpt:
    """The text of one answer. `add` each piece that is whole: events, or the answer; then read it."""

    __slots__ = (
        "_calls",
        "_is_response",
        "_left",
        "_numbers",
        "_parts",
        "_size",
        "_texts",
        "_unread",
        "refuses",
    )

    def __init__(self, path: str) -> None:
        """path: of the request, which tells the API."""
        self._is_response = path == "/v1/responses"
        self._parts: list[bytes] = []
        self._size = 0
        self._texts = bytearray()
        self._left = TEXT_LIMIT  # bytes of text and arguments that may still be kept
        self._unread = 0  # bytes of text beyond the limit
        self.refuses = False  # a field of the answer says that it is a refusal; after `text`
        self._numbers = CallNumbers()
        # By the number of each call: its name, and the pieces of its arguments; None: not known.
        self._calls: dict[Number, tuple[str, list[str]]] | None = {}

    def add(self, data: bytes) -> None:
        """Take this piece of the answer."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= FOLDED:
            self._fold()

    @property
    def size(self) -> int:
        """Bytes of the answer that are kept."""
        calls = (self._calls or {}).values()
        return self._size + len(self._texts) + sum(len(name) + sum(map(len, all)) for name, all in calls)

    def text(self) -> tuple[str, int]:
        """The text and its number of characters. Beyond the limit it is cut, they are about so many."""
        self._fold()
        text = _decoded(bytes(self._texts))
        return text, len(text) + self._unread

    def calls(self) -> Sequence[Call] | None:
        """The tools that it calls; None: not known. After `text`."""
        if self._calls is None:
            return None
        return [Call(name, "".join(pieces)) for name, pieces in self._calls.values()]

    def _fold(self) -> None:
        """Take the texts out of what has passed since the last time."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        are_events = data.startswith((b"event:", b"data:", b":"))
        if len(data) > WHOLE_LIMIT and not are_events:
            self._unread += len(data) - WHOLE_LIMIT
            self._calls, data = None, data[:WHOLE_LIMIT]
        self.refuses = self.refuses or (b'"refusal"' in data and _REFUSAL.search(data) is not None)
        if not is_odd(data):
            self._take_texts(data, are_events=are_events)
            return
        plain: list[bytes] = []  # lines that hold nothing but text
        for line in data.splitlines(keepends=True) if are_events else (data,):
            if not is_odd(line) or (self._is_response and are_events and not may_call(line)):
                plain.append(line)
                continue
            self._take_texts(b"".join(plain), are_events=are_events)
            plain.clear()
            self._take_places(line, is_event=are_events)
        self._take_texts(b"".join(plain), are_events=are_events)

    def _take_texts(self, data: bytes, *, are_events: bool) -> None:
        is_cut = are_events and len(data) > LINE_LIMIT
        for part in self._cut(data) if is_cut else (data,):
            for piece in (_DELTA if self._is_response and are_events else _TEXT).findall(part):
                self._take(piece)

    def _cut(self, data: bytes) -> Iterator[bytes]:
        """These events, by lines where one is longer than LINE_LIMIT: of that its beginning."""
        plain: list[bytes] = []
        for line in data.splitlines(keepends=True):
            if len(line) <= LINE_LIMIT:
                plain.append(line)
                continue
            # With the line before it, which names the event.
            yield b"".join([*plain, _whole_escapes(line[:LINE_LIMIT])])
            self._unread += len(line) - LINE_LIMIT
            plain.clear()
        yield b"".join(plain)

    def _take(self, piece: bytes) -> None:
        """Take a part of the text, as JSON writes it."""
        if len(piece) > self._left:
            self._unread += len(piece) - self._left
            piece = _whole_escapes(piece[: self._left])
            self._left = 0
        self._left = max(self._left - len(piece), 0)
        if piece:
            self._texts += piece

    def _take_places(self, line: bytes, *, is_event: bool) -> None:
        """Take what stands in its place in one event, or in a whole answer."""
        event = json_object(line.removeprefix(b"data:")) if len(line) <= WHOLE else None
        if event is None:
            if may_call(line):
                self._calls = None
            self._take_texts(line, are_events=is_event)
            return
        found = places_of(event)
        if found.calls == [] and may_call(line) and not self._is_response:
            found.calls = None  # a form that is not known
        for text in found.texts:
            self._take(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")[1:-1])
        if found.calls is None:
            self._calls = None
        for call in found.calls or ():
            self._take_call(call)

    def _take_call(self, call: CallPart) -> None:
        if self._calls is None or (call.is_rest and call.index not in self._numbers):
            return
        number = self._numbers.number(call.index, call.call_id, call.name)
        known, pieces = self._calls.get(number, ("", []))
        if call.arguments:
            pieces.append(call.arguments)
            if len(pieces) > PIECES_LIMIT:
                pieces[:] = ["".join(pieces)]
        name = known or call.name
        self._left -= len(call.arguments) + len(name) - len(known)
        self._calls[number] = (name, pieces)
        if len(self._calls) > CALLS_LIMIT or self._left < 0:
            self._calls, self._left = None, max(self._left, 0)


def _whole_escapes(piece: bytes) -> bytes:
    """Without the beginning of an escape at its end."""
    at = piece.rfind(b"\\", max(len(piece) - len(b"\\u000"), 0))
    slashes = at + 1 - len(piece[: at + 1].rstrip(b"\\"))
    rest = piece[at + 1 :]
    return piece[:at] if slashes % 2 and (not rest or rest[:1] == b"u") else piece


def _decoded(pieces: bytes) -> str:
    """The text of a JSON string's inside. A pair of surrogates may have been cut between two events."""
    try:
        return _TEXT_OF(b'"' + pieces + b'"')
    except (ValueError, RecursionError):  # half of a pair of surrogates, or a control character
        pass
    try:
        text = json.loads(b'"' + pieces + b'"', strict=False)
    except (ValueError, RecursionError):
        return pieces.decode("utf-8", "replace")
    return text if isinstance(text, str) else ""
