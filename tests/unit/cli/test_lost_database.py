"""Commands while the database is lost under a running controller, or without one: one story, one remedy."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controller.cli import processes
from controller.cli.main import run
from controller.errors import LostDatabase, Unreachable
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import now_served
from controller.wiring.now_served import Served
from serving.messages import SplitStatus
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import CANARY, STABLE, a_rollout
from tests.fakes.served import at_home, serving_chat


def a_table(service: str, stable: str, canary: str | None, weight_bp: int, rollout: str) -> Served:
    return Served(service, SplitStatus(1, 1, rollout, stable, canary, weight_bp, True, "acknowledged"))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: None)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    with serving_chat(at_home(tmp_path / "home", monkeypatch), write_checkpoint(tmp_path / "model")) as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of a cluster without a controller."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")
    (tmp_path / "cluster.json").write_text("{}")
    return tmp_path


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", [["status"], ["list"], ["history", "chat"], ["up"], ["undo", "chat"]])
def test_every_command_says_that_the_file_is_gone_and_what_to_do(
    chat: FakeController, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    database = chat.home / "canaryctl.db"
    database.rename(chat.home / "away.db")
    capsys.readouterr()

    code = run(command)

    err = capsys.readouterr().err
    assert code == 4
    first = err.splitlines()[0]
    assert f"the database {database} is gone (moved, deleted or emptied) while it is in use" in first
    assert "put the same file back, or a copy and type: canaryctl up" in first
    for wrong in ("no controller answers", "older schema", "no such table"):
        assert wrong not in err
    assert not database.exists()
    (chat.home / "away.db").rename(database)
    ends_s = time.monotonic() + 60
    while run(["status"]) != 0:  # until the controller has decided something again
        assert time.monotonic() < ends_s, capsys.readouterr().out
        time.sleep(0.1)


@pytest.mark.slow
def test_up_restarts_a_controller_whose_database_was_replaced(
    chat: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the old file open, and remembers what was measured under it."""
    database = chat.home / "canaryctl.db"
    shutil.copy(database, chat.home / "copy.db")
    (chat.home / "copy.db").replace(database)
    restarted: list[Path] = []
    monkeypatch.setattr(processes, "restart_controller", lambda settings: restarted.append(settings.home))
    capsys.readouterr()

    assert run(["status"]) == 4
    assert f"the database {database} is another one than the controller opened" in capsys.readouterr().err
    run(["up"])
    assert restarted == [chat.home]
    assert "the controller was restarted: its database was replaced" in capsys.readouterr().err


@pytest.mark.slow
def test_up_stops_a_controller_without_log_before_it_opens_the_file(
    chat: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the controller holds is written when it closes the file."""
    for name in ("canaryctl.db-wal", "canaryctl.db-shm"):
        (chat.home / name).unlink()
    names: list[list[str]] = []

    def stop(settings: object) -> None:
        assert not (chat.home / "canaryctl.db-wal").exists()  # nobody else has opened it
        chat.stop()
        with closing(SqlStore(load_settings().database_url, may_create=False)) as store:
            names.append([row.name for row in store.services()])

    monkeypatch.setattr(processes, "stop_controller", stop)
    monkeypatch.setattr(processes, "start", lambda settings, **ports: settings)
    capsys.readouterr()

    assert run(["status"]) == 4
    assert "canaryctl.db-wal, was removed or replaced while it is in use" in capsys.readouterr().err
    run(["up"])
    assert names == [["chat"]]
    assert "the controller was stopped: the log of its database was removed" in capsys.readouterr().err


@pytest.mark.slow
def test_down_begins_anew_where_the_file_is_gone_and_there_is_no_copy(
    chat: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command said to put the file back, and only `kill` led out."""
    from controller.wiring import cluster

    database = chat.home / "canaryctl.db"
    database.rename(chat.home / "away.db")
    stopped: list[str] = []

    def stop_cluster(settings: object) -> bool:
        stopped.append("cluster")
        return True

    monkeypatch.setattr(processes, "stop_controller", lambda settings: stopped.append("controller"))
    monkeypatch.setattr(cluster, "stop", stop_cluster)
    capsys.readouterr()

    assert run(["down", "chat", "--yes"]) == 4
    assert "to begin anew, which ends what serves: canaryctl down" in capsys.readouterr().err
    assert stopped == []
    assert run(["down", "--yes"]) == 0
    assert "its database is gone" in capsys.readouterr().err
    assert stopped == ["controller", "cluster"]
    assert not database.exists()


@pytest.mark.slow
def test_down_leaves_a_database_that_was_put_in_its_place_alone(
    chat: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    database = chat.home / "canaryctl.db"
    shutil.copy(database, chat.home / "copy.db")
    (chat.home / "copy.db").replace(database)
    monkeypatch.setattr(processes, "stop_controller", lambda settings: pytest.fail("stopped"))

    assert run(["down", "--yes"]) == 4
    assert "start the controller on it: canaryctl up" in capsys.readouterr().err


@pytest.mark.slow
def test_a_database_without_services_counts_as_lost_beside_a_cluster(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` said nothing of it, and `rollback --direct` that no service exists, while one served."""
    SqlStore(load_settings().database_url).close()

    assert run(["status"]) == 4
    assert "holds no service, though Ray runs and may serve" in capsys.readouterr().err
    for command in (["rollback", "--direct"], ["rollback", "chat", "--direct"]):
        assert run(command) == 4
        err = capsys.readouterr().err
        assert "store: not reached" in err
        assert "holds no service" in err
        assert "start one" not in err
        assert "there is none yet" not in err


def test_status_without_a_database_says_what_users_get(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = (a_table("chat", "v-1", "v-2", 2000, "r-1"), a_table("code", "v-3", None, 0, ""))
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: served)

    assert run(["status"]) == 4
    err = capsys.readouterr().err
    assert "chat, by its route table: 80 % of requests to v-1, 20 % to v-2 (rollout r-1)" in err
    assert "code, by its route table: 100 % of requests to v-3" in err


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (None, "the route tables do not answer, so it is not known what users get; try again"),
        ((now_served.Served("chat", None),), "the route table of chat does not answer, so it is not known"),
    ],
    ids=["Ray", "a table"],
)
def test_status_says_when_what_users_get_is_not_known(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tables: tuple[now_served.Served, ...] | None,
    line: str,
) -> None:
    """On a loaded host nothing at all stood there."""
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service: tables)

    assert run(["status"]) == 4
    assert line in capsys.readouterr().err


def test_the_first_up_creates_the_database_and_a_controller_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that a supervisor restarts made an empty database beside a cluster that serves."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    from controller.wiring import cluster
    from controller.wiring.controller import build

    monkeypatch.setattr(cluster, "connect", lambda settings: None)
    with pytest.raises(Unreachable, match=r"no service yet in the state folder .*; start one: canaryctl up"):
        build(load_settings())
    (tmp_path / "cluster.json").touch()
    with pytest.raises(LostDatabase, match="is gone or empty; restore it"):
        build(load_settings())
    (tmp_path / "cluster.json").unlink()
    assert not (tmp_path / "canaryctl.db").exists()

    class Started(Exception):
        pass

    def start(settings: object) -> None:
        raise Started

    monkeypatch.setattr(cluster, "start", start)
    with pytest.raises(Started):
        processes.start(load_settings(), ingress_port=None, api_port=None)
    with closing(SqlStore(load_settings().database_url, may_create=False)) as store:
        assert store.services() == ()


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("table", "is_refused"),
    [
        (a_table("chat", "v-undone", None, 0, ""), True),
        (a_table("chat", STABLE, "v-promoted", 10_000, "u-9"), True),  # all requests, by an undo unknown here
        (a_table("chat", STABLE, None, 0, ""), False),
        (a_table("chat", STABLE, CANARY, 1000, "r-00000001"), False),
        (a_table("chat", CANARY, None, 0, "r-00000001"), False),  # promoted by a rollout that still runs here
        (a_table("other", "v-undone", None, 0, ""), False),
    ],
)
def test_up_refuses_a_database_that_is_older_than_what_serves(
    home: Path,
    table: Served,
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It went back silently to the version that a person had undone."""
    with closing(SqlStore(load_settings().database_url)) as store:
        row = ServiceRow("chat", "{}", STABLE, "s", 1.0)
        store.put_service(row, VersionRow("chat", STABLE, "{}", "{}", 1.0))
        store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    monkeypatch.setattr("controller.wiring.cluster.is_running", lambda settings: True)
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: (table,))

    class Starts(Exception):
        pass

    def start(settings: object, **ports: object) -> None:
        raise Starts

    monkeypatch.setattr(processes, "start", start)
    if is_refused:
        assert run(["up"]) == 3
        err = capsys.readouterr().err
        assert f"but by this database {STABLE}: it is an older copy" in err
        assert "canaryctl up --accept-database" in err
        with pytest.raises(Starts):
            run(["up", "--accept-database"])
        assert "goes back to" in capsys.readouterr().err
    else:
        with pytest.raises(Starts):
            run(["up"])


@pytest.mark.slow
@pytest.mark.parametrize("tables", [None, (Served("chat", None),)])
def test_up_starts_nothing_while_the_route_tables_cannot_be_read(
    home: Path,
    tables: tuple[Served, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It took the database for the newest when Ray did not answer within 2 s."""
    with closing(SqlStore(load_settings().database_url)) as store:
        row = ServiceRow("chat", "{}", STABLE, "s", 1.0)
        store.put_service(row, VersionRow("chat", STABLE, "{}", "{}", 1.0))
    monkeypatch.setattr("controller.wiring.cluster.is_running", lambda settings: True)
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: tables)

    for command in (["up"], ["up", "--accept-database"]):
        assert run(command) == 4
        err = capsys.readouterr().err
        assert "not answer, so it is not known whether the database is an older copy; try again" in err
