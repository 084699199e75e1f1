"""Whether the turns of a request hold what only the account that made it can read. Pure.

An endpoint keeps files and items by account and encrypts reasoning with a key of its own; any other answers
400 or 404. What a tool's schema or arguments call so is none of it.
"""

from __future__ import annotations

import msgspec

from serving.router.bodies.raw_values import NOTHING, READ_LIMIT, first_byte, holds_one, items_with

# In a text their quotes are escaped.
_FILE_ID, _ITEM = b'"file_id"', b'"item_reference"'
_WORDS = (_FILE_ID, b'"encrypted_content"', _ITEM, b'"audio"')


class _File(msgspec.Struct, gc=False):
    file_id: msgspec.Raw = NOTHING


class _Part(msgspec.Struct, gc=False):
    file_id: msgspec.Raw = NOTHING
    file: msgspec.Raw = NOTHING  # of chat completions
    source: msgspec.Raw = NOTHING  # of Anthropic's API


class _Turn(msgspec.Struct, gc=False):
    type: msgspec.Raw = NOTHING
    encrypted_content: msgspec.Raw = NOTHING
    content: msgspec.Raw = NOTHING
    output: msgspec.Raw = NOTHING  # of a function
    audio: msgspec.Raw = NOTHING  # that a model of chat completions spoke


class _ById(msgspec.Struct, gc=False):
    id: msgspec.Raw = NOTHING


_TURN = msgspec.json.Decoder(_Turn)
_PART = msgspec.json.Decoder(_Part)
_FILE = msgspec.json.Decoder(_File)
_BY_ID = msgspec.json.Decoder(_ById)


def names_kept(body: bytes, turns: msgspec.Raw) -> bool:
    """True where one of the turns (`input` or `messages` of the body) is encrypted reasoning, refers to an
    item, or names a file. What has too many turns and parts to tell counts as such."""
    if not holds_one(_WORDS, body):
        return False
    left = READ_LIMIT
    for turn in items_with(_WORDS, turns):
        left -= 1
        if left < 0:
            return True
        try:
            found = _TURN.decode(turn)
        except (ValueError, RecursionError):
            continue  # it hides no other turn
        if _is_kept(found):
            return True
        for listed in (found.content, found.output):
            for one in items_with((_FILE_ID,), listed):
                left -= 1
                if left < 0 or _names_file(one):
                    return True
    return False


def _is_kept(turn: _Turn) -> bool:
    is_item = bytes(turn.type) == _ITEM or _is_text(turn.encrypted_content)
    return is_item or names_by_id(turn.audio)


def names_by_id(raw: msgspec.Raw) -> bool:
    """Whether it is an object that is named by its id, as a stored prompt is."""
    try:
        return first_byte(raw) == b"{" and _is_text(_BY_ID.decode(raw).id)
    except (ValueError, RecursionError):
        return False


def _names_file(raw: bytes) -> bool:
    try:
        part = _PART.decode(raw)
        return _is_text(part.file_id) or _is_file(part.file) or _is_file(part.source)
    except (ValueError, RecursionError):
        return False


def _is_file(raw: msgspec.Raw) -> bool:
    return first_byte(raw) == b"{" and _is_text(_FILE.decode(raw).file_id)


def _is_text(raw: msgspec.Raw) -> bool:
    """Whether it is a text, and not an empty one."""
    return first_byte(raw) == b'"' and len(memoryview(raw)) > 2
