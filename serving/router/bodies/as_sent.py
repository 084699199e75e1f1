"""Facts of a body as vLLM reads it: by its bytes, whatever its content type and its compression say. Pure.

vLLM decodes no compression, and Python's `json` reads what no other reader here takes: UTF-16 and UTF-32, a
byte order mark, NaN. What guards other clients must see what the engine sees.
"""

from __future__ import annotations

import json
from typing import Any

from serving.router.bodies.body_facts import BodyFacts, read_facts

IDS_LIMIT = 256 << 10  # bytes: it is read in the event loop


class Unclear(Exception):
    """An engine would read an object of which the facts cannot be told."""


def facts_as_sent(body: bytes, *, is_messages: bool) -> BodyFacts | None:
    """The facts of a body as it came; None: to an engine it is no JSON object. Raises Unclear."""
    facts = read_facts(body, is_messages=is_messages)
    if facts is not None:
        return facts
    try:
        value: Any = json.loads(body, parse_constant=_nothing)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    facts = read_facts(json.dumps(value).encode(), is_messages=is_messages)
    if facts is None:
        raise Unclear
    return facts


def ids_as_sent(body: bytes, encoding: str) -> tuple[str, ...] | None:
    """The ids that a body of a route names which is not drawn (`named_ids.py`); None: it cannot be told.

    encoding: how it is compressed; empty: it is not.
    """
    if encoding or len(body) > IDS_LIMIT:
        return None
    try:
        facts = facts_as_sent(body, is_messages=False)
    except Unclear:
        return None
    return () if facts is None else facts.named_ids


def _nothing(word: str) -> None:
    """NaN and the infinities."""
