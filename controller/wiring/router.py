"""The static router: a route table file instead of a controller, no Ray."""

from __future__ import annotations

from pathlib import Path

from serving.router.metrics import MetricsAddress
from serving.router.standalone import main as standalone


def run_router(
    table: Path,
    *,
    host: str,
    port: int,
    metrics_port: int | None,
    metrics_host: str,
    records: Path | None = None,
    feedback: Path | None = None,
) -> int:
    """Run the static router until it is interrupted. Returns its exit code.

    metrics_port: of its Prometheus metrics; None: none are served.
    records, feedback: files of its request records and of users' feedback; None: none are kept.
    """
    metrics = None if metrics_port is None else MetricsAddress(metrics_host, metrics_port)
    return standalone.main(table, host, port, metrics, records, feedback)


def check_table(table: Path, *, host: str, port: int, records: Path | None = None) -> int:
    """Check a table file for a router at this address, and say what it holds. Returns the exit code: 0, or 2
    when it is invalid. records: as of `run_router`."""
    return standalone.check(table, host, port, records)
