"""Published lines that still hold: of the same digest, with all their runs. They are not measured again.

The whole takes hours; a change of the gate concerns some of its cases. So the table grows in pieces, also on
several machines. Each line keeps its digest and its first rows, which `--recheck` measures again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gate.records import Item
from benchmarks.gate.trials import Row, Trial

KEPT_ROWS = 3  # of each published line
Line = dict[str, Any]


def marked(line: Mapping[str, Any], rows: Sequence[Row], digest: str) -> Line:
    """The line with what tells later whether it still holds."""
    return {**line, "digest": digest, "first_rows": list(rows[:KEPT_ROWS])}


def lines_that_hold(
    path: Path, items: Mapping[str, Item], digests: Mapping[str, str], trials: Mapping[str, Trial]
) -> dict[str, Line]:
    """The complete lines at `path`, by name, whose digest and goals are today's. None without the file."""
    if not path.exists():
        return {}
    result = json.loads(path.read_text(encoding="utf-8"))
    lines: dict[str, Line] = {**result.get("cases", {}), **result.get("trials", {})}
    return {
        name: line
        for name, line in lines.items()
        if line.get("digest", "") == digests.get(name)
        and line.get("reps", line.get("runs")) == items[name].reps
        and (name not in trials or _limits(line) == {h: goal.text for h, goal in trials[name].goals.items()})
    }


def _limits(line: Line) -> dict[str, str]:
    return {heading: goal["limit"] for heading, goal in line["goals"].items()}
