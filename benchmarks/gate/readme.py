"""The README's two tables, from the published figures: `python -m benchmarks.gate.readme`.

It replaces the tables in README.md by those of `benchmarks/results/gate.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NO_HARM = {
    "independent": "independent requests",
    "daily drift": "daily drift",
    "sticky users": "sticky users",
    "five tenants hold half": "five tenants hold half",
    "ramp 2-50 %, drift": "ramp 2-50 % under drift",
}
HARM = ("hallucination 3 -> 14 %", "errors 1 -> 5 %", "latency x1.2", "quality -0.05")
HEAD_NO_HARM = (
    "| identical versions: share rolled back | canaryctl, `default` | canaryctl, `strict` |"
    " thresholds on point estimates | Mann-Whitney at each look |"
)
HEAD_HARM = (
    "| harm: median canary requests until rollback | `strict` | limit (Wald) | `default` |"
    " limit beyond its tolerance (Wald) |"
)


def tables(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """The lines of both tables, by the first of them. Raises KeyError where a case was not measured."""
    cases = result["cases"]
    no_harm = [HEAD_NO_HARM, "|---|---|---|---|---|"]
    for name, shown in NO_HARM.items():
        default, strict = (f"{cases[name][preset]['rang']:.1%}" for preset in ("default", "strict"))
        others = [f"{cases[name][method]['rang']:.0%}" for method in ("thresholds", "mann_whitney")]
        cells = [cell.replace("%", " %") for cell in (default, strict, *others)]
        no_harm.append(f"| {shown} | {' | '.join(cells)} |")
    harm = [HEAD_HARM, "|---|---|---|---|---|"]
    for name in HARM:
        columns = ("strict", "wald", "default", "wald_tolerated")
        harm.append(f"| {name} | {' | '.join(_median(cases[name][column]) for column in columns)} |")
    return {HEAD_NO_HARM: no_harm, HEAD_HARM: harm}


def _median(figures: Mapping[str, float | None]) -> str:
    return "-" if figures["median"] is None else f"{figures['median']:,.0f}"


def replaced(text: str, lines_by_head: Mapping[str, list[str]]) -> str:
    """The text with each table that has the same first cell as one of these replaced by it. Raises ValueError
    where the text has no such table."""
    lines = text.splitlines()
    for head, table in lines_by_head.items():
        cell = head.split("|")[1]
        starts = [index for index, line in enumerate(lines) if line.startswith(f"|{cell}|")]
        if not starts:
            raise ValueError(f"README has no table that begins with {cell.strip()!r}; add its first line")
        stop = starts[0]
        while stop < len(lines) and lines[stop].startswith("|"):
            stop += 1
        lines[starts[0] : stop] = table
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite README.md; returns 0."""
    result = json.loads((ROOT / "benchmarks" / "results" / "gate.json").read_text(encoding="utf-8"))
    path = ROOT / "README.md"
    path.write_text(replaced(path.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
