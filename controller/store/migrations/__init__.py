"""Migrations of the database by Alembic; `versions/` has one file per schema.

Invariants: all steps are one transaction under a lock, so that of controllers starting at once one migrates
and a crash leaves the old schema; a database of a newer canaryctl is refused before anything is changed.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from controller.errors import BadInput
from controller.store.schema import SCHEMA

FOLDER = Path(__file__).parent
# One number for all canaryctl processes that share a PostgreSQL server.
LOCK_KEY = 0x63616E617279


def stored_schema(db: sa.Connection) -> int:
    """Number of the database's schema; 0: it has none. Raises BadInput when this canaryctl cannot read it."""
    tables = sa.inspect(db).get_table_names()
    if "alembic_version" in tables:
        stored = db.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    elif "canaryctl_meta" in tables:  # made before migrations were Alembic's
        stored = db.execute(sa.text("SELECT value FROM canaryctl_meta WHERE name = 'schema'")).scalar()
    else:
        stored = None
    if stored is None:
        return 0
    if not str(stored).isdigit() or int(stored) > SCHEMA:
        raise BadInput(
            f"the database has schema {stored}, this canaryctl reads {SCHEMA}; "
            "run the canaryctl that wrote it"
        )
    return int(stored)


def migrate(db: sa.Connection) -> None:
    """Bring the database to the newest schema, in the caller's writing transaction. Raises BadInput."""
    from alembic import command  # slow to load, and needed only here
    from alembic.config import Config

    if db.dialect.name == "postgresql":
        # Those of a connection are for single statements; here other controllers wait for the whole.
        db.execute(sa.text("SET LOCAL statement_timeout = 0"))
        db.execute(sa.text("SET LOCAL lock_timeout = '10min'"))
        db.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    if stored_schema(db) == SCHEMA:
        return  # another process was first
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes["connection"] = db
    command.upgrade(config, "head")
