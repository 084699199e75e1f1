"""What every reader of chat completions shares: the events of a stream, and the small values of an answer.

The router and the checks of an endpoint read by these alike: what one takes is none to the other's harm.

Invariant: pure; imports nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

BOM = b"\xef\xbb\xbf"
INDEX_LIMIT = 1 << 16  # of a choice; numbers can be made to collide, and a set of such takes seconds
_INDEX_DIGITS = len(str(INDEX_LIMIT))
_NO_REASONS = frozenset({"null", "Null", "NULL", "none", "None", "NONE"})
_PING = re.compile(rb'\{\s*"type"\s*:\s*"ping"')
# Names of events that only keep a connection alive, whatever their data.
_HEARTBEATS = frozenset({b"ping", b"keepalive", b"keep-alive", b"keep_alive", b"heartbeat"})
_TEXT_PARTS = ("text", "output_text", None)  # types of the parts of a content that are said to the user


def events_in(body: bytes) -> Iterator[bytes]:
    """The events of a whole body, each as its lines; the last one may lack its blank line."""
    body = body.removeprefix(BOM)
    text = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in body else body
    at = 0
    while at < len(text):
        end = text.find(b"\n\n", at)
        end = len(text) if end < 0 else end
        yield text[at:end]
        at = end + 2


def data_of(lines: list[bytes]) -> bytes:
    """The data of an event, given its lines; empty: it has none."""
    return b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))


def name_of(lines: list[bytes]) -> bytes:
    """The name of an event, given its lines; empty: it has none."""
    return next((line[6:].strip() for line in reversed(lines) if line.startswith(b"event:")), b"")


def says_nothing(name: bytes, data: bytes) -> bool:
    """Whether an event is a heartbeat: by its name, or as its data is empty, null, a comment or a ping."""
    is_blank = not data or data == b"null" or data.startswith(b":")
    return is_blank or name.lower() in _HEARTBEATS or _PING.match(data) is not None


def reason_of(value: object) -> object:
    """A finish reason as it was written; None: it says none. Some servers write '' or 'null' for null."""
    is_absent = not value or (type(value) is str and value in _NO_REASONS)
    return None if is_absent else value


def index_of(value: object) -> int | None:
    """The index of a choice; None: a number that no choice may have. What is no number is 0.

    Check: 1 and '1' give 1; null, true and 'x' give 0; -1 gives None.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _INDEX_DIGITS:
        value = int(value)
    number = value if type(value) is int else 0
    return number if 0 <= number < INDEX_LIMIT else None


def text_of(content: Any) -> str:
    """The text of a message's content: a text, or parts of which those of text are joined.

    Check: [{'type': 'thinking', 'thinking': []}, {'type': 'text', 'text': 'yes'}] gives 'yes'.
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (one.get("text") for one in parts if isinstance(one, dict) and one.get("type") in _TEXT_PARTS)
    return "".join(text for text in texts if isinstance(text, str))
