"""What the router reads of a request's body: whether it streams, its keys, its conversation. Pure.

Only the named fields are decoded; the rest is skipped, so that a body costs little more than its bytes. A key
that is written twice counts as its last value, as in most servers.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from serving.router.continuable import is_continuable

OPENING_TURNS = 4096  # in which the first assistant turn is looked for
BODY_KEYS = ("prompt_cache_key", "safety_identifier", "user")  # then, of /v1/messages, metadata.user_id
_NOTHING = msgspec.Raw(b"null")
_ASSISTANT = b'"assistant"'


class BodyFacts(msgspec.Struct, frozen=True, gc=False):
    """Facts of one JSON object. Texts of users are in it, and are never recorded."""

    model: str | None = None
    streams: bool = False
    choices: int | None = 1  # answers that a stream has: `n` for each prompt; None: not known
    key: str | None = None  # the first of BODY_KEYS (and metadata.user_id) that is a text and not empty
    opening: str | None = (
        None  # digest of the conversation up to its first assistant turn; None: no such turn
    )
    continuable: bool = False  # a stream of it can be continued by another engine
    has_state: bool = False  # it names an earlier response or a conversation that a server keeps
    is_background: bool = False  # the answer only names a response that is made later


class _Fields(msgspec.Struct):
    model: msgspec.Raw = _NOTHING
    stream: msgspec.Raw = _NOTHING
    n: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    prompt_cache_key: msgspec.Raw = _NOTHING
    safety_identifier: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    previous_response_id: msgspec.Raw = _NOTHING
    conversation: msgspec.Raw = _NOTHING
    background: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING


class _Usual(msgspec.Struct, gc=False):
    """The same fields where they have their usual types, which most bodies have: read in one pass."""

    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    prompt: msgspec.Raw = _NOTHING
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    system: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    previous_response_id: msgspec.Raw = _NOTHING
    conversation: msgspec.Raw = _NOTHING
    background: bool | None = None
    metadata: msgspec.Raw = _NOTHING


class _Turn(msgspec.Struct):
    role: msgspec.Raw = _NOTHING


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = _NOTHING


_FIELDS = msgspec.json.Decoder(_Fields)
_USUAL = msgspec.json.Decoder(_Usual)
_TURN = msgspec.json.Decoder(_Turn)
_METADATA = msgspec.json.Decoder(_Metadata)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_BOM = b"\xef\xbb\xbf"  # engines pass over it at the start of a body


def read_facts(body: bytes, *, is_messages: bool = False) -> BodyFacts | None:
    """The facts of a body; None when it is malformed, nested too deep, or not a JSON object.

    is_messages: it is of Anthropic's API, where metadata.user_id names the user and the session.
    """
    try:
        usual = _USUAL.decode(body)
    except (ValueError, RecursionError):
        return _read_unusual(body.removeprefix(_BOM), is_messages=is_messages)
    streams = bool(usual.stream)
    return BodyFacts(
        usual.model,
        streams,
        _choices(1 if usual.n is None else usual.n, usual.prompt),
        usual.prompt_cache_key
        or usual.safety_identifier
        or usual.user
        or (_user_of(usual.metadata) if is_messages else None),
        # What names no assistant has no such turn: most bodies are not read a second time.
        _opening(usual) if _ASSISTANT in body else None,
        streams and is_continuable(body),
        _is_given(usual.previous_response_id) or _is_given(usual.conversation),
        bool(usual.background),
    )


def _read_unusual(body: bytes, *, is_messages: bool = False) -> BodyFacts | None:
    """The facts of any other body."""
    try:
        fields = _FIELDS.decode(body)
    except (ValueError, RecursionError):
        return None
    keys = (_text(fields.prompt_cache_key), _text(fields.safety_identifier), _text(fields.user))
    streams = bytes(fields.stream) != b"null" and bool(_value(fields.stream))
    return BodyFacts(
        model=_text(fields.model),
        streams=streams,
        choices=_choices(_value(fields.n) if _is_given(fields.n) else 1, fields.prompt),
        key=next((key for key in keys if key), _user_of(fields.metadata) if is_messages else None),
        opening=_opening(fields),
        continuable=streams and is_continuable(body),
        has_state=_is_given(fields.previous_response_id) or _is_given(fields.conversation),
        is_background=bool(_value(fields.background)),
    )


def _user_of(metadata: msgspec.Raw) -> str | None:
    """metadata.user_id of Anthropic's API; None: there is none, or it is empty or no text."""
    if metadata is _NOTHING or _first(metadata) != b"{":
        return None
    try:
        return _text(_METADATA.decode(metadata).user_id) or None
    except (ValueError, RecursionError):
        return None


def _value(raw: msgspec.Raw) -> Any:
    """A field's value; None when it cannot be read (half of a surrogate pair, a number beyond all limits)."""
    if raw is _NOTHING:
        return None
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        try:
            return json.loads(bytes(raw))
        except (ValueError, RecursionError):
            return None


def _first(raw: msgspec.Raw) -> bytes:
    """The first byte, which tells a value's type."""
    return bytes(memoryview(raw)[:1])


def _is_given(raw: msgspec.Raw) -> bool:
    return raw is not _NOTHING and bytes(raw) != b"null"


def _text(raw: msgspec.Raw) -> str | None:
    if raw is _NOTHING or _first(raw) != b'"':
        return None
    value = _value(raw)
    return value if isinstance(value, str) else None


def _choices(n: object, prompt: msgspec.Raw) -> int | None:
    """None where `n` is no count as JSON writes it: engines read 2.0 and "2" as they like."""
    if type(n) is not int or n < 1:
        return None
    if prompt is _NOTHING or _first(prompt) != b"[":
        return n
    try:
        prompts = _LIST.decode(prompt)
    except (ValueError, RecursionError):
        return None
    are_tokens = all(_first(one) not in (b'"', b"[") for one in prompts)
    return n if are_tokens else n * max(len(prompts), 1)


def _opening(fields: _Fields | _Usual) -> str | None:
    """Digest of everything up to the end of the first assistant turn; the model's name is no part of it."""
    turns = fields.messages if fields.messages is not _NOTHING else fields.input
    if turns is _NOTHING or _first(turns) != b"[":
        return None
    try:
        listed = _LIST.decode(turns)
    except (ValueError, RecursionError):
        return None
    for index, turn in enumerate(listed[:OPENING_TURNS]):
        try:
            is_assistant = bytes(_TURN.decode(turn).role) == _ASSISTANT
        except (ValueError, RecursionError):
            return None  # no engine takes it; half a million of them would hold up everybody
        if is_assistant:
            digest = hashlib.blake2b(digest_size=16)
            for part in (fields.system, *listed[: index + 1]):
                digest.update(_canonical(part))
                digest.update(b"\0")
            return digest.hexdigest()
    return None


def _canonical(raw: msgspec.Raw) -> bytes:
    """A value in one spelling, whatever blanks and order of keys the client wrote."""
    try:
        return msgspec.json.encode(msgspec.json.decode(raw), order="sorted")
    except (ValueError, RecursionError):
        return bytes(raw)
