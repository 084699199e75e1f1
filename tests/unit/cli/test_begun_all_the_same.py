"""What has begun, or has ended, is reported so, whatever a later read for a remark says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.api.app import ViewBuilder
from controller.cli import live
from controller.cli.client import Client
from controller.cli.main import run
from controller.errors import Unreachable
from controller.settings import load_settings
from controller.views.models import RolloutView
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat

DEPLOY = ["deploy", "chat", "--allow-unproven", "x", "--allow-unjudged", "x", "--model"]


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    home, model = at_home(tmp_path / "home", monkeypatch), write_checkpoint(tmp_path / "1", seed=1)
    with serving_chat(home, model, is_loaded=True) as controller:
        yield controller


def busy(*_: object, **__: object) -> None:
    raise Unreachable("database does not answer: busy for a moment")


@pytest.mark.slow
@pytest.mark.parametrize("read", ["service", "rollout_by_id"])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_deploy_that_has_begun_does_not_exit_with_4_for_a_later_read(
    chat: FakeController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read: str,
    output: str,
) -> None:
    """A script that repeats what exits with 4 was told that a rollout runs."""
    monkeypatch.setattr(ViewBuilder, read, busy)

    assert run([*DEPLOY, str(write_checkpoint(tmp_path / "2", seed=2)), "-o", output]) == 0
    (rollout,) = chat.store.running("chat")
    assert rollout in capsys.readouterr().out


@pytest.mark.slow
def test_a_watch_exits_as_the_rollout_ended_also_where_the_service_is_not_read_again(
    chat: FakeController,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*DEPLOY, str(write_checkpoint(tmp_path / "2", seed=2))]) == 0
    real = live.watch

    def watch(client: Client, service: str, rollout: str, **more: Any) -> RolloutView:
        Client(load_settings()).rollback(service, reason="")
        ended = real(client, service, rollout, **{**more, "timeout_s": 60.0})
        monkeypatch.setattr(ViewBuilder, "service", busy)
        return ended

    monkeypatch.setattr(live, "watch", watch)
    capsys.readouterr()

    assert run(["watch", "chat", "-o", "json"]) == 5
    assert json.loads(capsys.readouterr().out)["rollout"]["phase"] == "rolled_back"
