"""Commands while the database is lost under a running controller, or without one: one story, one remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controller.cli import processes
from controller.cli.main import run
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import now_served
from controller.wiring.now_served import Served
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import CANARY, STABLE, a_rollout


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service: None)


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("CANARYCTL_HOME", str(home))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    fake = FakeController(home)
    fake.serve()
    model = write_checkpoint(tmp_path / "model")
    assert run(["up", "--service", "chat", "--model", str(model), "--no-wait"]) == 0
    yield fake
    fake.stop()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of a cluster without a controller."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")
    (tmp_path / "cluster.json").write_text("{}")
    return tmp_path


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
    assert run(["status"]) == 0


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
    served = (Served("chat", "v-1", "v-2", 2000, "r-1"), Served("code", "v-3", None, 0, ""))
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service: served)

    assert run(["status"]) == 4
    err = capsys.readouterr().err
    assert "chat, by its route table: 80 % of requests to v-1, 20 % to v-2 (rollout r-1)" in err
    assert "code, by its route table: 100 % of requests to v-3" in err


def test_the_first_up_creates_the_database_and_a_controller_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that a supervisor restarts made an empty database beside a cluster that serves."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    from controller.wiring import cluster
    from controller.wiring.controller import build

    monkeypatch.setattr(cluster, "connect", lambda settings: None)
    with pytest.raises(Exception, match="is gone or empty; restore it"):
        build(load_settings())
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


@pytest.mark.parametrize(
    ("table", "is_refused"),
    [
        (Served("chat", "v-undone", None, 0, ""), True),
        (Served("chat", STABLE, "v-promoted", 10_000, "u-9"), True),  # all requests, by an undo unknown here
        (Served("chat", STABLE, None, 0, ""), False),
        (Served("chat", STABLE, CANARY, 1000, "r-00000001"), False),
        (Served("chat", CANARY, None, 0, "r-00000001"), False),  # promoted by a rollout that still runs here
        (Served("other", "v-undone", None, 0, ""), False),
        (None, False),
    ],
)
def test_up_refuses_a_database_that_is_older_than_what_serves(
    home: Path,
    table: Served | None,
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
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service: (table,) if table else None)

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
