"""The text of an answer and its calls of tools, taken from its bytes as they pass: for its signals. Pure.

Rules:
1. No event is decoded: the strings of the named fields are found by a pattern, some KiB at a time, so that an
   event costs under 1 us. Many events hold one token each.
2. Bounded: FOLDED bytes of what has passed, TEXT_LIMIT bytes of text, CALLS_LIMIT calls.

Invariant: the text leaves memory with the request. No record holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from serving.judging.signals import Call

FOLDED = 16 << 10  # bytes that are kept before their texts are taken from them
TEXT_LIMIT = 64 << 10  # bytes of text, and of the arguments of calls, as JSON writes them
CALLS_LIMIT = 64

_STRING = rb'"([^"\\]*(?:\\.[^"\\]*)*)"'
_TEXT = re.compile(rb'"(?:content|text|refusal)"\s*:\s*' + _STRING, re.DOTALL)
_REFUSAL = re.compile(rb'"refusal"\s*:\s*"[^"]')
_OF_CALL = re.compile(rb'"(name|arguments)"\s*:\s*' + _STRING, re.DOTALL)
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")  # the beginning of one
# The same text comes again when a part of a response is done; a delta is known by its event's name.
_DELTA = re.compile(rb'event: ?response\.output_text\.delta\r?\n[^\n]*?"delta"\s*:\s*' + _STRING, re.DOTALL)


class AnswerExcerpt:
    """The text of one answer. `add` each piece that is whole: events, or the answer; then read it."""

    __slots__ = (
        "_calls",
        "_calls_size",
        "_is_response",
        "_names",
        "_parts",
        "_refuses",
        "_size",
        "_texts",
        "_texts_size",
        "_unread",
    )

    def __init__(self, path: str) -> None:
        """path: of the request, which tells the API."""
        self._is_response = path == "/v1/responses"
        self._parts: list[bytes] = []
        self._size = 0
        self._texts: list[bytes] = []
        self._texts_size = 0
        self._unread = 0  # bytes of text beyond the limit
        self._refuses = False
        self._calls: list[tuple[bytes, bytes]] | None = []  # (field, piece), in order; None: too many
        self._names = 0
        self._calls_size = 0

    def add(self, data: bytes) -> None:
        """Take this piece of the answer."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= FOLDED:
            self._fold()

    def text(self) -> tuple[str, int]:
        """The text and its number of characters. Beyond the limit it is cut, they are about so many."""
        self._fold()
        text = _decoded(b"".join(self._texts))
        return text, len(text) + self._unread

    @property
    def refuses(self) -> bool:
        """Whether a field of the answer says that it is a refusal; after `text`."""
        return self._refuses

    def calls(self) -> Sequence[Call] | None:
        """The tools that it calls; None: too many to be kept. After `text`."""
        if self._calls is None:
            return None
        names = [piece for field, piece in self._calls if field == b"name"]
        arguments = [piece for field, piece in self._calls if field == b"arguments"]
        if len(names) == len(arguments):  # each call in one piece, in whatever order of its fields
            return [Call(_decoded(name), _decoded(one)) for name, one in zip(names, arguments, strict=True)]
        found: list[tuple[bytes, list[bytes]]] = []
        for field, piece in self._calls:
            if field == b"name":
                found.append((piece, []))
            elif found:
                found[-1][1].append(piece)
        return [Call(_decoded(name), _decoded(b"".join(pieces))) for name, pieces in found]

    def _fold(self) -> None:
        """Take the texts out of what has passed since the last time."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size = [], 0
        is_delta = self._is_response and data.startswith((b"event:", b"data:", b":"))
        for piece in (_DELTA if is_delta else _TEXT).findall(data):
            rest = TEXT_LIMIT - self._texts_size
            if len(piece) > rest:
                self._unread += len(piece) - max(rest, 0)
                piece = _CUT_ESCAPE.sub(b"", piece[:rest]) if rest > 0 else b""
                self._texts_size = TEXT_LIMIT
            self._texts_size += len(piece)
            self._texts.append(piece)
        self._refuses = self._refuses or (b'"refusal"' in data and _REFUSAL.search(data) is not None)
        if b'"tool_calls"' in data:
            self._take_calls(data)

    def _take_calls(self, data: bytes) -> None:
        for field, piece in _OF_CALL.findall(data, data.find(b'"tool_calls"')):
            if not piece and field == b"name":  # some servers write an empty one into each event
                continue
            self._names += field == b"name"
            self._calls_size += len(piece)
            if self._names > CALLS_LIMIT or self._calls_size > TEXT_LIMIT:
                self._calls = None
            if self._calls is None:
                return
            self._calls.append((field, piece))


def _decoded(pieces: bytes) -> str:
    """The text of a JSON string's inside. A pair of surrogates may have been cut between two events."""
    try:
        text = json.loads(b'"' + pieces + b'"', strict=False)
    except (ValueError, RecursionError):
        return pieces.decode("utf-8", "replace")
    return text if isinstance(text, str) else ""
