"""The static router: a table file instead of a controller, no Ray."""

from __future__ import annotations

from pathlib import Path

from serving.router import table_file as static_front


def run_router(table: Path, *, host: str, port: int) -> int:
    """The static router, until it is interrupted; its exit code."""
    return static_front.main(table, host, port)
