"""What is recorded of a JSON answer of any shape, or of a large event: no objects are made of the rest. Pure.

An index job's answer is 1 MiB of numbers: making objects of them takes up to 0.4 s, passing over them 3 ms.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.json_value import decoded
from serving.router.answers.answer_events import WHOLE, json_object, mended
from serving.router.bodies.raw_values import first_byte

SMALL = 4 << 10  # bytes of an answer, or of one of its fields, that is decoded whole
OBJECTS_LIMIT = 16 << 10  # opening braces of an answer whose choices are read
CHOICES_LIMIT = 256  # of a large event
LARGE = "..."  # in place of a value that is not read: it is not empty
_ABSENT = msgspec.Raw(b"")


class _Inner(msgspec.Struct, gc=False):
    """`response` or `message` of an answer."""

    id: msgspec.Raw = _ABSENT
    stop_reason: msgspec.Raw = _ABSENT
    finish_reason: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    incomplete_details: msgspec.Raw = _ABSENT


class _Answer(_Inner, gc=False):
    error: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    status: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT
    # Of an event.
    created: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT
    content_block: msgspec.Raw = _ABSENT
    item: msgspec.Raw = _ABSENT
    part: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    finish_reason: msgspec.Raw = _ABSENT
    index: msgspec.Raw = _ABSENT


class _EventChoice(_Choice, gc=False):
    stop_reason: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT


_ANSWER = msgspec.json.Decoder(_Answer)
_INNER = msgspec.json.Decoder(_Inner)
_CHOICES = msgspec.json.Decoder(list[_Choice])
_EVENT_CHOICES = msgspec.json.Decoder(list[_EventChoice])


def outline_of(text: bytes) -> dict[str, Any] | None:
    """The answer's fields that are read, of the large ones those inside; None: it is no JSON object.

    Check: b'{"id":"a","data":[1]}' gives {'id': 'a', 'data': [1]}; with a million numbers, {'id': 'a'}.
    """
    if len(text) <= SMALL:
        return json_object(text)
    found = _decoded(text)
    if found is None:
        found = _decoded(mended(text))
    if found is None:
        return None
    more = {"status": _value(found.status), "delta": _value(found.delta)}
    return {**_outlined(found), **more, "choices": _choices(found.choices)}


def event_of(data: bytes, *, is_exact: bool = False) -> dict[str, Any] | None:
    """The JSON object of an event; of a large one the fields that are read, with LARGE for lists and objects
    that are not. is_exact: no text of it may be mended.

    Check: a delta of 1 MiB of lists gives {'delta': LARGE, ...}.
    """
    if len(data) <= WHOLE:
        return json_object(data)
    found = _decoded(data)
    if found is None and not is_exact:
        found = _decoded(mended(data))
    if found is None:
        return None
    fields = _outlined(found)
    for name in ("created", "model", "delta", "content_block", "item", "part"):
        fields[name] = _part(getattr(found, name))
    fields["choices"] = _choices_of_event(found.choices)
    return fields


def has_many_objects(text: bytes) -> bool:
    """Whether making one of each choice could take long: one takes 0.2 us, in two bytes."""
    return len(text) > OBJECTS_LIMIT and text.count(b"{") > OBJECTS_LIMIT


def _outlined(found: _Answer) -> dict[str, Any]:
    """What is read alike of an answer and of an event."""
    fields = _read(found)
    fields["type"] = _value(found.type)
    is_large_error = len(memoryview(found.error)) > SMALL
    fields["error"] = True if is_large_error else _value(found.error)
    for name, inner in (("response", found.response), ("message", found.message)):
        fields[name] = _read_inner(inner)
    return fields


def _decoded(text: bytes) -> _Answer | None:
    try:
        if not text.isascii():
            text.decode()  # of fields that it skips the decoder reads no text
        return _ANSWER.decode(text)
    except (ValueError, RecursionError):
        return None


def _read(found: _Inner) -> dict[str, Any]:
    return {name: _value(getattr(found, name)) for name in _Inner.__struct_fields__}


def _read_inner(raw: msgspec.Raw) -> dict[str, Any] | None:
    try:
        return _read(_INNER.decode(raw))
    except (ValueError, RecursionError):
        return None  # absent, or no object


def _choices(raw: msgspec.Raw) -> list[dict[str, Any]] | None:
    """The choices that have a finish reason; None: there are no choices, or not of objects, or too many."""
    if has_many_objects(bytes(raw)):
        return None
    try:
        listed = _CHOICES.decode(raw)
    except (ValueError, RecursionError):
        return None
    finished = [one for one in listed if one.finish_reason is not _ABSENT]
    return [{"finish_reason": _value(one.finish_reason), "index": _index(one.index)} for one in finished]


def _choices_of_event(raw: msgspec.Raw) -> list[dict[str, Any]] | str | None:
    if has_many_objects(bytes(raw)):
        return LARGE
    try:
        listed = _EVENT_CHOICES.decode(raw)[:CHOICES_LIMIT]
    except (ValueError, RecursionError):
        return None
    names = _EventChoice.__struct_fields__
    given = ({name: getattr(one, name) for name in names} for one in listed)
    return [{name: _part(raw) for name, raw in one.items() if raw is not _ABSENT} for one in given]


def _part(raw: msgspec.Raw) -> Any:
    """A value that is small, or a text; LARGE: it is neither. None: it is absent."""
    is_text = raw is not _ABSENT and first_byte(raw) == b'"'
    if raw is _ABSENT or (len(memoryview(raw)) > SMALL and not is_text):
        return None if raw is _ABSENT else LARGE
    try:
        return decoded(raw)
    except (ValueError, RecursionError):
        return None


def _index(raw: msgspec.Raw) -> Any:
    return 0 if raw is _ABSENT else _value(raw)


def _value(raw: msgspec.Raw) -> Any:
    """The value of a small field; None: it is large or absent."""
    if raw is _ABSENT or len(memoryview(raw)) > SMALL:
        return None
    try:
        return decoded(raw)
    except (ValueError, RecursionError):
        return None
