"""The README's tables of the gate's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gate.readme import HARM, HEAD_HARM, NO_HARM, replaced, tables

FIGURES = {"rang": 0.004, "median": 1240.0, "p90": None}
METHODS = ("strict", "default", "thresholds", "mann_whitney", "wald", "wald_tolerated")
RESULT = {"cases": {name: dict.fromkeys(METHODS, FIGURES) for name in (*NO_HARM, *HARM)}}
README = Path(__file__).parents[3] / "README.md"


def test_the_readme_has_both_tables_and_only_they_change() -> None:
    before = README.read_text(encoding="utf-8")
    after = replaced(before, tables(RESULT))

    assert "| sticky users | 0.4 % | 0.4 % | 0 % | 0 % |" in after
    assert "| quality -0.05 | 1,240 | 1,240 | 1,240 | 1,240 |" in after
    rest = [[line for line in text.splitlines() if not line.startswith("|")] for text in (before, after)]
    assert rest[0] == rest[1]


def test_a_table_that_is_gone_is_named() -> None:
    with pytest.raises(ValueError, match="identical versions"):
        replaced("nothing here\n", tables(RESULT))


def test_a_limit_that_does_not_exist_is_a_dash() -> None:
    cases = RESULT["cases"] | {HARM[0]: RESULT["cases"][HARM[0]] | {"wald": FIGURES | {"median": None}}}

    assert f"| {HARM[0]} | 1,240 | - | 1,240 | 1,240 |" in tables({"cases": cases})[HEAD_HARM]
