"""What the emergency command needs, and what it tells: no ports, each step, and the files of a warning."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from controller import telemetry
from controller.cli.client import Client
from controller.cli.main import run
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import direct_rollback
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE, a_rollout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    for name in ("CANARYCTL_DATABASE_URL", "CANARYCTL_API_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("text", ["", "{", '{"port": 1}'])
def test_a_direct_rollback_needs_no_ports(home: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """A config.json that the power cut short ended it before it had done anything."""
    store = SqlStore(sqlite_url(home / "canaryctl.db"))
    row = ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0)
    store.put_service(*row)
    store.create_rollout(a_rollout("r-1"), request="{}", at_s=1.0)
    (home / "config.json").write_text(text)

    code = run(["rollback", "chat", "--direct"])
    asked = store.commands("r-1", after_seq=0)
    store.close()

    assert (code, len(asked)) == (4, 1)  # no cluster runs here, so traffic has not moved
    assert run(["status"]) == 2
    assert "not a canaryctl config" in capsys.readouterr().err


def test_programs_are_told_each_step_of_what_failed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = SimpleNamespace(
        succeeded=("stored",), failed=("not tombstoned",), next_step="try again", problem="it has not moved"
    )
    monkeypatch.setattr(direct_rollback, "roll_back_directly", lambda *_, **__: result)

    code = run(["rollback", "chat", "--direct", "-o", "json"])

    told = json.loads(capsys.readouterr().err)
    assert (code, told["detail"], told["exit_code"]) == (4, "it has not moved", 4)
    assert told["known"] == ["stored", "not tombstoned", "try again"]


def test_a_warning_of_a_command_names_its_files(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(**_: object) -> int:
        telemetry.warning("the log of another database was set aside", file="/x/log", database="/x/db")
        return 0

    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    for name in (None, telemetry.LOGGER):  # as in a command: a test runner adds handlers of its own
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    monkeypatch.setattr(sys.modules["controller.cli.main"], "app", warning)

    assert run(["status"]) == 0
    line = "warning: the log of another database was set aside (file /x/log, database /x/db)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("health", "is_led"),
    [
        (None, False),
        ({"leading": True}, True),
        ({"leading": False}, False),
        ({"leading": True, "lost_database": "gone"}, False),
    ],
)
def test_a_direct_rollback_asks_whether_a_controller_runs_and_can_act(
    home: Path, monkeypatch: pytest.MonkeyPatch, health: dict[str, object] | None, is_led: bool
) -> None:
    """Its next step was to start one that ran."""
    monkeypatch.setattr(Client, "health", lambda self: health)
    monkeypatch.setattr(Client, "accepts_token", lambda self: True)
    told: list[bool] = []
    result = SimpleNamespace(succeeded=(), failed=(), next_step=None, problem=None)

    def roll_back(*_: object, is_led: Callable[[], bool], **__: object) -> SimpleNamespace:
        told.append(is_led())
        return result

    monkeypatch.setattr(direct_rollback, "roll_back_directly", roll_back)

    assert run(["rollback", "chat", "--direct"]) == 0
    assert told == [is_led]
