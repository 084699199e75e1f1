"""Migrations: every older schema is brought to today's tables, a newer one is refused, openers take turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from controller.errors import BadInput
from controller.rollout.serialization import state_to_json
from controller.store import migrations
from controller.store import schema as t
from controller.store.sql import SqlStore
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

# The tables of the first two schemas, as the releases before Alembic made them.
OLD_TABLES = (
    "CREATE TABLE canaryctl_meta (name VARCHAR NOT NULL PRIMARY KEY, value VARCHAR NOT NULL)",
    "CREATE TABLE services (name VARCHAR NOT NULL PRIMARY KEY, spec TEXT NOT NULL, stable VARCHAR NOT NULL, "
    "secret VARCHAR NOT NULL, created_at_s FLOAT NOT NULL, removing BOOLEAN NOT NULL)",
    "CREATE TABLE versions (service VARCHAR NOT NULL, id VARCHAR NOT NULL, spec TEXT NOT NULL, "
    "fingerprint TEXT NOT NULL, created_at_s FLOAT NOT NULL, PRIMARY KEY (service, id))",
    "CREATE TABLE rollouts (id VARCHAR NOT NULL PRIMARY KEY, service VARCHAR NOT NULL, "
    "version INTEGER NOT NULL, state TEXT NOT NULL, pending TEXT NOT NULL, request TEXT NOT NULL, "
    "evidence {bytes}, log_count INTEGER NOT NULL, is_final BOOLEAN NOT NULL, "
    "created_at_s FLOAT NOT NULL, ended_at_s FLOAT{canary})",
    "CREATE UNIQUE INDEX one_rollout_a_service ON rollouts (service) WHERE NOT is_final",
    "CREATE INDEX rollouts_of_a_service ON rollouts (service, created_at_s)",
    "CREATE TABLE leases (name VARCHAR NOT NULL PRIMARY KEY, holder VARCHAR NOT NULL, "
    "token INTEGER NOT NULL, expires_at_s FLOAT NOT NULL)",
    "CREATE TABLE tokens (digest VARCHAR NOT NULL PRIMARY KEY, name VARCHAR NOT NULL, role VARCHAR NOT NULL, "
    "created_at_s FLOAT NOT NULL)",
)


@pytest.fixture
def engine(bare_url: str) -> Iterator[sa.Engine]:
    """Engine that looks at the database from outside."""
    engine = sa.create_engine(bare_url)
    yield engine
    engine.dispose()


def make_old(engine: sa.Engine, schema: int) -> None:
    """A database of schema 1 or 2 with a service, a lease and two rollouts: the clock was set back between
    them, and the second runs."""
    column_types = {
        "bytes": "BYTEA" if engine.dialect.name == "postgresql" else "BLOB",
        "canary": ", canary VARCHAR DEFAULT '' NOT NULL" if schema == 2 else "",
    }
    with engine.begin() as db:
        for text in OLD_TABLES:
            db.execute(sa.text(text.format(**column_types)))
        if schema == 2:
            db.execute(
                sa.text("CREATE INDEX attempts_of_a_version ON rollouts (service, canary, created_at_s)")
            )
        db.execute(sa.text(f"INSERT INTO canaryctl_meta VALUES ('schema', '{schema}')"))
        db.execute(sa.text("INSERT INTO leases VALUES ('controller', 'host/1/2', 7, 1900000000.0)"))
        db.execute(
            sa.text("INSERT INTO services VALUES ('chat', '{}', :stable, 's', 1.0, :no)"),
            {"stable": STABLE, "no": False},
        )
        for id, is_final, at_s in (("r-00000002", True, 9000.0), ("r-00000001", False, 5000.0)):
            values = {"id": id, "final": is_final, "at": at_s, "state": state_to_json(a_rollout(id))}
            columns = "id, service, version, state, pending, request, log_count, is_final, created_at_s"
            row = ":id, 'chat', 0, :state, '[]', '{}', 1, :final, :at"
            if schema == 2:
                columns, row = f"{columns}, canary", f"{row}, '{CANARY}'"
            db.execute(sa.text(f"INSERT INTO rollouts ({columns}) VALUES ({row})"), values)


def test_a_new_database_has_the_tables_that_the_code_expects(bare_url: str, engine: sa.Engine) -> None:
    SqlStore(bare_url).close()

    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), t.metadata) == []


@pytest.mark.parametrize("schema", [1, 2])
def test_a_database_of_an_earlier_release_gets_the_same_tables(
    bare_url: str, engine: sa.Engine, schema: int
) -> None:
    make_old(engine, schema)

    SqlStore(bare_url).close()

    with engine.connect() as db:
        assert compare_metadata(MigrationContext.configure(db), t.metadata) == []


@pytest.mark.parametrize("schema", [1, 2])
def test_a_database_of_an_earlier_release_keeps_its_rows(
    bare_url: str, engine: sa.Engine, schema: int
) -> None:
    make_old(engine, schema)

    store = SqlStore(bare_url)
    found, rows, lease = store.latest_attempt("chat", CANARY), store.rollouts("chat"), store.lease()
    acquired = store.acquire_lease("next", ttl_s=5.0)
    store.close()

    assert found is not None
    assert (found.id, [row.id for row in rows]) == ("r-00000001", ["r-00000001", "r-00000002"])
    assert (lease.token, acquired is not None and acquired.token) == (7, 8)


def test_a_migrated_database_is_opened_again_without_a_change(bare_url: str, engine: sa.Engine) -> None:
    make_old(engine, 2)
    SqlStore(bare_url).close()
    with engine.begin() as db:
        db.execute(sa.text("UPDATE services SET secret = 'kept'"))

    store = SqlStore(bare_url)
    secret = store.service("chat").secret
    store.close()

    assert secret == "kept"


def test_a_migration_that_is_cut_off_leaves_the_old_schema(
    bare_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(engine, 2)
    with engine.begin() as db:  # the last statements of schema 3 meet a table that is not as expected
        db.execute(sa.text("ALTER TABLE leases RENAME COLUMN expires_at_s TO other"))
    with pytest.raises(Exception, match="expires_at_s"):
        SqlStore(bare_url)

    with engine.begin() as db:
        assert "seq" not in {column["name"] for column in sa.inspect(db).get_columns("rollouts")}
        assert "alembic_version" not in sa.inspect(db).get_table_names()
        db.execute(sa.text("ALTER TABLE leases RENAME COLUMN other TO expires_at_s"))
    SqlStore(bare_url).close()


@pytest.mark.parametrize("table", ["alembic_version SET version_num", "canaryctl_meta SET value"])
def test_a_database_of_a_newer_canaryctl_is_refused(bare_url: str, engine: sa.Engine, table: str) -> None:
    SqlStore(bare_url).close()
    with engine.begin() as db:
        db.execute(sa.text(f"UPDATE {table} = '99'"))
        if "meta" in table:
            db.execute(sa.text("DROP TABLE alembic_version"))

    with pytest.raises(BadInput, match=r"schema 99, this canaryctl reads \d; run the canaryctl that"):
        SqlStore(bare_url)


def test_the_releases_before_alembic_refuse_a_migrated_database(bare_url: str, engine: sa.Engine) -> None:
    """They read `canaryctl_meta` and accept 2."""
    SqlStore(bare_url).close()

    with engine.connect() as db:
        stored = db.execute(sa.text("SELECT value FROM canaryctl_meta WHERE name = 'schema'")).scalar_one()
    assert int(stored) > 2


def test_the_newest_migration_is_the_schema_of_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))

    assert ScriptDirectory.from_config(config).get_heads() == [str(t.SCHEMA)]


@pytest.mark.parametrize("schema", [0, 2])
def test_several_may_open_a_database_first(bare_url: str, engine: sa.Engine, schema: int) -> None:
    """Eight at once: some failed with "table already exists" or "database is locked"."""
    if schema:
        make_old(engine, schema)
    together, failed = threading.Barrier(8), []

    def open_first() -> None:
        together.wait()
        try:
            SqlStore(bare_url).close()
        except Exception as exc:  # noqa: BLE001 - whatever a thread raises is what the test is about
            failed.append(exc)

    openers = [threading.Thread(target=open_first) for _ in range(8)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(60)

    assert failed == []


def test_an_installed_wheel_has_the_migrations() -> None:
    """setuptools takes folders with an `__init__.py` and the Python files in them."""
    folders = {path.parent for path in migrations.FOLDER.rglob("*") if path.suffix not in ("", ".pyc")}

    assert len(folders) == 2
    assert all((folder / "__init__.py").exists() for folder in folders)
    assert {path.suffix for folder in folders for path in folder.iterdir() if path.is_file()} == {".py"}
