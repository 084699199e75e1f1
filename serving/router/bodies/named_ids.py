"""Ids of stored responses and files that a body names, wherever its turns, tools and prompt have them. Pure.

For `records/owners.py`: an id may be another client's. So nothing is taken from how a body is written: a name
may be spelled with escapes, and what `json` alone can read is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from serving.json_value import json_value
from serving.router.bodies.raw_values import NOTHING, first_byte, holds_one, items_with

VALUES_LIMIT = 20_000  # that are looked at; each takes 0.1 us
_WORDS = (b"file_id", rb"\u00")  # as it is written, or with one letter escaped


def named_ids(
    body: bytes, response: msgspec.Raw, turns: msgspec.Raw, others: Iterable[msgspec.Raw]
) -> tuple[str, ...] | None:
    """The id of the response that it goes on from, and of each file; None: there are too many values to tell.

    turns: `messages` or `input`.   others: `tools`, `prompt` and the like.
    """
    before = json_value(bytes(response)) if first_byte(response) == b'"' else None
    found = [before] if isinstance(before, str) and before else []
    if holds_one(_WORDS, body):
        listed = [*items_with(_WORDS, turns), *(bytes(one) for one in others if one is not NOTHING)]
        left: list[Any] = [json_value(one) for one in listed if holds_one(_WORDS, one)]
        for _ in range(VALUES_LIMIT):
            if not left:
                break
            value = left.pop()
            if isinstance(value, dict):
                found += _files_of(value)
                left += value.values()
            elif isinstance(value, list):
                left += value
        if left:
            return None
    return tuple(found)


def _files_of(value: dict[str, Any]) -> list[str]:
    one, several = value.get("file_id"), value.get("file_ids")
    named = [one, *several] if isinstance(several, list) else [one]
    return [one for one in named if isinstance(one, str) and one]


class _Batch(msgspec.Struct, gc=False):
    input_file_id: msgspec.Raw = NOTHING


_BATCH = msgspec.json.Decoder(_Batch)


def file_of_batch(body: bytes) -> tuple[str, ...] | None:
    """The file that a batch is made of; None: the body cannot be read."""
    try:
        value = json_value(bytes(_BATCH.decode(body).input_file_id))
    except (ValueError, RecursionError):
        return None
    return (value,) if isinstance(value, str) else ()
