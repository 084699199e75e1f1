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

from typing import Any

import jsonschema_rs

from serving.judging.schema_cost import Cost, TooMuch, Work, cost_of, measured

WORK_LIMIT = 300_000  # 15 ms, of all checks of an answer
SIZE_LIMIT = 1 << 16  # bytes of a compiled pattern
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=SIZE_LIMIT)


class SchemaChecks:
    """The checks of one answer."""

    def __init__(self, limit: int = WORK_LIMIT) -> None:
        """limit: what they may cost, as `Work`; more than WORK_LIMIT where nobody waits."""
        self.work = Work(limit)
        self._made: dict[int, tuple[Any, Cost] | None] = {}  # by id of the schema; None: it is not checked

    def conforms(self, schema: Any, value: Any) -> bool | None:
        """Whether the value conforms; None: the schema is no valid one, or checking it may take too long."""
        try:
            if id(schema) not in self._made:
                self._made[id(schema)] = None
                self._made[id(schema)] = self._make(schema)
            if (made := self._made[id(schema)]) is None:
                return None
            check, cost = made
            self.work.spend(cost.of(measured(value, self.work, cost.size)))
            return bool(check.is_valid(value))
        except (TooMuch, ValueError, RecursionError, OverflowError):
            return None

    def _make(self, schema: Any) -> tuple[Any, Cost]:
        cost = cost_of(schema, self.work)
        self.work.spend(cost.made)
        return jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS), cost
