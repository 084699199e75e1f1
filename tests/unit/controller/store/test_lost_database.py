"""A database that is moved, deleted, replaced or created anew while a store has it open."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.errors import LostDatabase
from controller.store.backup import copy_database
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.database_rig import PostgresServer, sqlite_url
from tests.fakes.rollouts import STABLE

ADA = Identity("ada", Role.ADMIN)
ROOT = Path(__file__).parents[4]
CALLS: dict[str, Callable[[SqlStore], object]] = {
    "read": lambda store: store.services(),
    "write": lambda store: store.put_token("digest", ADA, at_s=1.0),
    "lead": lambda store: store.acquire_lease("a", ttl_s=5.0),
}


def put_chat(store: SqlStore) -> None:
    row = ServiceRow("chat", "{}", STABLE, "s", 1.0)
    store.put_service(row, VersionRow("chat", STABLE, "{}", "{}", 1.0))


@pytest.mark.parametrize("kind", CALLS)
def test_a_moved_file_is_neither_read_nor_written_nor_made_anew(tmp_path: Path, kind: str) -> None:
    """Decisions went into the file that had no name any more, and were lost at the next start."""
    path, away = tmp_path / "state.db", tmp_path / "away"
    with closing(SqlStore(sqlite_url(path))) as store:
        away.mkdir()
        for file in tmp_path.glob("state.db*"):
            file.rename(away / file.name)

        with pytest.raises(LostDatabase, match=r"state\.db is gone .*; put the same file back, or a copy"):
            CALLS[kind](store)
        assert list(tmp_path.glob("state.db*")) == []
        assert store.database.lost == "gone"

        for file in away.iterdir():
            file.rename(tmp_path / file.name)
        CALLS[kind](store)
        assert store.database.lost is None


@pytest.mark.parametrize("kind", CALLS)
def test_a_file_that_was_replaced_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.db"
    with closing(SqlStore(sqlite_url(path))) as store:
        shutil.copy(path, tmp_path / "copy.db")
        (tmp_path / "copy.db").replace(path)
        before = path.read_bytes()

        with pytest.raises(
            LostDatabase, match=r"state\.db is another one than .*, then start .*: canaryctl up"
        ):
            CALLS[kind](store)
        assert store.database.lost == "replaced"
    assert path.read_bytes() == before


def test_nothing_is_committed_once_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)

        def lose_it_within_a_transaction() -> None:
            with store.database.write() as db:
                db.execute(sa.text("DELETE FROM services"))
                path.rename(tmp_path / "away.db")

        with pytest.raises(LostDatabase):
            lose_it_within_a_transaction()
        (tmp_path / "away.db").rename(path)

        assert [row.name for row in store.services()] == ["chat"]


@pytest.mark.parametrize("damage", ["gone", "empty", "no tables"])
def test_a_store_that_may_not_create_makes_no_database(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.db"
    if damage == "empty":
        path.touch()
    if damage == "no tables":
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.connect() as db:
            db.execute(sa.text("PRAGMA journal_mode=WAL"))
        engine.dispose()
    before = path.read_bytes() if path.exists() else None

    with pytest.raises(LostDatabase, match=r"state\.db is gone or empty; restore it"):
        SqlStore(f"sqlite:///{path}", may_create=False)

    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.integration
def test_a_database_that_was_dropped_and_created_anew_is_left_alone(postgres: PostgresServer) -> None:
    server = sa.create_engine(postgres.url, isolation_level="AUTOCOMMIT")
    url = postgres.url.replace("/postgres", "/another")
    with server.connect() as db:
        db.execute(sa.text("CREATE DATABASE another"))
    try:
        with closing(SqlStore(url)) as store:
            put_chat(store)
            with server.connect() as db:
                db.execute(sa.text("DROP DATABASE another WITH (FORCE)"))
                db.execute(sa.text("CREATE DATABASE another"))

            for call in CALLS.values():
                with pytest.raises(LostDatabase, match="is another one than"):
                    call(store)
            assert store.database.lost == "replaced"
        with pytest.raises(LostDatabase, match="is gone or empty; restore it"):
            SqlStore(url, may_create=False)
        bare = sa.create_engine(url)
        assert sa.inspect(bare).get_table_names() == []
        bare.dispose()
    finally:
        with server.connect() as db:
            db.execute(sa.text("DROP DATABASE IF EXISTS another WITH (FORCE)"))
        server.dispose()


@pytest.mark.slow
def test_the_log_of_a_replaced_file_is_not_read_into_the_copy(tmp_path: Path) -> None:
    """SQLite plays any log beside a file into it: the old file's rows would overwrite the copy's."""
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    old = SqlStore(sqlite_url(path))
    put_chat(old)
    copy_database(path, copy)
    for number in range(200):
        old.put_token(f"digest-{number}", ADA, at_s=1.0)
    assert (tmp_path / "state.db-wal").stat().st_size > 0
    copy.replace(path)  # and the old log stays beside it

    with closing(SqlStore(f"sqlite:///{path}", may_create=False)) as store:
        assert [row.name for row in store.services()] == ["chat"]
        assert store.identity("digest-7") is None
        with store.database.read() as db:
            assert db.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    old.close()
    assert [file.name for file in tmp_path.glob("*.of-another-file*")] != []


def test_the_log_of_a_file_that_was_moved_with_it_is_read(tmp_path: Path) -> None:
    path, away = tmp_path / "state.db", tmp_path / "away"
    away.mkdir()
    old = SqlStore(sqlite_url(path))
    put_chat(old)
    for file in tmp_path.glob("state.db*"):
        shutil.copy(file, away / file.name)
    old.close()
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    for file in away.iterdir():
        file.rename(tmp_path / file.name)

    with closing(SqlStore(f"sqlite:///{path}", may_create=False)) as store:
        assert [row.name for row in store.services()] == ["chat"]


@pytest.mark.slow
def test_the_log_beside_a_linked_file_is_not_read_into_a_copy(tmp_path: Path) -> None:
    """SQLite keeps it beside the file itself; it was looked for beside the link, and destroyed the copy."""
    real, link, copy = tmp_path / "data" / "state.db", tmp_path / "state.db", tmp_path / "copy.db"
    real.parent.mkdir()
    link.symlink_to(real)
    old = SqlStore(sqlite_url(link))
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    put_chat(old)
    shutil.copy(_whole(link, copy), tmp_path / "plain.db")
    for number in range(200):
        old.put_token(f"digest-{number}", ADA, at_s=1.0)
    assert real.with_name("state.db-wal").stat().st_size > 0
    (tmp_path / "plain.db").replace(real)

    with closing(SqlStore(f"sqlite:///{link}", may_create=False)) as store:
        assert store.identity("digest-7") is None
        _require_whole(store)
    old.close()


def test_a_link_that_is_pointed_elsewhere_is_another_database(tmp_path: Path) -> None:
    first, link, copy = tmp_path / "first.db", tmp_path / "state.db", tmp_path / "copy.db"
    link.symlink_to(first)
    with closing(SqlStore(sqlite_url(link))) as store:
        put_chat(store)
        copy_database(link, copy)
        link.unlink()
        link.symlink_to(copy)

        with pytest.raises(LostDatabase, match=r"state\.db is another one than"):
            store.services()


@pytest.mark.slow
def test_the_log_is_not_read_into_a_copy_that_got_the_same_inode(tmp_path: Path) -> None:
    """ext4 gives a freed inode to the next file that is made."""
    path, copy = tmp_path / "state.db", tmp_path / "copy.db"
    _left_by_a_crash(path, copy)
    before = path.stat().st_ino
    path.unlink()
    for number in range(100):
        restored = tmp_path / f"restored-{number}.db"
        shutil.copy(copy, restored)
        if restored.stat().st_ino == before:
            restored.rename(path)
            break
    else:
        pytest.skip("this file system gives no inode again")

    with closing(SqlStore(f"sqlite:///{path}", may_create=False)) as store:
        assert store.identity("digest-7") is None
        _require_whole(store)


@pytest.mark.slow
def test_a_note_of_an_earlier_release_sets_no_log_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    _left_by_a_crash(path, tmp_path / "copy.db")
    note = tmp_path / "state.db.id"
    inodes = {name: text for name, text in json.loads(note.read_text()).items() if name in ("file", "log")}
    note.write_text(json.dumps(inodes))

    with closing(SqlStore(f"sqlite:///{path}", may_create=False)) as store:
        assert store.identity("digest-7") == ADA


def test_nothing_is_written_once_the_log_is_gone_and_nothing_is_lost(tmp_path: Path) -> None:
    """What was committed since went into a file without a name, and was lost at the next start."""
    path = tmp_path / "state.db"
    store = SqlStore(sqlite_url(path))
    put_chat(store)
    for name in ("state.db-wal", "state.db-shm"):
        (tmp_path / name).unlink()

    for call in CALLS.values():
        with pytest.raises(LostDatabase, match=r"state\.db-wal, was removed .*: canaryctl up"):
            call(store)
    assert store.database.lost == "log"
    store.close()
    with closing(SqlStore(f"sqlite:///{path}", may_create=False)) as again:
        assert [row.name for row in again.services()] == ["chat"]
        _require_whole(again)


def _whole(path: Path, copy: Path) -> Path:
    """A copy that does not say that it is one, as `sqlite3 .backup` makes it."""
    copy_database(path, copy)
    with closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA journal_mode=WAL")
    return copy


def _left_by_a_crash(path: Path, copy: Path) -> None:
    """A file with its log, whose controller has ended without closing it, and a plain copy from before."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.unit.controller.store import test_lost_database as t\n"
        "path, copy = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "store = t.SqlStore(f'sqlite:///{path}'); t.put_chat(store); t._whole(path, copy)\n"
        "for number in range(200): store.put_token(f'digest-{number}', t.ADA, at_s=1.0)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(copy)], cwd=ROOT)
    assert path.with_name(f"{path.name}-wal").stat().st_size > 0


def _require_whole(store: SqlStore) -> None:
    assert [row.name for row in store.services()] == ["chat"]
    with store.database.read() as db:
        assert db.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
