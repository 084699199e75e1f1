"""Whether an answer of embeddings, ranks, scores or classes holds any. Pure.

No objects are made of a large answer: its bytes are searched for the values that would be vectors or scores.
A text in it cannot look like one, for its quotation marks are escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from serving.json_value import json_value
from serving.router.answers.answer_content import LABELS
from serving.router.answers.answer_events import mended
from serving.router.bodies.raw_values import NOTHING, first_byte

SMALL: Final = 4 << 10  # bytes of an answer that may hold nothing; a larger one holds something
_LOOKED_AT = 256  # vectors and scores of one answer
# What an answer has that gives no values.
_LABELS = LABELS | {"created", "index", "meta", "metadata", "model", "timings", "usage", "warnings"}
_VECTORS = (b'"embedding"', b'"embeddings"', b'"float"', b'"data"', b'"probs"')
_SCORES = (b'"score"', b'"relevance_score"')
_NO_NUMBERS = re.compile(rb"\s*:\s*\[\s*(?:\[\s*)?(?:null|NaN)")
# In base64 a vector that begins with NaN, of either sign.
_NO_VECTOR = re.compile(rb'\s*:\s*(?:null|\[\s*\]|""|"AADA[f/][w-z0-9+/])')
_NO_NUMBER = re.compile(rb"\s*:\s*(?:null|NaN)")
_NUMBER = re.compile(rb"\s*:\s*-?[0-9]")


def lacks_values(text: bytes) -> bool:
    """Whether a whole JSON answer has no value, a vector that begins with none, or scores that are all none.

    Check: b'{"data":[]}' and b'{"data":[{"embedding":[null,null]}]}' do; b'{"scores":[0]}' does not.
    """
    if len(text) <= SMALL and not _holds_values(json_value(text)):
        return True
    if any(_NO_VECTOR.match(text, end) for end in _ends_of(_VECTORS[0], text)):
        return True
    if any(_NO_NUMBERS.match(text, end) for name in _VECTORS for end in _ends_of(name, text)):
        return True
    scores = [end for name in _SCORES for end in _ends_of(name, text)]
    has_none = any(_NO_NUMBER.match(text, end) for end in scores)
    return has_none and not any(_NUMBER.match(text, end) for end in scores)


class _Listed(msgspec.Struct, gc=False):
    """Where an answer has its vectors or scores, whatever they are."""

    data: msgspec.Raw = NOTHING
    embeddings: msgspec.Raw = NOTHING
    scores: msgspec.Raw = NOTHING


_LISTED = msgspec.json.Decoder(_Listed)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_BY_TYPE = msgspec.json.Decoder(dict[str, msgspec.Raw])


def lacks_some(text: bytes, count: int) -> bool:
    """Whether a whole JSON answer has fewer than `count` vectors or scores; False where that is not known.

    Check: b'{"data":[{"embedding":[1]}]}' lacks one of 2.
    """
    if count < 2:
        return False
    for one in (text, mended(text)):
        try:
            return 0 < _most(one) < count
        except (ValueError, RecursionError):
            continue
    return False


def _most(text: bytes) -> int:
    """The values of the longest list of an answer; 0: it has none that is known. Raises ValueError."""
    if text.lstrip().startswith(b"["):
        return len(_LIST.decode(text))
    found = _LISTED.decode(text)
    lists = [found.data, found.scores, found.embeddings]
    if first_byte(found.embeddings) == b"{":
        lists += _BY_TYPE.decode(found.embeddings).values()
    return max(len(_LIST.decode(one)) if first_byte(one) == b"[" else 0 for one in lists)


def _ends_of(name: bytes, text: bytes) -> Iterator[int]:
    """Where the first fields of this name end."""
    at = 0
    for _ in range(_LOOKED_AT):
        if (found := text.find(name, at)) < 0:
            return
        at = found + len(name)
        yield at


def _holds_values(value: Any) -> bool:
    """Whether there is a number or a text in it that is no label. Not recursive: depth is the engine's."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest += [inner for name, inner in one.items() if name not in _LABELS]
        elif isinstance(one, list):
            rest += one
        elif one is not None and one != "":
            return True
    return False
