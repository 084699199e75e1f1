"""Whether JSON values conform to a JSON Schema that a client wrote. Pure, bounded, and offline.

Rules:
1. No reference is fetched: a schema is a client's, and could name any address.
2. Patterns are matched in linear time; a schema with others (look-around, back references) is not checked.
3. All checks of one answer share a budget: making a check costs by the schema's size, all references spelled
   out, and by its patterns; a value by that size times its own. What is beyond it is not checked: `None`. So
   is what a schema that names itself says.

Source: JSON Schema drafts 4 to 2020-12, by the library `jsonschema-rs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

WORK_LIMIT = 200_000  # subschemas times values: at most some 10 ms
MADE_COST = 20  # of a subschema, when its check is made: some 4 us each
PATTERN_COST = 400  # of a pattern, in subschemas: it may take 0.5 ms and 50 KB
DEPTH_LIMIT = 64  # of a schema, its references spelled out
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 16)


@dataclass(slots=True)
class SchemaChecks:
    """The checks of one answer."""

    left: int = WORK_LIMIT
    _made: dict[int, tuple[Any, int] | None] = field(default_factory=dict)  # by id of the schema; its size

    def conforms(self, schema: Any, value: Any) -> bool | None:
        """Whether the value conforms; None: the schema is no valid one, or checking it may take too long."""
        try:
            if id(schema) not in self._made:
                self._made[id(schema)] = self._make(schema)
            if (made := self._made[id(schema)]) is None:
                return None
            check, size = made
            self.left -= size * _values(value, WORK_LIMIT)
            return bool(check.is_valid(value)) if self.left > 0 else None
        except (ValueError, RecursionError, OverflowError):
            return None

    def _make(self, schema: Any) -> tuple[Any, int] | None:
        size = _spelled_out(schema, schema, DEPTH_LIMIT, WORK_LIMIT) + 1
        self.left -= size * MADE_COST
        if self.left <= 0:
            return None
        try:
            return jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS), size
        except (ValueError, RecursionError, OverflowError):
            return None


def _values(value: Any, limit: int) -> int:
    """How many values a value holds, itself among them, and each 64 characters of its texts; about `limit`
    at most."""
    count, rest = 0, [value]
    while rest and count < limit:
        one = rest.pop()
        count += 1 + (len(one) >> 6 if isinstance(one, str) else 0)
        if isinstance(one, dict):
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return count + len(rest)


def _spelled_out(part: Any, root: Any, depth: int, limit: int) -> int:
    """Values of a schema, each reference counted as what it names and each pattern as many; `limit` for too
    many.

    A reference that leads back to itself is as deep as the value, and counts as `limit` here.
    """
    if depth == 0:
        return limit
    total = 1
    if isinstance(part, Mapping):
        named = part.get("$ref")
        inner = [one for key, one in part.items() if key not in ("$defs", "definitions")]
        inner += [_named(root, named)] if isinstance(named, str) else []
        patterned = part.get("patternProperties")
        total += ("pattern" in part) * PATTERN_COST
        total += len(patterned) * PATTERN_COST if isinstance(patterned, Mapping) else 0
    elif isinstance(part, list):
        inner = part
    else:
        return 1
    for one in inner:
        if total >= limit:
            return limit
        total += _spelled_out(one, root, depth - 1, limit - total)
    return min(total, limit)


def _named(root: Any, reference: str) -> Any:
    """The part of the schema that a reference names; None: none, or one that is elsewhere."""
    if not reference.startswith("#"):
        return None
    found = root
    for step in reference.split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
