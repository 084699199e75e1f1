"""Commands in a state folder that has nothing, on a host where canaryctl serves from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli import processes
from controller.cli.main import run
from controller.settings import load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import elsewhere
from controller.wiring.elsewhere import ProcessSeen
from tests.fakes.rollouts import STABLE

OTHER = ProcessSeen(
    12, "ops", ("python3", "/bin/canaryctl", "controller"), {"CANARYCTL_HOME": "/var/lib/one"}, "/"
)
TOLD = "canaryctl runs on this host for /var/lib/one: set CANARYCTL_HOME=/var/lib/one"


class Started(Exception):
    """`up` got as far as to start something."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")  # nobody answers there
    monkeypatch.setattr(elsewhere, "process_table", lambda: iter((OTHER,)))

    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(processes, "start", start)
    return tmp_path


UP = ["up", "--service", "chat", "--url", "http://127.0.0.1:9/v1", "--no-wait"]


@pytest.mark.parametrize(
    "command", [["status"], ["rollback"], ["rollback", "chat", "--direct"], ["list"], ["history"], ["up"]]
)
def test_a_command_names_its_folder_and_the_one_that_serves(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) in (2, 4)
    err = capsys.readouterr().err
    assert f"no service yet in the state folder {home} (CANARYCTL_HOME); {TOLD}" in err
    for wrong in ("start one", "start it", "--direct", "gone or empty", "canaryctl down"):
        assert wrong not in err


def test_up_starts_no_second_cluster_unless_it_is_told_to(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(UP) == 3
    err = capsys.readouterr().err
    assert f"{TOLD}; to start a second Ray and controller beside it: canaryctl up --beside" in err
    assert len(err.splitlines()) == 1

    with pytest.raises(Started):
        run([*UP, "--beside"])


@pytest.mark.slow
def test_up_restarts_the_services_of_a_folder_beside_another_one(home: Path) -> None:
    """Who has services in two folders has chosen that already."""
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.close()

    with pytest.raises(Started):
        run(["up"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [["rollback", "chat"], ["rollback"]], ids=" ".join)
def test_a_rollback_of_a_stored_service_names_the_way_past_a_dead_controller(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.close()

    assert run(command) == 4
    told = f"start it: canaryctl up, or bypass it: canaryctl {' '.join(command)} --direct\n"
    assert capsys.readouterr().err.endswith(told)


def test_down_says_where_something_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down", "--yes"]) == 0
    assert f"nothing is running for the state folder {home}; {TOLD}" in capsys.readouterr().err


@pytest.mark.slow
def test_down_of_a_mistyped_name_never_says_to_remove_everything(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["down", "caht", "--yes"]) == 4
    assert TOLD in capsys.readouterr().err
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.close()

    assert run(["down", "caht", "--yes"]) == 2
    assert "service caht does not exist; there are: chat" in capsys.readouterr().err
    assert run(["down", "chat", "--yes"]) == 4
    assert "start it: canaryctl up, then: canaryctl down chat\n" in capsys.readouterr().err
