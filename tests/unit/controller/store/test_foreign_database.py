"""A database of another program is refused, and left as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.cli.main import run
from controller.errors import BadInput
from controller.store.backup import copy_database
from controller.store.foreign_database import require_free_names
from controller.store.sql import SqlStore
from tests.database_rig import sqlite_url


def foreign(path: Path, *tables: str) -> Path:
    with closing(sqlite3.connect(path)) as database:
        for table in tables:
            database.execute(f"CREATE TABLE {table} (id INTEGER, name TEXT)")
        database.commit()
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("tables", [("users",), ("services", "rollouts"), ("alembic_version", "dag")])
@pytest.mark.parametrize("may_create", [True, False])
def test_another_programs_file_is_refused_and_not_touched(
    tmp_path: Path, tables: tuple[str, ...], may_create: bool
) -> None:
    """A controller wrote its tables into it; `status` called it gone or empty, and changed its journal."""
    path = foreign(tmp_path / "x.db", *tables)
    before = (path.read_bytes(), path.stat().st_mode)

    with pytest.raises(BadInput, match=r"x\.db is of another program \(tables? .*\); name a file of"):
        SqlStore(sqlite_url(path), may_migrate=may_create, may_create=may_create)

    assert (path.read_bytes(), path.stat().st_mode) == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.db"]


def test_another_programs_file_is_no_backup(tmp_path: Path) -> None:
    """`backup` copied it: `b.db: 0 services`, exit 0."""
    with pytest.raises(BadInput, match="is of another program"):
        copy_database(foreign(tmp_path / "x.db", "users"), tmp_path / "b.db")


def test_many_tables_are_counted(tmp_path: Path) -> None:
    path = foreign(tmp_path / "x.db", "a", "b", "c", "d", "e")

    with pytest.raises(BadInput, match=r"tables a, b, c and 2 more"):
        SqlStore(sqlite_url(path))


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a folder; name a file: sqlite:///.*/canaryctl\.db"):
        SqlStore(sqlite_url(tmp_path))


def test_an_empty_file_and_our_own_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"")

    for _ in range(2):
        SqlStore(sqlite_url(path)).close()


def test_names_of_ours_must_be_free_beside_another_programs_tables() -> None:
    """Of PostgreSQL, a database may be shared. `no such column: rollouts.state; restore the database`."""
    with sa.create_engine("sqlite://").connect() as db:
        db.execute(sa.text("CREATE TABLE users (id INTEGER)"))
        require_free_names(db, "postgresql://db/x")
        db.execute(sa.text("CREATE TABLE services (id INTEGER)"))
        with pytest.raises(BadInput, match=r"under names of canaryctl's \(table services\); name a database"):
            require_free_names(db, "postgresql://db/x")


def test_status_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CANARYCTL_API_PORT", "1")
    monkeypatch.setenv("CANARYCTL_DATABASE_URL", sqlite_url(foreign(tmp_path / "x.db", "users")))

    assert run(["status"]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "another program" in line] == [
        f"nor can the database be read: database {tmp_path}/x.db is of another program (table users); name a "
        "file of canaryctl's own, or one that does not exist yet: CANARYCTL_DATABASE_URL"
    ]
    assert "gone or empty" not in " ".join(lines)
