"""Whether a database that is to be used is another program's. Asked before anything is written to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from controller.errors import BadInput
from controller.store.migrations import OLD_VERSION_TABLE, VERSION_TABLE
from controller.store.read_only import mode_of
from controller.store.schema import metadata
from serving.files.plain_text import plain_text

META_TABLE = "canaryctl_meta"  # of every schema that a release had
MAX_NAMED = 3


def require_own_file(path: Path) -> None:
    """Raises BadInput for a folder, and for a SQLite file whose tables are another program's.

    A connection as a store makes it changes the file: its journal, and its mode. This one leaves nothing.
    """
    if path.is_dir():
        raise BadInput(f"database {path} is a folder; name a file: sqlite:///{path / 'canaryctl.db'}")
    try:
        if not path.stat().st_size:
            return
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode_of(path)}", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except (OSError, sqlite3.Error):
        return  # whoever opens it says why it cannot be read
    tables = {str(name) for (name,) in rows if not str(name).startswith("sqlite_")} - {OLD_VERSION_TABLE}
    if tables and tables.isdisjoint({META_TABLE, VERSION_TABLE}):
        raise BadInput(
            f"database {path} is of another program ({_named(tables)}); name a file of canaryctl's own, or "
            "one that does not exist yet: CANARYCTL_DATABASE_URL"
        )


def require_free_names(db: sa.Connection, place: str) -> None:
    """Raises BadInput where another program's tables, beside which ours may stand, have names of ours."""
    tables = set(sa.inspect(db).get_table_names())
    taken = tables.intersection(metadata.tables) - {META_TABLE}
    if taken and META_TABLE not in tables:
        raise BadInput(
            f"database {place} has tables of another program under names of canaryctl's ({_named(taken)}); "
            "name a database of canaryctl's own: CANARYCTL_DATABASE_URL"
        )


def _named(tables: set[str]) -> str:
    found = sorted(tables)
    names = ", ".join(plain_text(name, limit=40) for name in found[:MAX_NAMED])
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"table{'s' if len(found) > 1 else ''} {names}{more}"
