"""What is recorded of a whole JSON answer of any shape, without objects for all the rest. Pure.

An index job's answer is 1 MiB of numbers: making objects of them takes up to 0.4 s, passing over them 3 ms.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.router.answers.answer_events import BOM, json_object

SMALL = 4 << 10  # bytes of an answer, or of one of its fields, that is decoded whole
_ABSENT = msgspec.Raw(b"")


class _Inner(msgspec.Struct, gc=False):
    """`response` or `message` of an answer."""

    id: msgspec.Raw = _ABSENT
    stop_reason: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    incomplete_details: msgspec.Raw = _ABSENT


class _Answer(_Inner, gc=False):
    error: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    message: msgspec.Raw = _ABSENT
    delta: msgspec.Raw = _ABSENT
    choices: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    finish_reason: msgspec.Raw = _ABSENT
    index: msgspec.Raw = _ABSENT


_ANSWER = msgspec.json.Decoder(_Answer)
_INNER = msgspec.json.Decoder(_Inner)
_CHOICES = msgspec.json.Decoder(list[_Choice])


def outline_of(text: bytes) -> dict[str, Any] | None:
    """The answer's fields that are read, of the large ones those inside; None: it is no JSON object.

    Check: b'{"id":"a","data":[1]}' gives {'id': 'a', 'data': [1]}; with a million numbers, {'id': 'a'}.
    """
    if len(text) <= SMALL:
        return json_object(text)
    found = _decoded(text)
    if found is None:
        found = _decoded(_mended(text))
    if found is None:
        return None
    fields = _read(found)
    fields["type"], fields["delta"] = _value(found.type), _value(found.delta)
    is_large_error = len(memoryview(found.error)) > SMALL
    fields["error"] = True if is_large_error else _value(found.error)
    fields["choices"] = _choices(found.choices)
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


def _mended(text: bytes) -> bytes:
    """The text with other values for those that `json` reads and the decoder does not.

    No number of an answer like these is recorded, and no text but its id. Halves of surrogate pairs become
    letters: \\ud83d is \\uc83d.
    """
    text = text.removeprefix(BOM).replace(b"NaN", b"0").replace(b"Infinity", b"0")
    return text.replace(b"\\ud", b"\\uc").replace(b"\\uD", b"\\uC")


def _read(found: _Inner) -> dict[str, Any]:
    return {name: _value(getattr(found, name)) for name in _Inner.__struct_fields__}


def _read_inner(raw: msgspec.Raw) -> dict[str, Any] | None:
    try:
        return _read(_INNER.decode(raw))
    except (ValueError, RecursionError):
        return None  # absent, or no object


def _choices(raw: msgspec.Raw) -> list[dict[str, Any]] | None:
    """The choices that have a finish reason; None: there are no choices, or not of objects."""
    try:
        listed = _CHOICES.decode(raw)
    except (ValueError, RecursionError):
        return None
    finished = [one for one in listed if one.finish_reason is not _ABSENT]
    return [{"finish_reason": _value(one.finish_reason), "index": _index(one.index)} for one in finished]


def _index(raw: msgspec.Raw) -> Any:
    return 0 if raw is _ABSENT else _value(raw)


def _value(raw: msgspec.Raw) -> Any:
    """The value of a small field; None: it is large or absent."""
    if raw is _ABSENT or len(memoryview(raw)) > SMALL:
        return None
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None
