"""Migrations: every older schema is brought to today's tables, a newer one is refused, openers take turns."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from controller.errors import BadInput, Unreachable
from controller.rollout.serialization import state_to_json
from controller.rollout.state import Departure, DepartureStep, Phase
from controller.store import migrations
from controller.store import schema as t
from controller.store.sql import SqlStore
from tests.database_rig import make_old_database
from tests.fakes.rollouts import CANARY, STABLE, a_rollout


@pytest.fixture
def engine(bare_url: str) -> Iterator[sa.Engine]:
    """Engine that looks at the database from outside."""
    engine = sa.create_engine(bare_url)
    yield engine
    engine.dispose()


def _differences(db: sa.Connection) -> list[object]:
    """What the tables differ in from those of the code; tables of other programs aside."""
    options = {
        "version_table": migrations.VERSION_TABLE,
        "include_name": lambda name, kind, _: kind != "table" or name != "alembic_version",
    }
    found: list[object] = compare_metadata(MigrationContext.configure(db, opts=options), t.metadata)
    return found


@pytest.mark.slow
def test_a_new_database_has_the_tables_that_the_code_expects(bare_url: str, engine: sa.Engine) -> None:
    SqlStore(bare_url).close()

    with engine.connect() as db:
        assert _differences(db) == []


def test_the_program_may_be_installed_below_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "venv-100% %(here)s é#" / "migrations"
    shutil.copytree(migrations.FOLDER, folder)
    monkeypatch.setattr(migrations, "FOLDER", folder)
    url = f"sqlite:///{tmp_path / 'state.db'}"

    SqlStore(url).close()

    with sa.create_engine(url).connect() as db:
        assert _differences(db) == []


@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 2])
def test_a_database_of_an_earlier_release_gets_the_same_tables(
    bare_url: str, engine: sa.Engine, schema: int
) -> None:
    make_old_database(engine, schema)

    SqlStore(bare_url).close()

    with engine.connect() as db:
        assert _differences(db) == []


@pytest.mark.slow
@pytest.mark.parametrize("schema", [1, 2])
def test_a_database_of_an_earlier_release_keeps_its_rows(
    bare_url: str, engine: sa.Engine, schema: int
) -> None:
    make_old_database(engine, schema)

    store = SqlStore(bare_url)
    found, rows, lease = store.latest_attempt("chat", CANARY), store.rollouts("chat"), store.lease()
    acquired = store.acquire_lease("next", ttl_s=5.0)
    store.close()

    assert found is not None
    assert (found.id, [row.id for row in rows]) == ("r-00000001", ["r-00000001", "r-00000002"])
    assert (lease.token, acquired is not None and acquired.token) == (7, 8)


@pytest.mark.parametrize("undo", [False, True])
def test_what_has_served_is_read_from_the_rollouts_of_an_earlier_release(
    bare_url: str, engine: sa.Engine, undo: bool
) -> None:
    make_old_database(engine, 2)
    departure = Departure(STABLE, CANARY, DepartureStep.UNLOAD, 2.0, 2.0)
    state = replace(a_rollout("r-00000002"), phase=Phase.SUCCEEDED, departure=departure)
    state = replace(state, plan=replace(state.plan, undo=undo))
    version = "INSERT INTO versions VALUES ('chat', :id, :spec, '{}', 1.0)"
    with engine.begin() as db:
        db.execute(
            sa.text("UPDATE rollouts SET state = :state WHERE id = 'r-00000002'"),
            {"state": state_to_json(state)},
        )
        db.execute(sa.text("DELETE FROM versions"))
        for id in (STABLE, CANARY):
            db.execute(sa.text(version), {"id": id, "spec": f'{{"model": "/{id}"}}'})

    store = SqlStore(bare_url)
    newest, first = store.served("chat")
    store.close()

    assert (newest.version.id, newest.before) == (CANARY, CANARY if undo else STABLE)
    assert (first.version.id, first.before) == (STABLE, None)
    assert (newest.undone, first.undone) == (None, "r-00000002" if undo else None)
    assert newest.version.spec == f'{{"model": "/{CANARY}"}}'


def test_a_migrated_database_is_opened_again_without_a_change(bare_url: str, engine: sa.Engine) -> None:
    make_old_database(engine, 2)
    SqlStore(bare_url).close()
    with engine.begin() as db:
        db.execute(sa.text("UPDATE services SET secret = 'kept'"))

    store = SqlStore(bare_url)
    secret = store.service("chat").secret
    store.close()

    assert secret == "kept"


@pytest.mark.slow
def test_a_migration_that_is_cut_off_leaves_the_old_schema(
    bare_url: str, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old_database(engine, 2)
    with engine.begin() as db:  # the last statements of schema 3 meet a table that is not as expected
        db.execute(sa.text("ALTER TABLE leases RENAME COLUMN expires_at_s TO other"))
    with pytest.raises(Exception, match="expires_at_s"):
        SqlStore(bare_url)

    with engine.begin() as db:
        assert "seq" not in {column["name"] for column in sa.inspect(db).get_columns("rollouts")}
        assert migrations.VERSION_TABLE not in sa.inspect(db).get_table_names()
        db.execute(sa.text("ALTER TABLE leases RENAME COLUMN other TO expires_at_s"))
    SqlStore(bare_url).close()


@pytest.mark.parametrize("table", ["canaryctl_schema_version SET version_num", "canaryctl_meta SET value"])
def test_a_database_of_a_newer_canaryctl_is_refused(bare_url: str, engine: sa.Engine, table: str) -> None:
    SqlStore(bare_url).close()
    with engine.begin() as db:
        db.execute(sa.text(f"UPDATE {table} = '99'"))
        if "meta" in table:
            db.execute(sa.text("DROP TABLE canaryctl_schema_version"))

    with pytest.raises(BadInput, match=r"schema 99, this canaryctl reads \d; run the canaryctl that"):
        SqlStore(bare_url)


def test_the_releases_before_alembic_refuse_a_migrated_database(bare_url: str, engine: sa.Engine) -> None:
    """They read `canaryctl_meta` and accept 2."""
    SqlStore(bare_url).close()

    with engine.connect() as db:
        stored = db.execute(sa.text("SELECT value FROM canaryctl_meta WHERE name = 'schema'")).scalar_one()
    assert int(stored) > 2


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("version", ["1", "3", "ab12cd34", None])
def test_another_programs_alembic_table_is_left_alone(
    bare_url: str, engine: sa.Engine, version: str | None
) -> None:
    with engine.begin() as db:
        db.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        if version is not None:
            db.execute(sa.text(f"INSERT INTO alembic_version VALUES ('{version}')"))

    for _ in range(2):
        SqlStore(bare_url).close()

    with engine.connect() as db:
        assert db.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == version
        assert _differences(db) == []


@pytest.mark.slow
def test_the_version_table_of_an_earlier_release_is_taken_over(bare_url: str, engine: sa.Engine) -> None:
    SqlStore(bare_url).close()
    with engine.begin() as db:
        db.execute(sa.text(f"ALTER TABLE {migrations.VERSION_TABLE} RENAME TO alembic_version"))
        db.execute(sa.text("UPDATE services SET secret = 'kept'"))

    for _ in range(2):
        SqlStore(bare_url).close()

    with engine.connect() as db:
        assert "alembic_version" not in sa.inspect(db).get_table_names()
        assert _differences(db) == []


@pytest.mark.parametrize("value", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "", "-1"])
def test_a_schema_that_is_no_number_is_refused_in_one_line(
    bare_url: str, engine: sa.Engine, value: str
) -> None:
    with engine.begin() as db:
        db.execute(sa.text("CREATE TABLE canaryctl_meta (name VARCHAR PRIMARY KEY, value VARCHAR NOT NULL)"))
        db.execute(sa.text("INSERT INTO canaryctl_meta VALUES ('schema', :value)"), {"value": value})

    with pytest.raises(BadInput, match="this canaryctl reads") as refused:
        SqlStore(bare_url)
    assert len(str(refused.value)) < 200


def test_a_missing_lease_is_reported_in_one_line(bare_url: str, engine: sa.Engine) -> None:
    store = SqlStore(bare_url)
    with engine.begin() as db:
        db.execute(sa.text("DELETE FROM leases"))

    with pytest.raises(Unreachable, match="lacks a row"):
        store.lease()
    store.close()


def test_the_newest_migration_is_the_schema_of_the_code() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.FOLDER))

    assert ScriptDirectory.from_config(config).get_heads() == [str(t.SCHEMA)]


@pytest.mark.slow
@pytest.mark.parametrize("schema", [0, 2])
def test_several_may_open_a_database_first(bare_url: str, engine: sa.Engine, schema: int) -> None:
    """Eight at once: some failed with "table already exists" or "database is locked"."""
    if schema:
        make_old_database(engine, schema)
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
