"""`up`, `status` and `deploy` name API keys that the controller cannot read; `up` gives it those it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.api.keys import KeyProblem
from controller.cli import processes
from controller.cli.main import run
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, FakeEnvironment
from tests.fakes.served import at_home

LINE = "has no API key: EXAMPLE_KEY is not set"


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    """A controller that serves an endpoint, and was started without its key."""
    home = at_home(tmp_path / "home", monkeypatch)
    monkeypatch.setattr(
        FakeEnvironment,
        "key_problem",
        lambda self, reference: KeyProblem("EXAMPLE_KEY is not set", reference.name),
    )
    fake = FakeController(home)
    fake.serve()
    yield fake
    fake.stop()


def up(*more: str) -> int:
    endpoint = ["--url", "https://api.example/v1", "--model", "large", "--engine", "api_key_env=EXAMPLE_KEY"]
    return run(["up", "--service", "chat", *endpoint, "--no-wait", *more])


@pytest.mark.slow
def test_up_and_status_name_the_version_and_the_variable(
    lacking: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EXAMPLE_KEY", raising=False)

    assert up() == 0
    assert f"warning: stable {lacking.store.service('chat').stable}" in (err := capsys.readouterr().err)
    assert LINE in err
    assert run(["status", "chat"]) == 0
    assert LINE in capsys.readouterr().out


@pytest.mark.slow
def test_up_restarts_a_controller_that_lacks_a_key_which_is_set(
    lacking: FakeController, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy that the line names: export the variable, then canaryctl up."""
    restarted: list[Path] = []
    monkeypatch.setattr(processes, "restart_controller", lambda settings: restarted.append(settings.home))
    monkeypatch.delenv("EXAMPLE_KEY", raising=False)
    assert up() == 0
    without = list(restarted)

    monkeypatch.setenv("EXAMPLE_KEY", "sk-secret-1")
    assert run(["up", "--no-wait"]) == 0

    output = capsys.readouterr()
    assert (without, restarted) == ([], [lacking.home])
    assert "the controller was restarted with EXAMPLE_KEY" in output.err
    assert "sk-secret" not in output.out + output.err


@pytest.mark.slow
def test_deploy_names_a_way_back_that_is_cut(
    lacking: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up() == 0
    model = write_checkpoint(tmp_path / "next", seed=2)
    capsys.readouterr()

    assert run(["deploy", "chat", "--model", str(model)]) == 0
    assert LINE in capsys.readouterr().err
