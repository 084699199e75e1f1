"""`canaryctl backup`: a whole copy of a database in use, which can be put back."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.errors import LostDatabase, Unreachable
from controller.settings import load_settings
from controller.store.backup import copy_database
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring.last_known import has_service, lost_database
from tests.fakes.rollouts import STABLE, a_rollout


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlStore]:
    """A database in use, whose newest rows are in its write-ahead log."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    yield store
    store.close()


@pytest.mark.slow
def test_a_copy_of_a_database_in_use_holds_all_of_it(
    store: SqlStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"

    assert run(["backup", str(copy)]) == 0

    assert f"{copy}: 1 service, last event" in capsys.readouterr().out
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == ["copy.db"]
    with closing(SqlStore(f"sqlite:///{copy}", may_migrate=False, may_create=False)) as other:
        assert [row.name for row in other.services()] == ["chat"]
        assert [row.id for row in other.rollouts("chat")] == ["r-00000001"]


def test_before_the_first_up_there_is_nothing_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database was said to be gone."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))

    assert run(["backup", str(tmp_path / "copy.db")]) == 2
    assert (
        f"no service yet in the state folder {tmp_path / 'home'} (CANARYCTL_HOME); start one: canaryctl up"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_copy_ends_while_the_database_is_written_all_the_time(store: SqlStore, tmp_path: Path) -> None:
    """The lease is written every second: a copy that took longer began anew for ever."""
    with store.database.write() as db:
        db.exec_driver_sql("CREATE TABLE large AS SELECT randomblob(24000000) AS bytes")
    copy, is_copied = tmp_path / "copy.db", threading.Event()
    source = Path(load_settings().database_url.removeprefix("sqlite:///"))
    writes = 0

    def make_copy() -> None:
        copy_database(source, copy)
        is_copied.set()

    copying = threading.Thread(target=make_copy, daemon=True)

    copying.start()
    ends_at_s = time.monotonic() + 60
    while not is_copied.is_set() and time.monotonic() < ends_at_s:
        with store.database.write() as db:
            db.exec_driver_sql("UPDATE leases SET expires_at_s = expires_at_s + 1")
        writes += 1

    assert (is_copied.is_set(), writes > 1) == (True, True)
    with closing(SqlStore(f"sqlite:///{copy}", may_migrate=False, may_create=False)) as other:
        assert [row.id for row in other.rollouts("chat")] == ["r-00000001"]


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(
    store: SqlStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken.db"
    taken.write_text("mine")

    assert run(["backup", str(taken)]) == 2
    assert "taken.db exists; give another path" in capsys.readouterr().err
    assert taken.read_text() == "mine"
    assert run(["backup", str(tmp_path / "no-folder" / "copy.db")]) == 2
    assert "no-folder" in capsys.readouterr().err
    assert not (tmp_path / "no-folder").exists()


def test_a_lost_database_is_not_backed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    load_settings().cluster_path.write_text("{}")

    assert run(["backup", str(tmp_path / "copy.db")]) == 4
    assert "canaryctl.db is gone or empty" in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists()
    assert not (tmp_path / "canaryctl.db").exists()


def test_postgresql_has_a_tool_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_DATABASE_URL", "postgresql+psycopg://user:secret@127.0.0.1:9/db")

    assert run(["backup", str(tmp_path / "copy.db")]) == 2
    err = capsys.readouterr().err
    assert "pg_dump" in err
    assert "secret" not in err


@pytest.mark.slow
def test_a_copy_is_not_opened_beside_the_log_of_the_lost_file(
    store: SqlStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite wrote that log into the copy: 300 services became none. (A log that is known to be another
    file's is set aside.)"""
    copy, database = tmp_path / "copy.db", tmp_path / "home" / "canaryctl.db"
    assert run(["backup", str(copy)]) == 0
    log = database.with_name("canaryctl.db-wal")
    assert log.stat().st_size > 0
    left = log.read_bytes()
    store.close()
    for path in (log, database.with_name("canaryctl.db-shm")):
        path.unlink(missing_ok=True)
    log.write_bytes(left)
    database.with_name("canaryctl.db.id").unlink()
    copy.replace(database)
    before = database.read_bytes()

    with pytest.raises(Unreachable, match=r"is of another database .*: rm -f .*-wal .*-shm") as refused:
        SqlStore(load_settings().database_url, may_create=False)
    assert not isinstance(refused.value, LostDatabase)  # it is there, and whole
    assert has_service(load_settings())
    (database.parent / "cluster.json").write_text("{}")
    assert lost_database(load_settings()) is None
    assert run(["backup", str(tmp_path / "another.db")]) == 4
    assert not (tmp_path / "another.db").exists()

    assert (database.read_bytes(), log.read_bytes()) == (before, left)
    log.unlink()
    with closing(SqlStore(load_settings().database_url, may_create=False)) as restored:
        assert [row.name for row in restored.services()] == ["chat"]


def test_a_killed_controller_finds_its_own_log_again(store: SqlStore, tmp_path: Path) -> None:
    database = tmp_path / "home" / "canaryctl.db"
    killed = {path.name: path.read_bytes() for path in database.parent.glob("canaryctl.db*")}
    store.close()
    for name, content in killed.items():
        (database.parent / name).write_bytes(content)

    with closing(SqlStore(load_settings().database_url, may_create=False)) as again:
        assert [row.id for row in again.rollouts("chat")] == ["r-00000001"]
