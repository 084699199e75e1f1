"""Whether a JSON value conforms to a JSON Schema that a client wrote. Pure, bounded, and offline.

Rules:
1. No reference is fetched: a schema is a client's, and could name any address.
2. Patterns are matched in linear time; a schema with others (look-around, back references) is not checked.
3. A check may take as long as the schema's size, all references spelled out, times the value's. Beyond
   WORK_LIMIT it is not made: `None`. So is that of a schema that names itself.

Source: JSON Schema drafts 4 to 2020-12, by the library `jsonschema-rs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema_rs

WORK_LIMIT = 200_000  # subschemas times values: at most some 10 ms
DEPTH_LIMIT = 64  # of a schema, its references spelled out
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 20)


def conforms(schema: Any, value: Any) -> bool | None:
    """Whether the value conforms; None: the schema is no valid one, or checking it may take too long."""
    try:
        work = _spelled_out(schema, schema, DEPTH_LIMIT, WORK_LIMIT) * _values(value, WORK_LIMIT)
        if work >= WORK_LIMIT:
            return None
        check = jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS)
        return check.is_valid(value)
    except (ValueError, RecursionError, OverflowError):
        return None


def _values(value: Any, limit: int) -> int:
    """How many values a value holds, itself among them; at most about `limit`."""
    count, rest = 0, [value]
    while rest and count < limit:
        one = rest.pop()
        count += 1
        if isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return count + len(rest)


def _spelled_out(part: Any, root: Any, depth: int, limit: int) -> int:
    """Objects and lists of a schema, each reference counted as what it names; `limit` for too many.

    A reference that leads back to itself is as deep as the value, and counts as `limit` here.
    """
    if depth == 0:
        return limit
    if isinstance(part, list):
        inner: Any = part
    elif isinstance(part, Mapping):
        named = part.get("$ref")
        found = [_named(root, named)] if isinstance(named, str) else []
        inner = [*(one for key, one in part.items() if key not in ("$defs", "definitions")), *found]
    else:
        return 0
    total = 1
    for one in inner:
        if isinstance(one, dict | list):
            total += _spelled_out(one, root, depth - 1, limit - total)
            if total >= limit:
                return limit
    return total


def _named(root: Any, reference: str) -> Any:
    """The part of the schema that a reference names; None: none, or one that is elsewhere."""
    if not reference.startswith("#"):
        return None
    found = root
    for step in reference.split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
