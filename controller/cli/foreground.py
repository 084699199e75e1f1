"""Commands that serve in the foreground until interrupted: controller, router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.settings import load_settings


def controller() -> None:
    """Run the controller in the foreground.

    `up` runs it in the background.
    """
    from controller.wiring.controller import run_controller

    run_controller(load_settings())


def router(
    table: Annotated[Path, typer.Option(metavar="FILE", help="Table file (YAML): see docs/router.md.")],
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Port of Prometheus metrics; without it, none."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of the metrics.")
    ] = "127.0.0.1",
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File that gets one JSON line a request: see docs/router.md. [default: none]"
        ),
    ] = None,
    feedback: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that gets one JSON line for each vote of a user: see docs/router.md. [default: none]",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the file, and do not serve.")] = False,
) -> int:
    """Split traffic between endpoints by a table file.

    Needs neither Ray nor a controller; the endpoints are OpenAI-compatible. A changed file is reloaded.
    """
    from controller.wiring.router import check_table, run_router

    if check:
        return check_table(table, host=host, port=port, records=records)
    return run_router(
        table,
        host=host,
        port=port,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        records=records,
        feedback=feedback,
    )
