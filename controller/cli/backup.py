"""`canaryctl backup`: a copy of the database, for the day on which it is lost."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.output import Output, OutputOption, emit_data, print_line
from controller.errors import BadInput, CanaryctlError, UnknownService
from controller.settings import Settings, load_settings


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy, which must not exist yet.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Copy the database while it is in use.

    Needs no controller. A copy is too old once anything was decided after it, a rollback too: back up after
    each (docs/at-3-am.md). PostgreSQL is copied with pg_dump.
    """
    from controller.store.backup import copy_database
    from controller.store.sqlite_files import sqlite_file
    from controller.wiring.elsewhere import no_service

    settings = load_settings()
    path = sqlite_file(settings.database_url)
    if path is None:
        raise BadInput("the database is PostgreSQL; copy it with pg_dump, and restore it with pg_restore")
    if not path.exists() and not settings.cluster_path.exists():
        raise UnknownService(no_service(settings))
    names: list[str] = []
    last = None
    with suppress(CanaryctlError):  # `copy_database` says why; one of another release is copied whole
        names, last = _content(settings)
    copy_database(path, file)
    if not output.is_text:
        emit_data({"backup": str(file), "services": names, "last_event_at_s": last}, output)
        return
    count = f"{len(names)} service{'' if len(names) == 1 else 's'}"
    at = (
        f", last event {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(last))}" if last is not None else ""
    )
    print_line(f"{file}: {count}{at}")


def _content(settings: Settings) -> tuple[list[str], float | None]:
    """Names of the services, and the time of the newest event; None: there is none."""
    from controller.store.sql import SqlStore

    with closing(SqlStore(settings.database_url, may_migrate=False, may_create=False)) as store:
        names = [row.name for row in store.services()]
        times_s = [event.at_s for name in names if (event := store.last_event(name)) is not None]
    return names, max(times_s, default=None)
