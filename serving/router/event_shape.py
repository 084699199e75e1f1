"""The shape of a stream's events: all that is the same in each but for the text of its one content. Pure.

Most events of a stream differ from the one before in that text alone. One that does so is as sound as that
was, and holds no metadata either: three comparisons tell it, and no JSON is read.
"""

from __future__ import annotations

import re

_CONTENT = re.compile(rb'"(?:content|text)":"')
# The inside of a JSON text: no quotation mark but an escaped one, no control character.
_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\["\\/bfnrt])*')


class EventShape:
    """Of one event that has a content, no metadata, and is one line of data."""

    __slots__ = ("_end", "_least", "_size", "_start")

    def __init__(self, event: bytes, start: int, end: int) -> None:
        """start, end: of the content's text in the event."""
        self._start, self._end = event[:start], event[end:]
        self._size, self._least = len(event) - end, len(event) - (end - start)

    def fits(self, event: bytes) -> bool:
        """True for another event of this shape, with its blank line."""
        start = self._start
        if len(event) < self._least or not (event.startswith(start) and event.endswith(self._end)):
            return False
        text = event[len(start) : -self._size]
        if _TEXT.fullmatch(text) is None:
            return False
        try:
            return text.isascii() or bool(text.decode())
        except ValueError:
            return False


def shape_of(event: bytes) -> EventShape | None:
    """The shape of an event that is sound and has no metadata; None: it has no content of one text."""
    if not event.startswith(b"data: {") or event.find(b"\n") != len(event) - 2:
        return None
    found = _CONTENT.search(event)
    if found is None:
        return None
    text = _TEXT.match(event, found.end())
    end = text.end() if text is not None else 0
    return EventShape(event, found.end(), end) if event[end : end + 1] == b'"' else None
