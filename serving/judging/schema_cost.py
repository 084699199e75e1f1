"""What a check of values by a JSON Schema costs, charged before it is done. Pure.

Rules:
1. All that one answer's checks cost comes from one `Work`: counting a schema, making its check, measuring a
   value, checking it. What is more than is left raises TooMuch, and is not done.
2. Each part that references name is counted once, however often it is named: counting is linear in the
   schema's text, while what is counted has all references spelled out.
3. Numbers beyond 64 bits, and fractions of their size or almost none, are not checked: one costs the library
   up to a millisecond a keyword. Nor are schemas with a long pattern, or a `multipleOf` of almost none.

Units: 50 ns, about what a subschema takes for a value. Each cost here is the most that was measured, or more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WALKED = 20  # a value of a schema, to count it
WHOLE_MADE = 30  # a value of a schema, of its whole text: the library checks that first
MADE = 30  # a subschema, when its check is made
MEASURED = 12  # a value, to measure it
PATTERN_MADE, PATTERN_CHARACTER_MADE = 2000, 40  # a pattern, and each of its characters
PATTERN_LIMIT = 1024  # characters of a pattern
PATTERN_SIZE = 40  # of a pattern in subschemas, for a value, beside its steps
NUMBER = 130  # a number, for each that the schema compares it with as a fraction
UNIQUE_SIZE = 80  # of `uniqueItems` in subschemas
WIDE_PAIR = 10  # two integers beyond 2**53, of which `uniqueItems` compares each with each
STEPS_LIMIT = 520  # of a pattern for a character: 26 us, the most that one of SIZE_LIMIT took
DEPTH_LIMIT = 64  # of a schema, its references spelled out
LARGEST, SMALLEST = 1e30, 1e-30  # of a fraction
MULTIPLE_LARGEST, MULTIPLE_SMALLEST = 2**53, 1e-9
_INTEGERS, _EXACT = range(-(1 << 63), 1 << 64), 1 << 53

# Keys of a schema: by which nothing is checked where they stand, maps of schemas by any names, and data.
_UNUSED = frozenset(
    {"$defs", "definitions", "default", "examples", "title", "description", "$comment", "$schema"}
)
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "dependencies"})
_DATA = frozenset({"const", "enum", "required", "dependentRequired"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_LOOKS_BACK = frozenset({"unevaluatedProperties", "unevaluatedItems"})
_POINTER = re.compile(r"#(?:/[^%]*)?")
_COUNT = re.compile(r"\{(\d*),?(\d*)\}")
_WIDE = re.compile(
    r"\\[wdspWDSP]|\[\^|\.|\(\?[a-z-]*[iux]|[^\x00-\x7f]"
)  # stands for many characters of Unicode


class TooMuch(Exception):
    """It costs more than is left, or how much is not known."""


@dataclass(slots=True)
class Work:
    """What may still be done for one answer."""

    left: int

    def spend(self, cost: int) -> None:
        """Charge this before it is done. Raises TooMuch, and charges nothing, where less is left."""
        if cost > self.left:
            raise TooMuch
        self.left -= cost


@dataclass(slots=True)
class Cost:
    """Of a schema, each reference counted as what it names."""

    size: int = 0  # subschemas, for each value
    steps: int = 0  # of its patterns, for each character
    numbers: int = 0  # with which it compares as fractions, for each number
    unique: int = 0  # keywords that compare each item with each
    made: int = 0  # in all, when its check is made
    height: int = 0  # of its nesting
    patterns: int = 0

    def add(self, other: Cost) -> None:
        """Add what another costs, but for its height."""
        self.size += other.size
        self.steps += other.steps
        self.numbers += other.numbers
        self.unique += other.unique
        self.made += other.made
        self.patterns += other.patterns

    def of(self, value: Measure) -> int:
        """What checking such a value costs."""
        sizes = self.size * value.values + self.steps * value.characters
        return sizes + NUMBER * self.numbers * value.numbers + WIDE_PAIR * self.unique * value.wide**2


@dataclass(slots=True)
class Measure:
    """Of a value."""

    values: int = 1  # that it holds, itself among them, and one for 64 characters
    characters: int = 0  # with those of keys
    numbers: int = 0
    wide: int = 0  # integers beyond 2**53


def cost_of(schema: Any, work: Work) -> Cost:
    """What the check of a schema costs; counting it is charged. Raises TooMuch: it is more than is left, or
    the schema names itself (it is as deep as the value), or is of a kind that is not counted."""
    work.spend(WHOLE_MADE * measured(schema, work, WHOLE_MADE).values)
    counting = _Counting(schema, work)
    counting.cost.height = counting.add(schema, DEPTH_LIMIT)
    return counting.cost


class _Counting:
    def __init__(self, root: Any, work: Work) -> None:
        self._root, self._work = root, work
        self.cost = Cost()  # of the part that is counted
        self._named: dict[str, Cost | None] = {}  # by the reference; None: it is being counted

    def add(self, schema: Any, depth: int) -> int:
        """Count this schema, or list of schemas, which may be so deep; its height."""
        self._grow(Cost(1, made=MADE), depth)
        height = 0
        if isinstance(schema, list):
            for one in schema:
                height = max(height, self.add(one, depth - 1))
        elif isinstance(schema, Mapping):
            for key, value in schema.items():
                height = max(height, self._add_key(key, value, depth - 1))
        return height + 1

    def _add_key(self, key: str, value: Any, depth: int) -> int:
        if key in _UNUSED:
            return 0
        if key == "$ref" and isinstance(value, str):
            return self._add_named(value, depth)
        if key.startswith("$") or key in _LOOKS_BACK or (key == "id" and isinstance(value, str)):
            raise TooMuch
        if key in _DATA:
            data = measured(value, self._work)
            self._grow(Cost(data.values, numbers=data.numbers, made=MADE * data.values), depth)
        elif key in _MAPS and isinstance(value, Mapping):
            if key == "patternProperties":
                for name in value:
                    self._grow(_pattern(name), depth)
            return max((self.add(one, depth) for one in value.values()), default=0)
        elif key == "pattern" and isinstance(value, str):
            self._grow(_pattern(value), depth)
        elif key == "multipleOf":
            if not (isinstance(value, int | float) and MULTIPLE_SMALLEST <= value <= MULTIPLE_LARGEST):
                raise TooMuch
            self._grow(Cost(1, numbers=1, made=MADE), depth)
        elif key in _BOUNDS:
            self._grow(Cost(1, numbers=int(isinstance(value, float)), made=MADE), depth)
        elif key == "uniqueItems":
            self._grow(Cost(UNIQUE_SIZE, unique=1, made=MADE), depth)
        else:
            return self.add(value, depth)
        return 0

    def _add_named(self, reference: str, depth: int) -> int:
        """Count the part that a reference names: the first time anew, later as it was counted then."""
        known = self._named.get(reference)
        if known is None:
            if reference in self._named:
                raise TooMuch  # it leads back to itself
            self._named[reference] = None
            outer, self.cost = self.cost, Cost()
            height = self.add(_part_named(self._root, reference), depth)
            known, self.cost = self.cost, outer
            known.height = height
            self._named[reference] = known
        self._grow(known, depth - known.height + 1)
        return known.height

    def _grow(self, by: Cost, depth: int) -> None:
        self._work.spend(WALKED)
        self.cost.add(by)
        if depth <= 0 or self.cost.made > self._work.left:
            raise TooMuch


def _pattern(pattern: str) -> Cost:
    """What a pattern costs, by its length and what it counts up to. Raises TooMuch for a long one."""
    if len(pattern) > PATTERN_LIMIT:
        raise TooMuch
    steps = 1 + len(pattern) * (60 if _WIDE.search(pattern) else 1) // 4
    for least, most in _COUNT.findall(pattern):
        steps *= max(int(least or 1), int(most or 1), 1)
        if steps >= STEPS_LIMIT:
            break
    made = PATTERN_MADE + PATTERN_CHARACTER_MADE * len(pattern)
    return Cost(PATTERN_SIZE, steps=min(steps, STEPS_LIMIT), made=made, patterns=1)


def measured(value: Any, work: Work, each: int = 0) -> Measure:
    """The measure of a JSON value, which is charged. each: what will be done for each value in it costs.

    Raises TooMuch where that is more than is left, and for a number that costs too much by itself.
    """
    found, rest, limit = Measure(), [value], work.left // (MEASURED + each)
    while rest:
        one = rest.pop()
        kind = type(one)
        if kind is str:
            found.characters += len(one)
        elif kind is list or kind is dict:
            if found.values + len(one) > limit:
                work.left -= MEASURED * found.values
                raise TooMuch
            found.values += len(one)
            rest += one if kind is list else one.values()
            if kind is dict:
                found.characters += sum(map(len, one))
        elif kind is int or kind is float:
            found.numbers += 1
            size = abs(one)
            if kind is int and size > _EXACT:
                found.wide += 1
            if (one not in _INTEGERS) if kind is int else size and not SMALLEST <= size <= LARGEST:
                raise TooMuch
    work.spend(MEASURED * found.values)
    found.values += found.characters >> 6
    return found


def _part_named(root: Any, reference: str) -> Any:
    """The part of the schema that a reference names. Raises TooMuch for any but a plain pointer."""
    if not _POINTER.fullmatch(reference):
        raise TooMuch
    found = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise TooMuch
        found = found[name]
    return found
