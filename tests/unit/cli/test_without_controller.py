"""`status` while no controller answers: what the database knows, read only, and what to type."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.cli.main import run
from controller.rollout.observation import CommandKind
from controller.rollout.state import Phase
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")  # nobody answers there
    return tmp_path


@pytest.mark.slow
def test_status_says_what_the_database_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(
        ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0, name="base")
    )
    state = replace(a_rollout(), phase=Phase.STAGE, weight_bp=1000)
    store.create_rollout(with_log_line(state, "stage 1 of 2: now 10 %", 2.0), request="{}", at_s=1.0)
    store.close()

    code = run(["status", "chat"])

    err = capsys.readouterr().err
    assert code == 4
    assert f"chat, as last stored: stable {STABLE} (base)" in err
    assert f"rollout r-00000001 in stage, canary {CANARY} at 10 %" in err
    assert "by controller: stage 1 of 2: now 10 %" in err
    assert "no controller answers at http://127.0.0.1:9; start it: canaryctl up" in err


@pytest.mark.slow
def test_a_script_gets_what_the_database_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the text said it."""
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.close()

    assert run(["status", "chat", "-o", "json"]) == 4
    [line, *_] = json.loads(capsys.readouterr().err)["known"]
    assert line == f"chat, as last stored: stable {STABLE}"


def test_status_without_a_database_creates_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 4
    assert "no controller answers" in capsys.readouterr().err
    assert not list(home.glob("*.db"))


def test_status_migrates_no_database(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "canaryctl.db").touch()

    assert run(["status"]) == 4
    assert "nor can the database be read" in capsys.readouterr().err
    with closing(sqlite3.connect(home / "canaryctl.db")) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


@pytest.mark.slow
def test_status_says_that_a_rollback_was_requested_without_a_controller(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.create_rollout(replace(a_rollout(), phase=Phase.STAGE, weight_bp=1000), request="{}", at_s=1.0)
    store.append_command(
        "r-00000001", CommandKind.ROLLBACK, Identity("direct", Role.ADMIN), reason="3 a.m.", at_s=2.0
    )
    store.close()

    run(["status", "chat"])

    err = capsys.readouterr().err
    assert "rollout r-00000001: rollback requested at" in err
    assert "by direct (3 a.m.); its canary gets no traffic once the routers know" in err
    assert "the next controller unloads it: canaryctl up" in err
    assert "at 10 %" not in err


@pytest.mark.slow
def test_history_says_what_the_database_knows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    for id in ("r-00000001", "r-00000002"):
        state = replace(a_rollout(id), phase=Phase.FAILED, reason="no room")
        store.create_rollout(state, request="{}", at_s=1.0)
    with store.database.write() as db:
        db.execute(sa.text("update rollouts set state = '{\"format\": 99}' where id = 'r-00000002'"))
    store.close()

    code = run(["history", "chat"])

    err = capsys.readouterr().err
    assert code == 4
    assert err.index("r-00000002") < err.index("r-00000001")
    assert "rollout state has format 99, this canaryctl reads 1" in err
    assert "no room" in err
    assert "no controller answers" in err.splitlines()[-1]


@pytest.mark.slow
def test_status_shows_the_rest_beside_a_rollout_that_cannot_be_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One newest rollout of another release hid every service of the database."""
    store = SqlStore(load_settings().database_url)
    for name, rollout in (("chat", "r-00000001"), ("code", "r-00000002")):
        store.put_service(ServiceRow(name, "{}", STABLE, "s", 1.0), VersionRow(name, STABLE, "{}", "{}", 1.0))
        state = replace(a_rollout(rollout), service=name, phase=Phase.STAGE, weight_bp=1000)
        store.create_rollout(with_log_line(state, "now 10 %", 2.0), request="{}", at_s=1.0)
    with store.database.write() as db:
        db.execute(sa.text("update rollouts set state = '{\"format\": 99}' where id = 'r-00000001'"))
    store.close()

    code = run(["status"])

    err = capsys.readouterr().err
    assert code == 4
    assert f"chat, as last stored: stable {STABLE}" in err
    assert (
        "chat: rollout r-00000001 cannot be read (rollout state has format 99, this canaryctl reads 1" in err
    )
    assert "chat: last event" in err
    assert f"code: rollout r-00000002 in stage, canary {CANARY} at 10 %" in err
    assert "nor can the database be read" not in err


def test_status_says_that_the_database_of_a_running_cluster_is_gone(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "cluster.json").write_text("{}")

    assert run(["status"]) == 4
    err = capsys.readouterr().err
    assert f"the database {home / 'canaryctl.db'} is gone or empty; restore it before canaryctl up" in err


@pytest.mark.parametrize("words", [["status"], ["list"], ["history", "chat"], ["rollback", "chat"]])
@pytest.mark.parametrize("name", ["", "typo/deep"])
def test_a_command_without_a_controller_makes_no_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:
    """A mistyped CANARYCTL_HOME became a state folder with an admin's token in it."""
    monkeypatch.setenv("CANARYCTL_HOME", str(home / name))

    run(words)

    assert [str(path.relative_to(home)) for path in home.rglob("*")] == []
