"""What a request says of the answer that it may be given: whether of nothing, or of events. Pure."""

from __future__ import annotations

import re

import msgspec

from serving.router.bodies.raw_values import NOTHING, first_byte
from serving.router.headers import coding_of, value_of
from serving.router.types import Request

_EMPTY_LIST = re.compile(rb"\[\s*\]")
_EMPTY_TEXT = b'""'
# Texts of one request that are counted: of each a small object is made.
COUNTED_LIMIT = 2048
_LIMIT = b'threshold"'  # below it some servers leave ranks out, perhaps all


class _Fields(msgspec.Struct, gc=False):
    """What vectors and scores are made of, by the name that each API gives it."""

    input: msgspec.Raw = NOTHING
    texts: msgspec.Raw = NOTHING
    text_1: msgspec.Raw = NOTHING
    text_2: msgspec.Raw = NOTHING


_FIELDS = msgspec.json.Decoder(_Fields)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_SCORED = ("text_1", "text_2")
_COUNTED = {
    **dict.fromkeys(("/v1/embeddings", "/pooling", "/classify"), ("input",)),
    **dict.fromkeys(("/v1/score", "/score"), _SCORED),
    "/v2/embed": ("texts",),
}


def takes_events(request: Request) -> bool:
    """Whether a request that does not ask for a stream in its body may do so elsewhere, or takes one."""
    accepted = value_of(request.headers, b"accept") or ""
    return "stream" in request.target.query or "text/event-stream" in accepted.lower()


def gives_input(request: Request) -> bool:
    """Whether a request for embeddings, ranks, scores or classes gives something to make them of.

    False where that is not known: of a compressed or very large body, and of one in which any list or text
    is empty, or that names a threshold. Such may be answered with nothing."""
    body = request.body
    if not isinstance(body, bytes) or coding_of(value_of(request.headers, b"content-encoding") or ""):
        return False
    return not (_EMPTY_TEXT in body or _LIMIT in body or _EMPTY_LIST.search(body))


def inputs_of(request: Request) -> int:
    """Of how many texts a request asks for vectors or scores, one each; 0: not known.

    A list of numbers is one text, by its tokens. Of two lists that are scored the longer one counts. Ranks
    are given by their index, of the best alone.
    """
    names, body = _COUNTED.get(request.target.path), request.body
    if names is None or not isinstance(body, bytes):
        return 0
    try:
        fields = _FIELDS.decode(body)
        counts = [_count(getattr(fields, name)) for name in names]
    except (ValueError, RecursionError):
        return 0
    return max(counts) if all(counts) else 0


def _count(raw: msgspec.Raw) -> int:
    """The texts in a field; 0: not known. Raises ValueError."""
    if (kind := first_byte(raw)) != b"[":
        return 1 if kind == b'"' else 0
    text = bytes(raw)
    first = text[1:].lstrip()[:1]
    if first.isdigit():
        return 1
    if first not in (b'"', b"[") or text.count(first) > COUNTED_LIMIT * (2 if first == b'"' else 1) + 1:
        return 0
    listed = _LIST.decode(raw)
    return len(listed) if all(first_byte(one) == first for one in listed) else 0
