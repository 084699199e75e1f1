"""Vocabularies of tokenizers in every format that vLLM reads: tokens by file, for comparison alone.

What a file holds in full is hashed elsewhere; a file that cannot be parsed here has no vocabulary, and is no
error: its digest still names it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")  # a token in base64 and its rank, on each line
# In this order: the first that is there gives the vocabulary.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tekken.json", "vocab.txt")


def tokens_in(name: str, data: bytes) -> list[str | bytes]:
    """The tokens of one tokenizer file; empty: it holds none, or is of a format without a vocabulary."""
    try:
        if name.endswith(".json"):
            return tokens_of(json.loads(data))
        if name.endswith((".tiktoken", ".model")) and _TIKTOKEN.match(data):
            return [base64.b64decode(line.split()[0]) for line in data.splitlines() if line.strip()]
        if name.endswith(".txt"):
            return list(data.decode().splitlines())
        if name.endswith(".model"):
            return list(_sentencepiece(data))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return []
    return []


def tokens_of(value: Any) -> list[str | bytes]:
    """The tokens of a tokenizer file's JSON value; empty: it holds none."""
    try:
        return list(_of_json(value))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return []


def is_tokenizer(name: str) -> bool:
    """Whether a file of this name holds the vocabulary or the merges of a tokenizer."""
    path = Path(name)
    return (
        name in VOCABULARY_FILES
        or name in ("merges.txt", "vocab.bpe", "tokenizer.model")
        or (
            (path.suffix in (".model", ".tiktoken") or name.startswith(("tokenizer.model", "tekken")))
            and "/" not in name
        )
    )


def normal_tokenizer(value: Any) -> Any:
    """tokenizer.json with its merges in one spelling: older releases write pairs as one text."""
    model = value.get("model") if isinstance(value, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(merges := model.get("merges"), list):
        return value
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return {**value, "model": {**model, "merges": pairs}}


def _of_json(value: Any) -> Iterator[str | bytes]:
    if isinstance(value.get("vocab"), list):  # tekken
        yield from (base64.b64decode(entry["token_bytes"]) for entry in value["vocab"])
        return
    vocabulary = value["model"]["vocab"] if "model" in value else value
    yield from (
        (str(entry[0]) for entry in vocabulary) if isinstance(vocabulary, list) else map(str, vocabulary)
    )


def _sentencepiece(data: bytes) -> Iterator[str]:
    """The pieces of a serialised ModelProto: field 1, each with its text as field 1."""
    for number, piece in _fields(data):
        if number == 1:
            text = next((value for inner, value in _fields(piece) if inner == 1), None)
            if text is not None:
                yield text.decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the length-delimited fields of a protobuf message; others are skipped."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(data, position)
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("not a protobuf message")
        if position + size > len(data):
            raise ValueError("a field goes beyond the end")
        if kind == 2:
            yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
