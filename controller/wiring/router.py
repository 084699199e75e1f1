"""The static router: a route table file instead of a controller, no Ray."""

from __future__ import annotations

from pathlib import Path

from serving.router import table_file


def run_router(table: Path, *, host: str, port: int) -> int:
    """Run the static router until it is interrupted. Returns its exit code."""
    return table_file.main(table, host, port)


def check_table(table: Path) -> int:
    """Check a table file and say what it holds. Returns the exit code: 0, or 2 when it is invalid."""
    return table_file.check(table)
