"""What the router reads of a request's body: whether it streams, its keys, its conversation. Pure.

Only the named fields are decoded; the rest is skipped, so that a body costs little more than its bytes. A key
that is written twice counts as its last value, as in most servers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from serving.json_value import json_value
from serving.router.bodies.continuable import is_continuable
from serving.router.bodies.kept import names_by_id, names_kept
from serving.router.bodies.named_ids import named_ids
from serving.router.bodies.raw_values import NOTHING, first_byte, holds_one
from serving.router.bodies.reserved import ReservedFields, reserved_in
from serving.router.bodies.signed import is_signed
from serving.router.bodies.tools import names_container, read_tools

KEY_LIMIT = 512  # characters of a key; a longer one counts as its digest, for it is kept with the request
MODEL_LIMIT = 1024  # characters of a model's name; no service or endpoint has a longer one
ONE_SPELLING = 32 << 10  # bytes; a longer opening is digested as it is written, for decoding costs more
OPENING_TURNS = 4096  # in which the first assistant turn is looked for
BODY_KEYS = ("prompt_cache_key", "safety_identifier", "user")  # then, of /v1/messages, metadata.user_id
_ASSISTANT = b'"assistant"'
_REASONING, _CALL = b'"reasoning"', b'_call"'  # types of items of /v1/responses that a model made; no role
_OF_MODEL = (_ASSISTANT, _CALL, _REASONING)


class BodyFacts(msgspec.Struct, frozen=True, gc=False):
    """Facts of one JSON object. Texts of users are in it, and are never recorded."""

    model: str | None = None  # MODEL_LIMIT characters at most
    streams: bool = False
    choices: int | None = 1  # answers that a stream has: `n` for each prompt; None: not known
    # The first of BODY_KEYS (and metadata.user_id) that is a text and not empty; beyond KEY_LIMIT its digest.
    key: str | None = None
    opening: str | None = None  # digest of the conversation to the model's first turn; None: it has none
    continuable: bool = False  # a stream of it can be continued by another engine
    has_state: bool = False  # it names an earlier response or a conversation that a server keeps
    names_kept: bool = False  # it holds what only the account that made it can read (`kept.py`)
    is_background: bool = False  # the answer only names a response that is made later
    runs_tools: bool = False  # the server itself runs a tool (`tools.py`)
    stores: bool = False  # it asks for the answer to be stored; a response that says nothing of it does not
    is_signed: bool = False  # it holds thinking that only who signed it can verify (`signed.py`)
    is_unread: bool = False  # it could not be read, so that it may be anything
    asks_whole: bool = False  # it is read and asks for no stream, nor for a response that is made later
    # Of stored responses and files that it names (`named_ids.py`); None: there are too many values to tell.
    named_ids: tuple[str, ...] | None = ()
    reserved: frozenset[str] = frozenset()  # names of fields that harm others (`reserved.py`)

    @property
    def is_once(self) -> bool:
        """Whether a second one would make, do or store something twice, for all that is known."""
        return self.is_background or self.runs_tools or self.stores or self.is_unread


class _Parts(ReservedFields, gc=False):
    """Fields that are read further only where that is needed."""

    prompt: msgspec.Raw = NOTHING
    system: msgspec.Raw = NOTHING
    messages: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING
    previous_response_id: msgspec.Raw = NOTHING
    conversation: msgspec.Raw = NOTHING
    metadata: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING
    mcp_servers: msgspec.Raw = NOTHING  # of Anthropic's API, as the next
    container: msgspec.Raw = NOTHING


class _Usual(_Parts, gc=False):
    """Fields of their usual types, which most bodies have: read in one pass."""

    model: str | None = None
    stream: bool | None = None
    n: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    background: bool | None = None
    store: bool | None = None


class _Any(_Parts, gc=False):
    """The same fields of whatever types."""

    model: msgspec.Raw = NOTHING
    stream: msgspec.Raw = NOTHING
    n: msgspec.Raw = NOTHING
    prompt_cache_key: msgspec.Raw = NOTHING
    safety_identifier: msgspec.Raw = NOTHING
    user: msgspec.Raw = NOTHING
    background: msgspec.Raw = NOTHING
    store: msgspec.Raw = NOTHING


class _Turn(msgspec.Struct):
    role: msgspec.Raw = NOTHING
    type: msgspec.Raw = NOTHING


class _Metadata(msgspec.Struct):
    user_id: msgspec.Raw = NOTHING


_USUAL = msgspec.json.Decoder(_Usual)
_ANY = msgspec.json.Decoder(_Any)
_TURN = msgspec.json.Decoder(_Turn)
_METADATA = msgspec.json.Decoder(_Metadata)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
# A number of many digits takes 8 us to become a float, a hundred times as long as any other value.
_AS_WRITTEN = msgspec.json.Decoder(float_hook=str)
_BOM = b"\xef\xbb\xbf"  # engines pass over it at the start of a body


def read_facts(body: bytes, *, is_messages: bool = False) -> BodyFacts | None:
    """The facts of a body; None when it is malformed, nested too deep, or not a JSON object.

    is_messages: it is of Anthropic's API, where metadata.user_id names the user and the session.
    """
    try:
        fields = _USUAL.decode(body)
    except (ValueError, RecursionError):
        return _read_unusual(body.removeprefix(_BOM), is_messages=is_messages)
    return _facts(fields, 1 if fields.n is None else fields.n, body, is_messages=is_messages)


def _read_unusual(body: bytes, *, is_messages: bool = False) -> BodyFacts | None:
    """The facts of any other body."""
    try:
        found = _ANY.decode(body)
    except (ValueError, RecursionError):
        return None
    parts: dict[str, Any] = {name: getattr(found, name) for name in _Parts.__struct_fields__}
    fields = _Usual(
        **parts,
        model=_text(found.model),
        stream=bool(_value(found.stream)),
        prompt_cache_key=_text(found.prompt_cache_key),
        safety_identifier=_text(found.safety_identifier),
        user=_text(found.user),
        background=bool(_value(found.background)),
        store=bool(_value(found.store)),
    )
    n = _value(found.n) if _is_given(found.n) else 1
    return _facts(fields, n, body, is_messages=is_messages)


def _facts(fields: _Usual, n: object, body: bytes, *, is_messages: bool) -> BodyFacts:
    """The facts that these fields of the body are. n: the value of `n`; 1: it is absent."""
    streams = bool(fields.stream)
    key = fields.prompt_cache_key or fields.safety_identifier or fields.user
    runs_tools, names_more = (False, False) if fields.tools is NOTHING else read_tools(fields.tools)
    if fields.prompt is not NOTHING and names_by_id(
        fields.prompt
    ):  # a stored one, which has tools of its own
        runs_tools = names_more = True
    if fields.container is not NOTHING:
        names_more = names_more or names_container(fields.container)
    if fields.mcp_servers is not NOTHING:
        runs_tools = runs_tools or first_byte(fields.mcp_servers) == b"["
    turns = fields.messages if fields.messages is not NOTHING else fields.input
    return BodyFacts(
        fields.model[:MODEL_LIMIT] if fields.model is not None else None,
        streams,
        _choices(n, fields.prompt),
        _bounded(key or (_user_of(fields.metadata) if is_messages else None)),
        # What holds none of these has no such turn: most bodies are not read a second time.
        _opening(fields) if holds_one(_OF_MODEL, body) else None,
        streams and is_continuable(body),
        _names_state(fields.previous_response_id) or _names_state(fields.conversation),
        names_more or names_kept(body, turns),
        bool(fields.background),
        runs_tools,
        bool(fields.store),
        is_signed(body, turns),
        asks_whole=not (streams or fields.background),
        named_ids=named_ids(body, fields.previous_response_id, turns, _with_files(fields, turns)),
        reserved=reserved_in(fields),
    )


def _with_files(fields: _Parts, turns: msgspec.Raw) -> tuple[msgspec.Raw, ...]:
    """What may name files, beside the turns."""
    input = NOTHING if turns is fields.input else fields.input  # with `messages` beside it
    return fields.tools, fields.container, fields.prompt, fields.system, input


def _bounded(key: str | None) -> str | None:
    """The key, or the digest of a long one."""
    if key is None or len(key) <= KEY_LIMIT:
        return key
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _user_of(metadata: msgspec.Raw) -> str | None:
    """metadata.user_id of Anthropic's API; None: there is none, or it is empty or no text."""
    if metadata is NOTHING or first_byte(metadata) != b"{":
        return None
    try:
        return _text(_METADATA.decode(metadata).user_id) or None
    except (ValueError, RecursionError):
        return None


def _value(raw: msgspec.Raw) -> Any:
    """A field's value; None when it cannot be read (half of a surrogate pair, a number beyond all limits)."""
    if raw is NOTHING:
        return None
    if first_byte(raw) in (b"[", b"{"):  # where none belongs: only whether it is empty counts
        return bytes(memoryview(raw)[1:-1]).strip()
    return json_value(bytes(raw))


def _is_given(raw: msgspec.Raw) -> bool:
    return raw is not NOTHING and bytes(raw) != b"null"


def _names_state(raw: msgspec.Raw) -> bool:
    """Whether it is an id or an object with one. Some clients send the field always, empty."""
    return raw is not NOTHING and (bool(_text(raw)) or names_by_id(raw))


def _text(raw: msgspec.Raw) -> str | None:
    if raw is NOTHING or first_byte(raw) != b'"':
        return None
    value = _value(raw)
    return value if isinstance(value, str) else None


def _choices(n: object, prompt: msgspec.Raw) -> int | None:
    """None where `n` is no count as JSON writes it: engines read 2.0 and "2" as they like."""
    if type(n) is not int or n < 1:
        return None
    if prompt is NOTHING or first_byte(prompt) != b"[":
        return n
    try:
        prompts = _LIST.decode(prompt)
    except (ValueError, RecursionError):
        return None
    are_tokens = all(first_byte(one) not in (b'"', b"[") for one in prompts)
    return n if are_tokens else n * max(len(prompts), 1)


def _opening(fields: _Parts) -> str | None:
    """Digest of everything up to the end of the model's first turn; its name is no part of it."""
    turns = fields.messages if fields.messages is not NOTHING else fields.input
    if turns is NOTHING or first_byte(turns) != b"[":
        return None
    try:
        listed = _LIST.decode(turns)
    except (ValueError, RecursionError):
        return None
    for index, turn in enumerate(listed[:OPENING_TURNS]):
        try:
            is_assistant = _is_of_model(_TURN.decode(turn))
        except (ValueError, RecursionError):
            return None  # no engine takes it; half a million of them would hold up everybody
        if is_assistant:
            digest = hashlib.blake2b(digest_size=16)
            parts = (fields.system, *listed[: index + 1])
            is_short = sum(len(memoryview(part)) for part in parts) <= ONE_SPELLING
            for part in parts:
                digest.update(_canonical(part) if is_short else bytes(part))
                digest.update(b"\0")
            return digest.hexdigest()
    return None


def _is_of_model(turn: _Turn) -> bool:
    if turn.role is not NOTHING:
        return bytes(turn.role) == _ASSISTANT
    kind = bytes(turn.type)
    return kind == _REASONING or kind.endswith(_CALL)


def _canonical(raw: msgspec.Raw) -> bytes:
    """A value in one spelling, whatever blanks and order of keys the client wrote."""
    try:
        return msgspec.json.encode(_AS_WRITTEN.decode(raw), order="sorted")
    except (ValueError, RecursionError):
        return bytes(raw)
