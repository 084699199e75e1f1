"""Whether JSON values conform to a JSON Schema that a client wrote. Pure, bounded, and offline.

Rules:
1. No reference is fetched: a schema is a client's, and could name any address.
2. Only references are followed that are counted: plain pointers into the same schema. A schema with another
   way to name a part (a base, an anchor, an encoded pointer), or that looks back at what others have checked
   (`unevaluatedProperties`), is not checked.
3. Patterns are matched in linear time; a schema with others (look-around, back references) is not checked.
4. All checks of one answer share a budget: making a check costs by the schema's size, all references spelled
   out, and by its patterns; a value by that size times its own, and each of its characters, those of its keys
   too, by the steps of all patterns. What is beyond it is not checked: `None`. So is what a schema that names
   itself says.

Source: JSON Schema drafts 4 to 2020-12, by the library `jsonschema-rs`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

WORK_LIMIT = 200_000  # subschemas times values: at most some 10 ms
MADE_COST = 20  # of a subschema, when its check is made: some 4 us each
PATTERN_COST = 400  # of a pattern, in subschemas: it may take 0.5 ms and 50 KB
STEPS_LIMIT = 520  # of a pattern for a character, in subschemas: 26 us, the most that one of SIZE_LIMIT took
SIZE_LIMIT = 1 << 16  # bytes of a compiled pattern
DEPTH_LIMIT = 64  # of a schema, its references spelled out
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=SIZE_LIMIT)

# Keys of a schema: by which nothing is checked where they stand, maps of schemas by any names, and data.
_UNUSED = frozenset(
    {"$defs", "definitions", "default", "examples", "title", "description", "$comment", "$schema"}
)
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"})
_DATA = frozenset({"const", "enum", "required", "dependentRequired"})
_LOOKS_BACK = frozenset({"unevaluatedProperties", "unevaluatedItems"})
_POINTER = re.compile(r"#(?:/[^%]*)?")
_COUNT = re.compile(r"\{\d*,?(\d*)\}")
_WIDE = re.compile(
    r"\\[wdspWDSP]|\[\^|\.|\(\?[a-z-]*[iux]|[^\x00-\x7f]"
)  # stands for many characters of Unicode


@dataclass(slots=True)
class SchemaChecks:
    """The checks of one answer. left: what they may still cost; more than WORK_LIMIT where nobody waits."""

    left: int = WORK_LIMIT
    _made: dict[int, tuple[Any, _Cost] | None] = field(default_factory=dict)  # by id of the schema

    def conforms(self, schema: Any, value: Any) -> bool | None:
        """Whether the value conforms; None: the schema is no valid one, or checking it may take too long."""
        try:
            if id(schema) not in self._made:
                self._made[id(schema)] = self._make(schema)
            if (made := self._made[id(schema)]) is None:
                return None
            check, cost = made
            values, characters = _measured(value, self.left)
            self.left -= cost.size * values + cost.steps * characters
            return bool(check.is_valid(value)) if self.left > 0 else None
        except (ValueError, RecursionError, OverflowError):
            return None

    def _make(self, schema: Any) -> tuple[Any, _Cost] | None:
        cost = _Cost()
        try:
            cost.add(schema, schema, DEPTH_LIMIT)
        except _NotCounted:
            return None
        self.left -= cost.size * MADE_COST
        if self.left <= 0:
            return None
        try:
            return jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS), cost
        except (ValueError, RecursionError, OverflowError):
            return None


class _NotCounted(Exception):
    """The schema costs more than all checks of an answer may, or how much is not known."""


@dataclass(slots=True)
class _Cost:
    """Of a schema, each reference counted as what it names: its values, and the steps of its patterns for one
    character."""

    size: int = 1
    steps: int = 0

    def add(self, schema: Any, root: Any, depth: int) -> None:
        """Count this schema, or list of schemas. Raises _NotCounted; so does a reference that leads back to
        itself: it is as deep as the value."""
        self._count(1, depth)
        if isinstance(schema, list):
            for one in schema:
                self.add(one, root, depth - 1)
        elif isinstance(schema, Mapping):
            for key, value in schema.items():
                self._add_key(key, value, root, depth - 1)

    def _add_key(self, key: str, value: Any, root: Any, depth: int) -> None:
        if key in _UNUSED:
            return
        if key == "$ref" and isinstance(value, str):
            self.add(_named(root, value), root, depth)
        elif key.startswith("$") or key in _LOOKS_BACK or (key == "id" and isinstance(value, str)):
            raise _NotCounted
        elif key in _DATA:
            self._count(_measured(value, WORK_LIMIT)[0], depth)
        elif key in _MAPS and isinstance(value, Mapping):
            for name, one in value.items():
                if key == "patternProperties":
                    self._add_pattern(name)
                self.add(one, root, depth)
        elif key == "pattern" and isinstance(value, str):
            self._add_pattern(value)
        else:
            self.add(value, root, depth)

    def _count(self, size: int, depth: int) -> None:
        self.size += size
        if depth <= 0 or self.size >= WORK_LIMIT:
            raise _NotCounted

    def _add_pattern(self, pattern: str) -> None:
        self.size += PATTERN_COST
        counts = [int(found or 1) for found in _COUNT.findall(pattern)]
        width = 60 if _WIDE.search(pattern) else 1
        self.steps += min(
            1 + len(pattern) * math.prod(max(one, 1) for one in counts) * width // 4, STEPS_LIMIT
        )


def _measured(value: Any, limit: int) -> tuple[int, int]:
    """How many values a value holds, itself among them, and how many characters, with those of keys; of each
    about `limit` at most."""
    count, characters, rest = 0, 0, [value]
    while rest and count < limit:
        one = rest.pop()
        count += 1
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, dict):
            characters += sum(map(len, one))
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return count + len(rest) + (characters >> 6), characters


def _named(root: Any, reference: str) -> Any:
    """The part of the schema that a reference names. Raises _NotCounted for any but a plain pointer."""
    if not _POINTER.fullmatch(reference):
        raise _NotCounted
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise _NotCounted
        found = found[name]
    return found
