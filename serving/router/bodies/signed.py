"""Whether the turns of a request hold a model's thinking that was signed. Pure.

Only the account that signed it can verify it; another answers 400. Engines of ours sign with a random text
and verify nothing. As Anthropic's API writes it, and as gateways put it into chats: LiteLLM
(`thinking_blocks`), OpenRouter (`reasoning_details`), Gemini (`thought_signature` of a call).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from serving.router.bodies.raw_values import NOTHING, first_byte, is_filled

# In a text their quotes are escaped. The first ends the names of Gemini's and of all others.
_WORDS = (b'signature"', b'"redacted_thinking"', b'"reasoning.encrypted"')
_SEALED = frozenset({b'"redacted_thinking"', b'"reasoning.encrypted"'})


class _Block(msgspec.Struct, gc=False):
    type: msgspec.Raw = NOTHING
    signature: msgspec.Raw = NOTHING
    data: msgspec.Raw = NOTHING  # of what is shown to nobody


class _Turn(msgspec.Struct, gc=False):
    content: msgspec.Raw = NOTHING
    thinking_blocks: msgspec.Raw = NOTHING
    reasoning_details: msgspec.Raw = NOTHING
    tool_calls: msgspec.Raw = NOTHING


class _Google(msgspec.Struct, gc=False):
    thought_signature: msgspec.Raw = NOTHING


class _Extra(msgspec.Struct, gc=False):
    google: _Google | None = None


class _Call(msgspec.Struct, gc=False):
    extra_content: _Extra | None = None


_Item = TypeVar("_Item")
_TURNS = msgspec.json.Decoder(list[_Turn])
_BLOCKS = msgspec.json.Decoder(list[_Block])
_CALLS = msgspec.json.Decoder(list[_Call])


def is_signed(body: bytes, turns: msgspec.Raw) -> bool:
    """True where one of the turns (`messages` or `input` of the body) holds signed thinking."""
    if not any(word in body for word in _WORDS):
        return False
    try:
        return any(_has_signature(turn) for turn in _TURNS.decode(turns))
    except (ValueError, RecursionError):
        return False  # no list of objects: no engine takes it


def _has_signature(turn: _Turn) -> bool:
    lists = (turn.content, turn.thinking_blocks, turn.reasoning_details)
    return any(_is_block(one) for raw in lists for one in _decoded(_BLOCKS, raw)) or any(
        call.extra_content is not None
        and call.extra_content.google is not None
        and is_filled(call.extra_content.google.thought_signature, b'"')
        for call in _decoded(_CALLS, turn.tool_calls)
    )


def _is_block(block: _Block) -> bool:
    return is_filled(block.signature, b'"') or (bytes(block.type) in _SEALED and is_filled(block.data, b'"'))


def _decoded(decoder: msgspec.json.Decoder[list[_Item]], raw: msgspec.Raw) -> Iterable[_Item]:
    if first_byte(raw) != b"[":
        return ()
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        return ()
