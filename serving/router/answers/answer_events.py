"""Server-sent events as bytes: where they end, whether they are sound, their data. Pure."""

from __future__ import annotations

import re
from array import array
from typing import Any

import msgspec

from serving.chat_events import BOM, data_of, name_of, says_nothing
from serving.json_value import json_value
from serving.messages import ANSWER_ID_LIMIT
from serving.router.bodies.raw_values import holds_one

WORD_LIMIT = ANSWER_ID_LIMIT  # of a finish reason too
TOKEN_COMMENT = b": ids "  # begins the line by which an engine's front names the token ids of the next event
# Finish reasons of a choice that its engine gave up, as vLLM's after a fault, and of Cohere's API: the text
# before it is a part.
_FAILED_REASONS = ("abort", "cancelled", "error", "ERROR", "TIMEOUT")
WHOLE = 64 << 10  # bytes; of a larger event no objects are made, for they cost by their number
_BOUNDARIES = (b"\n\n", b"\n\r\n", b"\r\r")

# Each is looked for by its name: one pattern for all tries each of them at every quotation mark of a text.
_METADATA = tuple(
    (name, re.compile(re.escape(name) + value))
    for name, value in (
        *((b'"finish_reason"', rb'\s*:\s*"'), (b'"stop_reason"', rb'\s*:\s*"')),
        *((b'"usage"', rb"\s*:\s*\{"), (b'"error"', rb'\s*:\s*[{"]'), (b'"message"', rb"\s*:\s*\{")),
        *((b"[DONE]", b""), (b'"object"', rb'\s*:\s*"error"')),
        (
            b'"type"',
            rb'\s*:\s*"(?:response\.(?:completed|incomplete|failed|cancelled)|message_stop|message-end|error|ping'
            rb'|transcript\.text\.done)"',
        ),
    )
)
LAST_TYPES = frozenset(
    {
        *("response.completed", "response.incomplete", "response.failed", "response.cancelled"),
        *("message_stop", "message-end", "transcript.text.done"),
    }
)
_NAMES_OF_METADATA = (b'"usage"', b'"error"', b'"message', b'"type"', b"stop_reason", b"[DONE]")
_FAILED = re.compile(rb'"(?:error|abort|cancelled|ERROR|TIMEOUT)"')
_HEARTBEAT = re.compile(rb"(?im)^event:[ \t]*(?:ping|keep[-_]?alive|heartbeat)[ \t]*\r?$")
_SKIP = msgspec.json.Decoder(msgspec.Raw).decode  # reads a value without making an object of it
_DATA = re.compile(rb"(?:\A|[\r\n])data:")
_SEARCHED = 512  # bytes; an event may come byte by byte
_OTHER_LINES = (b":", b"event:", b"id:", b"retry:")


def begins_events(data: bytes) -> bool | None:
    """Whether these first bytes of a body begin an event; None: they are too few to tell."""
    if BOM.startswith(data):
        return None
    text = data.removeprefix(BOM).lstrip(b"\r\n")
    if text.startswith((b"data:", *_OTHER_LINES)):
        return True
    return None if any(one.startswith(text) for one in (b"data:", *_OTHER_LINES)) else False


def begins_object(data: bytes | bytearray) -> bool | None:
    """Whether these first bytes of a body begin a JSON object; None: they are too few to tell."""
    if BOM.startswith(data):
        return None
    text = data.removeprefix(BOM).lstrip()
    return text.startswith(b"{") if text else None


def may_say_nothing(block: bytes) -> bool:
    """False only when no event of a sound block has the name of a heartbeat."""
    return b"event:" in block and _HEARTBEAT.search(block) is not None


def has_data(part: bytes | bytearray) -> bool:
    """Whether so much of an event has come that its data has begun, near its beginning."""
    return _DATA.search(part, 0, _SEARCHED) is not None


def has_failed(reason: object) -> bool:
    """Whether this finish reason of a choice says that its engine gave up."""
    return reason in _FAILED_REASONS


def may_have_failed(block: bytes) -> bool:
    """False only when no event of the block says that its engine gave up."""
    return _FAILED.search(block) is not None


def is_sound(block: bytes) -> bool:
    """True when every event of a block is surely one that `is_event` accepts; of most engines all are."""
    try:
        if not block.isascii():
            block.decode()
        start = block.find(b"\n") + 1 if block.startswith(TOKEN_COMMENT) else 0
        if block.find(b"\n", start) == len(block) - 2 and block.startswith(b"data: {", start):
            _SKIP(block[start + 6 : -2])  # one event of one line, most often
            return True
        has_data = False  # of the event that is read: a second line of data is another part of the same
        is_named = False  # it has ids, which are of its data
        for line in block.split(b"\n"):
            if line.startswith(b"data:"):
                if has_data:
                    return False
                has_data = True
            elif line.startswith(TOKEN_COMMENT):
                is_named = True
            if line.startswith(b"data: {"):
                _SKIP(line[6:])
            elif not line:
                if is_named and not has_data:
                    return False
                has_data = is_named = False
            elif not line.startswith(_OTHER_LINES) and line != b"data: [DONE]":
                return False
    except (ValueError, RecursionError):
        return False
    return True


def is_event(event: bytes, *, is_ours: bool = False) -> bool:
    """True for an event with a JSON object, or [DONE], and for a heartbeat.

    is_ours: of our engines, which write no line that readers ignore, and no ids without their event: such are
    half of one, and garbage.
    """
    lines = event.split(b"\n")
    data = data_of(lines)
    if is_ours and not all(not one or one.startswith((b"data:", *_OTHER_LINES)) for one in lines):
        return False
    if says_nothing(name_of(lines), data):
        return not (is_ours and any(one.startswith(TOKEN_COMMENT) for one in lines))
    return data == b"[DONE]" or is_object(data)


def events_of(block: bytes) -> list[bytes]:
    """The events of a block that ends with a blank line."""
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")[:-1]


def end_of_events(data: bytes | bytearray, known: int, *, has_cr: bool) -> int:
    """Where the last whole event ends; 0: nowhere. `known`: how many bytes are known to hold no end.

    has_cr: there is a carriage return in it. Only what is new is searched: an event may come byte by byte.
    """
    start = max(known - 3, 0)
    if not has_cr:
        found = data.rfind(b"\n\n", start)
        return found + 2 if found >= 0 else 0
    return max(found + len(mark) if (found := data.rfind(mark, start)) >= 0 else 0 for mark in _BOUNDARIES)


def token_ids_of(text: bytes) -> array[int] | None:
    """The ids that follow TOKEN_COMMENT; None: it is no list of ids. Check: b'1,2' gives 1 and 2."""
    ids = text.split(b",")
    try:
        return array("I", map(int, ids)) if all(map(bytes.isdigit, ids)) else None
    except (ValueError, OverflowError):
        return None


def word_of(value: object) -> str | None:
    """A short printable text of an answer; None for anything else, which could not be recorded."""
    is_word = isinstance(value, str) and 0 < len(value) <= WORD_LIMIT and value.isprintable()
    return value if is_word else None  # type: ignore[return-value]


def json_object(data: bytes | bytearray) -> dict[str, Any] | None:
    """The JSON object in `data`; None when it is malformed, too deep or not an object."""
    value = json_value(data)
    return value if isinstance(value, dict) else None


def is_value(data: bytes) -> bool:
    """Whether it is one whole JSON value but null; of a large one no objects are made."""
    if len(data) <= WHOLE:
        return json_value(data) is not None
    return _is_json(data) or _is_json(mended(data))


def is_object(data: bytes) -> bool:
    """Whether it is a JSON object; of a large one no objects are made."""
    if len(data) <= WHOLE:
        return json_object(data) is not None
    return data.lstrip().startswith(b"{") and (_is_json(data) or _is_json(mended(data)))


def _is_json(data: bytes) -> bool:
    try:
        data.decode()  # of what it skips the decoder reads no text
        _SKIP(data)
    except (ValueError, RecursionError):
        return False
    return True


def mended(text: bytes) -> bytes:
    """The text with other values for those that `json` reads and the decoder does not.

    No number of what is read so is recorded, and no text but its id. Halves of surrogate pairs become
    letters: \\ud83d is \\uc83d.
    """
    text = text.removeprefix(BOM).replace(b"NaN", b"0").replace(b"Infinity", b"0")
    return text.replace(b"\\ud", b"\\uc").replace(b"\\uD", b"\\uC")


def holds_metadata(data: bytes) -> bool:
    """Whether it says how or why an answer ends, of its usage, or of an error."""
    for name, pattern in _METADATA:
        at = data.find(name)
        if at >= 0 and pattern.search(data, at) is not None:
            return True
    return False


def may_hold_metadata(block: bytes) -> bool:
    """The same of a block; of most events that is known without the search."""
    if holds_one(_NAMES_OF_METADATA, block):
        return holds_metadata(block)
    reasons = block.count(b'"finish_reason"')
    return reasons > 0 and reasons != block.count(b'"finish_reason":null') and holds_metadata(block)
