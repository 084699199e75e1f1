"""Whether JSON values conform to a JSON Schema that a client wrote. Pure, bounded, and offline.

Rules:
1. No reference is fetched: a schema is a client's, and could name any address.
2. Only references are followed that are counted: plain pointers into the same schema. A schema with another
   way to name a part (a base, an anchor, an encoded pointer), or that looks back at what others have checked
   (`unevaluatedProperties`), is not checked.
3. Patterns are matched in linear time; a schema with others (look-around, back references) is not checked.
4. All checks of one answer share a budget, from which each step is paid before it is taken
   (`schema_cost.py`). What is beyond it is not checked: `None`. So is what a schema that names itself says.

Source: JSON Schema drafts 4 to 2020-12, by the library `jsonschema-rs`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs

from serving.judging.schema_cost import Cost, TooMuch, Work, cost_of, measured

WORK_LIMIT = 300_000  # 15 ms, of all checks of an answer
SIZE_LIMIT = 1 << 16  # bytes of a compiled pattern
STATES_LIMIT = 1 << 18  # bytes of what it remembers of the texts that it has matched
PATTERN_BYTES = SIZE_LIMIT + STATES_LIMIT
MADE_BYTES = 20  # of a check, for each unit of what making it costs
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=SIZE_LIMIT, dfa_size_limit=STATES_LIMIT)


@dataclass(slots=True)
class Room:
    """What several `Kept` hold together."""

    bytes: int = 0


@dataclass(slots=True)
class Kept:
    """The checks by some schemas, which are made once as far as there is room; it holds the schemas too."""

    limit: int  # bytes
    room: Room = field(default_factory=Room)
    bytes: int = 0
    is_all: bool = True  # there was room for each
    made: dict[int, tuple[Any, tuple[Any, Cost] | None]] = field(default_factory=dict)  # by id of the schema

    def add(self, schema: Any, made: tuple[Any, Cost] | None) -> None:
        """Keep the check by this schema, if there is room. None: it is never checked."""
        size = 0 if made is None else MADE_BYTES * made[1].made + PATTERN_BYTES * made[1].patterns
        if self.bytes + size > self.limit:
            self.is_all = False
            return
        self.bytes += size
        self.room.bytes += size
        self.made[id(schema)] = schema, made


class SchemaChecks:
    """The checks of one answer."""

    def __init__(self, limit: int = WORK_LIMIT, kept: Kept | None = None) -> None:
        """limit: what they may cost, as `Work`; more than WORK_LIMIT where nobody waits.

        kept: the checks that were made for other answers; None: none are.
        """
        self.work = Work(limit)
        self._limit, self._kept = limit, kept
        # By id of the schema, with it; None: it is not checked.
        self._made: dict[int, tuple[Any, tuple[Any, Cost] | None]] = {}

    def conforms(self, schema: Any, value: Any) -> bool | None:
        """Whether the value conforms; None: the schema is no valid one, or checking it may take too long."""
        try:
            if (made := self._of(schema)) is None:
                return None
            check, cost = made
            self.work.spend(cost.of(measured(value, self.work, cost.size)))
            return bool(check.is_valid(value))
        except (TooMuch, ValueError, RecursionError, OverflowError):
            return None

    def _of(self, schema: Any) -> tuple[Any, Cost] | None:
        """The check by this schema, with its cost; None: there is none."""
        if self._kept is not None and (found := self._kept.made.get(id(schema))) is not None:
            return found[1]
        if (found := self._made.get(id(schema))) is not None:
            return found[1]
        has_all = self.work.left == self._limit  # so that another answer fares no better
        made = None
        with suppress(TooMuch, ValueError, RecursionError, OverflowError):
            made = self._make(schema)
        self._made[id(schema)] = schema, made
        if self._kept is not None and (made is not None or has_all):
            self._kept.add(schema, made)
        return made

    def _make(self, schema: Any) -> tuple[Any, Cost]:
        cost = cost_of(schema, self.work)
        self.work.spend(cost.made)
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS), cost
