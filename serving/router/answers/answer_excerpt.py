"""The text of an answer and its calls of tools, taken from its bytes as they pass: for its signals. Pure.

Rules:
1. No event of text is decoded: the strings of the named fields are found by a pattern, some KiB at a time, so
   that an event costs about 1 us. Many events hold one token each. Those with calls of tools are decoded, but
   for large ones (WHOLE), of which no objects are made: their calls are not known.
2. Bounded: FOLDED bytes of what has passed, TEXT_LIMIT bytes of text and of arguments, CALLS_LIMIT calls. Of
   a whole answer the first WHOLE_LIMIT bytes are read.

Invariant: the text leaves memory with the request. No record holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from serving.judging.signals import Call
from serving.router.answers.answer_events import WHOLE, index_of, json_object

FOLDED = 16 << 10  # bytes that are kept before their texts are taken from them
TEXT_LIMIT = 64 << 10  # bytes of text, and of the arguments of calls, as JSON writes them
WHOLE_LIMIT = 256 << 10
CALLS_LIMIT = 64

_STRING = rb'"([^"\\]*(?:\\.[^"\\]*)*)'  # perhaps without its end
_TEXT = re.compile(rb'"(?:content|text|refusal)"\s*:\s*' + _STRING, re.DOTALL)
_REFUSAL = re.compile(rb'"refusal"\s*:\s*"[^"]')
_CALLED = re.compile(rb'"tool_calls"\s*:\s*(?:\[\s*)?\{')
_TEXT_OF = msgspec.json.Decoder(str).decode
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")  # the beginning of one
# The same text comes again when a part of a response is done; a delta is known by its event's name.
_DELTA = re.compile(rb'event: ?response\.output_text\.delta\r?\n[^\n]*?"delta"\s*:\s*' + _STRING, re.DOTALL)


class AnswerExcerpt:
    """The text of one answer. `add` each piece that is whole: events, or the answer; then read it."""

    __slots__ = ("_calls", "_is_response", "_left", "_parts", "_size", "_texts", "_unread", "refuses")

    def __init__(self, path: str) -> None:
        """path: of the request, which tells the API."""
        self._is_response = path == "/v1/responses"
        self._parts: list[bytes] = []
        self._size = 0
        self._texts: list[bytes] = []
        self._left = TEXT_LIMIT  # bytes of text and arguments that may still be kept
        self._unread = 0  # bytes of text beyond the limit
        self.refuses = False  # a field of the answer says that it is a refusal; after `text`
        # By the index of each call: its name, and the pieces of its arguments; None: not known.
        self._calls: dict[int, tuple[str, list[str]]] | None = {}

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
        for piece in (_DELTA if self._is_response and are_events else _TEXT).findall(data):
            if len(piece) > self._left:
                self._unread += len(piece) - self._left
                piece = _CUT_ESCAPE.sub(b"", piece[: self._left])
                self._left = 0
            self._left = max(self._left - len(piece), 0)
            if piece:
                self._texts.append(piece)
        self.refuses = self.refuses or (b'"refusal"' in data and _REFUSAL.search(data) is not None)
        if b'"tool_calls"' in data and _CALLED.search(data):
            lines = data.splitlines() if are_events else [data]
            for line in lines:
                if _CALLED.search(line):
                    is_read = len(line) <= WHOLE
                    self._take_calls(json_object(line.removeprefix(b"data:")) if is_read else None)

    def _take_calls(self, event: dict[str, Any] | None) -> None:
        """Take the calls of one event, or of a whole answer. Those of one choice alone are known."""
        choices = event.get("choices") if event is not None else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            self._calls = None
            return
        message = choices[0].get("delta") or choices[0].get("message")
        listed = message.get("tool_calls") if isinstance(message, dict) else None
        for place, call in enumerate(listed if isinstance(listed, list) else ()):
            function = call.get("function") if isinstance(call, dict) else None
            index = index_of(place if not isinstance(call, dict) else call.get("index", place))
            if not isinstance(function, dict) or index is None or self._calls is None:
                self._calls = None
                return
            name, arguments = function.get("name"), function.get("arguments")
            known, pieces = self._calls.get(index, ("", []))
            if isinstance(arguments, str) and arguments:
                pieces.append(arguments)
                self._left -= len(arguments)
            self._calls[index] = (known or (name if isinstance(name, str) else ""), pieces)
            if len(self._calls) > CALLS_LIMIT or self._left < 0:
                self._calls, self._left = None, max(self._left, 0)
                return


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
