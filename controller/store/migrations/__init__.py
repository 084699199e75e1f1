"""Migrations of the database by Alembic; `versions/` has one file per schema.

Invariants: all steps are one transaction under a lock, so that of controllers starting at once one migrates
and a crash leaves the old schema; a database of a newer canaryctl is refused before anything is changed.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from controller.errors import BadInput
from controller.quantities import shown, whole
from controller.store.schema import SCHEMA

FOLDER = Path(__file__).parent
# Alembic's own name may be taken by another program in the same database; earlier releases used it.
VERSION_TABLE = "canaryctl_schema_version"
OLD_VERSION_TABLE = "alembic_version"
FIRST_OF_ALEMBIC = 3  # the first schema that Alembic wrote
# One number for all canaryctl processes that share a PostgreSQL server.
LOCK_KEY = 0x63616E617279


def is_current(db: sa.Connection) -> bool:
    """True: the database has the newest schema. Raises BadInput when this canaryctl cannot read it."""
    return stored_schema(db) == SCHEMA and VERSION_TABLE in sa.inspect(db).get_table_names()


def stored_schema(db: sa.Connection) -> int:
    """Number of the database's schema; 0: it has none. Raises BadInput when this canaryctl cannot read it."""
    tables, stored = sa.inspect(db).get_table_names(), None
    if "canaryctl_meta" in tables:  # else no table here is ours
        stored = db.execute(sa.text("SELECT value FROM canaryctl_meta WHERE name = 'schema'")).scalar()
    if VERSION_TABLE in tables:
        stored = db.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    elif OLD_VERSION_TABLE in tables and (whole(str(stored)) or 0) >= FIRST_OF_ALEMBIC:
        stored = db.execute(sa.text(f"SELECT version_num FROM {OLD_VERSION_TABLE}")).scalar()
    if stored is None:
        return 0
    schema = whole(str(stored))
    if schema is None or schema > SCHEMA:
        found = shown(stored) if schema is None else schema
        raise BadInput(
            f"the database has schema {found}, this canaryctl reads {SCHEMA}; run the canaryctl that wrote it"
        )
    return schema


def migrate(db: sa.Connection) -> None:
    """Bring the database to the newest schema, in the caller's writing transaction. Raises BadInput."""
    from alembic import command  # slow to load, and needed only here
    from alembic.config import Config

    if db.dialect.name == "postgresql":
        # Those of a connection are for single statements; here other controllers wait for the whole.
        db.execute(sa.text("SET LOCAL statement_timeout = 0"))
        db.execute(sa.text("SET LOCAL lock_timeout = '10min'"))
        db.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    if is_current(db):
        return  # another process was first
    tables = set(sa.inspect(db).get_table_names())
    is_old = VERSION_TABLE not in tables and OLD_VERSION_TABLE in tables
    if is_old and stored_schema(db) >= FIRST_OF_ALEMBIC:
        db.execute(sa.text(f"ALTER TABLE {OLD_VERSION_TABLE} RENAME TO {VERSION_TABLE}"))
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))  # of a configparser
    config.attributes["connection"] = db
    config.attributes["version_table"] = VERSION_TABLE
    command.upgrade(config, "head")
    # What the releases before Alembic read, and refuse.
    written = sa.text("UPDATE canaryctl_meta SET value = :schema WHERE name = 'schema'")
    db.execute(written, {"schema": str(SCHEMA)})
