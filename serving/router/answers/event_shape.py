"""The shape of a stream's events: all that is the same in each but for the text of its one content. Pure.

Most events of a stream differ from the one before in that text alone. One that does so is as sound as that
was, and holds no metadata either: three comparisons tell it, and no JSON is read.
"""

from __future__ import annotations

import re

_CONTENT = re.compile(rb'"(?:content|text)":"')
# The inside of a JSON text: no quotation mark but an escaped one, no control character. Possessive: a text
# that does not match would else be tried in 2**length ways.
_TEXT = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt])*+')


class EventShape:
    """Of one event that has a content, no metadata, and is one line of data."""

    __slots__ = ("_between", "_end", "_start")

    def __init__(self, event: bytes, start: int, end: int) -> None:
        """start, end: of the content's text in the event."""
        self._start, self._end = event[:start], event[end:]
        self._between = self._end + self._start

    def run(self, block: bytes, at: int = 0) -> tuple[int, int]:
        """How many events from `at` on have this shape, and where the last one ends; all up to there do."""
        start, last = self._start, self._end
        if not block.startswith(start, at):
            return 0, at
        at_text = at + len(start)
        if block.endswith(last, at_text) and _is_text(block[at_text : -len(last)]):
            return 1, len(block)  # an engine that writes event by event
        end = block.rfind(last, at_text)
        if end < 0:
            return 0, at
        texts = block[at_text:end].split(self._between)
        # Blanks between the texts: a half of an escape or of a character stays one.
        return (len(texts), end + len(last)) if _is_text(b" ".join(texts)) else (0, at)


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


def _is_text(text: bytes) -> bool:
    """Whether it is the inside of a JSON text."""
    return _TEXT.fullmatch(text) is not None and (text.isascii() or _is_utf8(text))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except ValueError:
        return False
    return True
