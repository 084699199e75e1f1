"""Which requests another engine can continue from the token ids of an answer so far. Pure.

A list of what can be, not of what cannot: a field that is unknown here may change an answer, or how it is
taken apart, and the request is then held back on the canary until it is whole (`exchange.py`).

A field is listed when the continuation does not depend on it, or when it is sent along (`SENT`) and means the
same there. `repetition_penalty` does: engines apply it to the prompt and the answer alike, and the answer so
far is part of the continuation's prompt. The other penalties count the answer alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from serving.router.bodies.raw_values import first_byte

BODY_LIMIT = 8 << 20  # bytes; of a longer one every step of a takeover would hold up all other streams
TURNS_LIMIT = 4096  # of a chat; the parts of each turn are read one by one
PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
SENT = (
    *(
        "model",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "stop_token_ids",
    ),
    *("skip_special_tokens", "spaces_between_special_tokens", "priority", "cache_salt", "session_id", "user"),
)
# Of a chat, what its prompt is made of: sent to /tokenize.
TEMPLATE = (
    *("model", "messages", "add_generation_prompt", "continue_final_message", "add_special_tokens"),
    *("chat_template", "chat_template_kwargs"),
)
LIMITS = ("max_completion_tokens", "max_tokens")
_OTHERS = (
    *("prompt", "stream", "stream_options", "seed", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "request_id", "parallel_tool_calls"),
)
_CONTINUED = frozenset((*SENT, *TEMPLATE, *LIMITS, *_OTHERS))
_NONE, _FALSE, _ZERO, _ONE = (b"null",), (b"false", b"null"), (b"0", b"0.0", b"null"), (b"1", b"null")
# What these fields are where they have no effect.
_NEUTRAL: dict[str, tuple[bytes, ...]] = {
    **dict.fromkeys(("n", "best_of"), _ONE),
    "length_penalty": (*_ONE, b"1.0"),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_tokens", "top_logprobs"), _ZERO),
    **dict.fromkeys(("logprobs", "echo", "return_token_ids", "use_beam_search"), _FALSE),
    **dict.fromkeys(("stop", "tools", "functions", "bad_words"), (b"[]", b"null")),
    **dict.fromkeys(("suffix", "prompt_logprobs", "allowed_token_ids", "structured_outputs"), _NONE),
    "logit_bias": (b"{}", b"null"),
    "tool_choice": (b'"none"', b'"auto"', b"null"),
    "response_format": (b'{"type":"text"}', b'{"type": "text"}', b"null"),
    "modalities": (b'["text"]', b"null"),
}


class _Turn(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw(b"null")


class _Part(msgspec.Struct, gc=False):
    type: msgspec.Raw = msgspec.Raw(b"null")


_OF_IDS = b"0123456789 \t\r\n"  # beside commas, what a list of them is written with
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TURNS = msgspec.json.Decoder(list[_Turn])
_PARTS = msgspec.json.Decoder(list[_Part])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def fields_of(body: bytes) -> Mapping[str, msgspec.Raw]:
    """The fields of a body, undecoded. Raises ValueError, RecursionError."""
    return _FIELDS.decode(body)


def is_continuable(body: bytes) -> bool:
    """True when a stream that answers this body can be continued from its token ids."""
    if len(body) > BODY_LIMIT:
        return False
    try:
        fields = _FIELDS.decode(body)
        for name, value in fields.items():
            if name not in _CONTINUED and bytes(value) not in _NEUTRAL.get(name, ()):
                return False
        if "messages" in fields:
            return "prompt" not in fields and _is_text(fields["messages"])
        return "prompt" in fields and _is_one(fields["prompt"])
    except (ValueError, RecursionError):
        return False


def _is_text(messages: msgspec.Raw) -> bool:
    """True when every part of every turn is text, and there are not too many turns to tell."""
    turns = _TURNS.decode(messages)
    if len(turns) > TURNS_LIMIT:
        return False
    for turn in turns:
        if bytes(memoryview(turn.content)[:1]) != b"[":
            continue
        if any(bytes(part.type) != b'"text"' for part in _PARTS.decode(turn.content)):
            return False
    return True


def _is_one(prompt: msgspec.Raw) -> bool:
    """True for one text, alone or in a list, or the ids of one."""
    return one_text(prompt) is not None or bool(count_ids(prompt))


def one_text(prompt: msgspec.Raw) -> msgspec.Raw | None:
    """The one text that a prompt is, as it is written; None: it is several, or none."""
    if first_byte(prompt) == b'"':
        return prompt
    if first_byte(prompt) != b"[" or bytes(memoryview(prompt)[1:]).lstrip()[:1] != b'"':
        return None
    parts = _LIST.decode(prompt)
    return parts[0] if len(parts) == 1 else None


def count_ids(raw: msgspec.Raw) -> int | None:
    """How many token ids a list holds; None: it holds something else. No object is made of any.

    Check: b'[1, 2]' gives 2, b'[1.0]' and b'[-1]' None.
    """
    text = bytes(raw)
    kept = text.translate(None, _OF_IDS)
    if kept != b"[" + b"," * (len(kept) - 2) + b"]":
        return None
    return len(kept) - 1 if len(kept) > 2 or text[1:-1].strip() else 0
