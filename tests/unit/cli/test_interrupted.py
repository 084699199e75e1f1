"""Ctrl-C on a command that waits: what goes on without it, and how to follow or end that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.cli import processes
from controller.cli.client import Client
from controller.cli.main import run
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    home, stable = at_home(tmp_path / "home", monkeypatch), write_checkpoint(tmp_path / "stable")
    write_checkpoint(tmp_path / "v2", seed=7)
    with serving_chat(home, stable, is_preflight_open=True) as fake:
        yield fake


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, method, interrupted)


CASES: dict[str, tuple[list[str], str, str]] = {  # arguments, where it is interrupted, what is told
    "deploy --wait": (
        ["deploy", "--model", "{tmp}/v2", "--wait"],
        "rollout",
        "goes on; follow it: canaryctl watch chat; end it: canaryctl rollback chat",
    ),
    "deploy that hashes": (
        ["deploy", "--model", "{tmp}/v2"],
        "deploy",
        "the controller may still start the rollout: canaryctl status chat",
    ),
    "up that hashes": (
        ["up", "--service", "two", "--model", "{tmp}/v2"],
        "up",
        "what was started goes on; follow it: canaryctl status; end it: canaryctl down",
    ),
    "up that waits": (
        ["up"],
        "service",
        "chat goes on loading; follow it: canaryctl status chat; end it: canaryctl down chat",
    ),
}


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_wait_says_what_goes_on(
    chat: FakeController,
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, method, told = CASES[case]
    interrupt(monkeypatch, method)

    code = run([argument.format(tmp=tmp_path) for argument in arguments])

    assert code == 130
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["watch", "rollback", "undo", "down"])
def test_an_interrupted_wait_for_what_runs_says_so_too(
    chat: FakeController,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command != "down":
        assert run(["deploy", "--model", str(tmp_path / "v2")]) == 0
    capsys.readouterr()
    told: dict[str, tuple[list[str], str, Callable[[str], bool]]] = {
        "watch": (
            ["watch"],
            "rollout",
            lambda err: "goes on; follow it: canaryctl watch chat; end it:" in err,
        ),
        "rollback": (
            ["rollback", "--wait"],
            "rollout",
            lambda err: (
                "the rollback goes on; follow it: canaryctl watch chat" in err and "end it" not in err
            ),
        ),
        "undo": (
            ["undo", "--wait"],
            "rollout",
            lambda err: "goes on; follow it: canaryctl watch chat" in err,
        ),
        "down": (
            ["down", "chat", "--yes"],
            "services",
            lambda err: "the removal of chat goes on; follow it: canaryctl list" in err,
        ),
    }
    arguments, method, holds = told[command]
    monkeypatch.setattr(processes, "stop", lambda settings: None)
    if command == "down":
        monkeypatch.setattr("controller.wiring.cluster.is_running", lambda settings: True)
    interrupt(monkeypatch, method)

    code = run(arguments if command == "down" else [arguments[0], "chat", *arguments[1:]])

    err = capsys.readouterr().err
    assert code == 130
    assert holds(err), err
