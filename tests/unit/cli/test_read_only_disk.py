"""`status`, `history` and `backup` read a database whose folder cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.errors import Unreachable
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.database_rig import sqlite_url


def put(store: SqlStore, name: str) -> None:
    store.put_service(ServiceRow(name, "{}", "v-1", "secret", 1.0), VersionRow(name, "v-1", "{}", "{}", 1.0))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder with one service, on a disk that takes nothing."""
    folder = tmp_path / "home"
    folder.mkdir()
    with closing(SqlStore(sqlite_url(folder / "canaryctl.db"))) as store:
        put(store, "chat")
    monkeypatch.setenv("CANARYCTL_HOME", str(folder))
    monkeypatch.setenv("CANARYCTL_API_PORT", "1")
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and may(path, mode))

    def refuse(path: Path, _text: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("controller.auth.write_private", refuse)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", ["status", "history"])
def test_what_is_stored_is_read_and_nothing_written(
    home: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """It failed: the token could not be made, and `unable to open database file`."""
    before = files(home)

    assert run([command, "chat"]) == 4
    text = capsys.readouterr().err
    assert f"the database {home}/canaryctl.db is read only here" in text
    assert ("chat, as last stored: stable v-1" in text) is (command == "status")
    assert "Read-only file system" not in text
    assert files(home) == before


@pytest.mark.parametrize("has_log", [True, False])
def test_what_stands_in_the_log_is_read_too(home: Path, tmp_path: Path, has_log: bool) -> None:
    """As a crash leaves it: the newest commit is in the log alone."""
    with closing(SqlStore(sqlite_url(home / "canaryctl.db"))) as store:
        put(store, "late")
        copy = tmp_path / "copy"
        shutil.copytree(home, copy)
    for kept in () if has_log else copy.glob("canaryctl.db-*"):
        kept.unlink()

    with closing(SqlStore(sqlite_url(copy / "canaryctl.db"), may_migrate=False, may_create=False)) as store:
        assert store.database.is_read_only
        assert ("late" in [row.name for row in store.services()]) is has_log


def test_a_write_is_refused_with_a_remedy(home: Path) -> None:
    url = sqlite_url(home / "canaryctl.db")
    with (
        closing(SqlStore(url, may_migrate=False, may_create=False)) as store,
        pytest.raises(Unreachable, match="readonly database; make the file and its folder writable"),
    ):
        put(store, "more")


def test_a_backup_is_made_of_it(home: Path, tmp_path: Path) -> None:
    assert run(["backup", str(tmp_path / "b.db")]) == 0
    with closing(SqlStore(sqlite_url(tmp_path / "b.db"))) as store:
        assert [row.name for row in store.services()] == ["chat"]


def test_a_full_disk_is_read_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`disk I/O error; free disk space, as a reader needs some too`."""
    with closing(SqlStore(sqlite_url(tmp_path / "canaryctl.db"))) as store:
        put(store, "chat")
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "1")
    (tmp_path / "admin.token").write_text("t" * 43)
    before = files(tmp_path)
    of = os.statvfs(tmp_path)
    full = os.statvfs_result((of[0], of[1], of[2], 0, 0, *of[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)

    assert run(["status"]) == 4
    text = capsys.readouterr().err
    assert "is read only here: its disk or folder takes no writes" in text
    assert "chat, as last stored: stable v-1" in text
    assert files(tmp_path) == before
