"""The first commands that a person types, and options that would do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cli import processes, services
from controller.cli.main import run
from controller.cli.processes import Running
from controller.settings import Settings, load_settings
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import cluster
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.rollouts import STABLE
from tests.fakes.served import at_home, serving_chat

START_ONE = "start one: canaryctl up --service NAME --model DIR"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that nothing has used, and nobody at the controller's port."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CANARYCTL_API_PORT", "9")
    return tmp_path / "home"


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    write_checkpoint(tmp_path / "v2", seed=7)
    with serving_chat(at_home(tmp_path / "served", monkeypatch), write_checkpoint(tmp_path / "base")) as fake:
        yield fake


@pytest.mark.parametrize("command", [["status"], ["list"], ["plan", "--twin"], ["history"]])
def test_a_first_command_says_how_to_start_a_service(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`start it: canaryctl up` was the answer, and that of `up` a minute later: give a service."""
    assert run(command) == 4
    assert START_ONE in capsys.readouterr().err


def test_up_without_a_service_is_refused_before_anything_is_started(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr(cluster, "start", started.append)

    assert run(["up"]) == 2
    assert START_ONE in capsys.readouterr().err
    assert started == []
    assert not (home / "canaryctl.db").exists()


def test_a_stored_service_is_started_with_up_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqlStore(load_settings().database_url)
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))
    store.close()

    assert run(["list"]) == 4
    assert "start it: canaryctl up\n" in capsys.readouterr().err


@pytest.mark.slow
def test_after_a_reboot_up_alone_serves_what_was_served(
    chat: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither Ray nor a controller runs; the database knows the services."""
    started: list[Settings] = []

    def start(settings: Settings, **_: object) -> Settings:
        started.append(settings)
        return settings

    monkeypatch.setattr(processes, "running", lambda _: Running(False, False, False))
    monkeypatch.setattr(processes, "start", start)
    stable = chat.store.service("chat").stable

    assert run(["up", "--no-wait"]) == 0
    assert (len(started), chat.store.service("chat").stable) == (1, stable)
    assert "chat" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["deploy", "plan"])
def test_a_source_that_was_taken_for_the_service_is_named(
    chat: FakeController,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run([command, "./v2"]) == 2
    assert (
        "./v2 was taken for the service; a checkpoint is given with --model ./v2" in capsys.readouterr().err
    )
    assert run([command, "twin"]) == 2
    assert "twin was taken for the service; a twin run is given with --twin" in capsys.readouterr().err
    assert run([command, "chat"]) == 2
    assert "was taken for" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["deploy", "--model", "v2", "--timeout", "5s"],
            "--timeout limits how long --wait waits; give --wait",
        ),
        (["up", "-m", "why"], "--message needs a service"),
        (["up", "--no-wait", "--timeout", "5s"], "--timeout limits a wait that --no-wait leaves out"),
        (["deploy", "--model", "v2", "--dry-run", "--wait"], "--dry-run starts nothing to wait for"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    chat: FakeController, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = chat.picture()

    assert run(arguments) == 2
    assert line in capsys.readouterr().err
    assert chat.picture() == before


@pytest.mark.slow
def test_a_rollback_is_never_refused_for_such_an_option(
    chat: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rollback", "chat", "--timeout", "5s"]) == 0
    assert "--timeout has no effect without --wait" in capsys.readouterr().err


@pytest.mark.slow
def test_up_says_what_it_does_where_no_spinner_can_be_drawn(
    chat: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    """It printed nothing for a minute."""
    run(["up", "--timeout", "1s"])
    err = capsys.readouterr().err

    assert "loading chat" in err
    assert "starting" not in err  # both run
    assert services._starting(Running(False, False, False)) == "starting Ray and the controller"
    assert services._starting(Running(True, False, False)) == "starting the controller"


@pytest.mark.parametrize(
    "command", [["down", "--yes"], ["rollback", "--direct"], ["rollback", "chat", "--direct"], ["status"]]
)
def test_no_command_but_up_creates_a_database(home: Path, command: list[str]) -> None:
    run(command)

    assert not list(home.glob("*.db*"))
