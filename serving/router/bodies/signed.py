"""Whether the turns of a request hold a model's thinking that was signed. Pure.

Only the account that signed it can verify it; another answers 400. Engines of ours sign with a random text
and verify nothing. As Anthropic's API writes it, and as gateways put it into chats: LiteLLM
(`thinking_blocks`), OpenRouter (`reasoning_details`), Gemini (`thought_signature` of a call).
"""

from __future__ import annotations

import msgspec

from serving.router.bodies.raw_values import NOTHING, READ_LIMIT, holds_one, is_filled, items_with

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


_TURN = msgspec.json.Decoder(_Turn)
_BLOCK = msgspec.json.Decoder(_Block)
_CALL = msgspec.json.Decoder(_Call)


def is_signed(body: bytes, turns: msgspec.Raw) -> bool:
    """True where one of the turns (`messages` or `input` of the body) holds signed thinking.

    What has too many turns, blocks and calls to tell counts as such.
    """
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
        for listed in (found.content, found.thinking_blocks, found.reasoning_details, found.tool_calls):
            is_this = _is_call if listed is found.tool_calls else _is_block
            for one in items_with(_WORDS, listed):
                left -= 1
                if left < 0 or is_this(one):
                    return True
    return False


def _is_block(raw: bytes) -> bool:
    try:
        block = _BLOCK.decode(raw)
    except (ValueError, RecursionError):
        return False
    return is_filled(block.signature, b'"') or (bytes(block.type) in _SEALED and is_filled(block.data, b'"'))


def _is_call(raw: bytes) -> bool:
    try:
        extra = _CALL.decode(raw).extra_content
    except (ValueError, RecursionError):
        return False
    return extra is not None and extra.google is not None and is_filled(extra.google.thought_signature, b'"')
