"""Scores of one request as a list in one cell, as Langfuse exports them: `[{"name": ..., "value": ...}]`.

Each name becomes a column, `scores.NAME`; those that are metrics are read as such, the others are named and
ignored. A list that is JSON text, as in a CSV, counts too. Of several scores of a name the first
counts, as live: by `timestamp` where each has one, else in the order of the list.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace

from controller.cli.evidence_cells import time_s
from controller.cli.evidence_formats import RawTable, is_named_values
from controller.cli.evidence_sources import Source, Term
from evaluation.metrics import CATALOGUE

COLUMN = "scores"
PREFIX = f"{COLUMN}."
TIMES = ("timestamp", "createdAt", "created_at")  # of a score


def unpacked(table: RawTable) -> tuple[RawTable, int]:
    """The table with a column for each name in its scores, unchanged if it has no such column, and how many
    scores are repeats of one request and name."""
    cells = table.columns.get(COLUMN)
    rows = [_named(cell) for cell in cells] if cells is not None else []
    if not rows or None in rows:
        return table, 0
    names = list(dict.fromkeys(name for row in rows for name in row or {}))
    repeats = sum(len(_scores(cell)) for cell in cells or ()) - sum(len(row or {}) for row in rows)
    columns = {name: values for name, values in table.columns.items() if name != COLUMN}
    columns |= {f"{PREFIX}{name}": [(row or {}).get(name) for row in rows] for name in names}
    return replace(table, columns=columns), repeats


def only_score(cell: object) -> object:
    """The first score of a cell with a list of them: Langfuse's own export has a column for each name."""
    cell = _listed(cell)
    if isinstance(cell, list) and all(isinstance(one, str | int | float) for one in cell):
        return cell[0] if cell else None
    return cell


def score_sources(table: RawTable) -> dict[str, Source]:
    """The source of each metric that has scores of its name."""
    names = (name for name in CATALOGUE if f"{PREFIX}{name}" in table.columns)
    return {name: Source(f"{PREFIX}{name}", (Term(f"{PREFIX}{name}", None),)) for name in names}


def ignored_note(ignored: list[str]) -> str | None:
    """A line for the scores that are no metric; None: there is none. ignored: columns that nothing reads."""
    names = [name.removeprefix(PREFIX) for name in ignored if name.startswith(PREFIX)]
    if not names:
        return None
    return f"scores that no gate uses are ignored: {', '.join(names)}; to use one: --map METRIC={PREFIX}NAME"


def _named(cell: object) -> Mapping[str, object] | None:
    """The cell's scores by name, empty if it has none; None: it holds something else."""
    cell = _listed(cell)
    if cell is None or cell in ("", []):
        return {}
    if not is_named_values(cell):
        return None
    return {str(one["name"]): _value(one) for one in reversed(_scores(cell))}


def _scores(cell: object) -> list[Mapping[str, object]]:
    """The scores of a cell, the first given first."""
    cell = _listed(cell)
    found: list[Mapping[str, object]] = list(cell) if isinstance(cell, list) else []
    at_s = [next((time_s(one[key]) for key in TIMES if one.get(key) is not None), None) for one in found]
    if None in at_s:
        return found
    return [found[i] for i in sorted(range(len(found)), key=lambda i: at_s[i] or 0.0)]


def _listed(cell: object) -> object:
    """The list that a text spells, as in a CSV; any other cell unchanged."""
    if isinstance(cell, str) and cell.strip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(cell)
    return cell


def _value(score: Mapping[str, object]) -> object:
    keys = ("value", "stringValue", "string_value")
    return next((score[key] for key in keys if score.get(key) is not None), None)
