"""Commands to a controller that cannot act: refused where they would be lost, else answered with why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.runtime.service_loop import LastTick, Problem
from serving.messages import DatabaseMark
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
OLDER = Problem("not acting: it is an older copy; restore the newest one", loses_commands=True)
FULL = Problem("the disk is full")
WAITS = " once the controller can act; now: the disk is full"


class Chat:
    """The service `chat`, and with `deploy` a rollout of it."""

    def __init__(
        self, controller: FakeController, api: httpx.AsyncClient, folder: Path, patch: pytest.MonkeyPatch
    ) -> None:
        self.controller, self.api, self._folder, self._patch = controller, api, folder, patch

    async def up(self, **more: Any) -> httpx.Response:
        return await self.api.put(URL, json={"model": str(self.model("1", 1)), **more})

    async def deploy(self) -> httpx.Response:
        body = {"version": {"model": str(self.model("2", 2))}}
        return await self.api.post(f"{URL}/rollouts", json=body)

    def fail_with(self, problem: Problem | None) -> None:
        self._patch.setattr(self.controller.runner, "last_tick", lambda name: LastTick(problem=problem))
        self._patch.setattr(self.controller.environment, "knows_all", lambda name: None)

    def restore_older_copy(self) -> None:
        """The route table knows it; no tick has seen it."""
        self.controller.traffic.start("chat")
        self.controller.traffic.marks["chat"] = DatabaseMark(7, "another", 9)

    def picture(self) -> tuple[object, ...]:
        store = self.controller.store
        rows = store.rollouts("chat")
        return self.controller.picture(), [store.commands(row.id, after_seq=0) for row in rows]

    def model(self, name: str, seed: int) -> Path:
        path = self._folder / name
        return path if path.exists() else write_checkpoint(path, seed=seed)


@pytest.fixture
async def chat(
    controller: FakeController, api: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Chat:
    chat = Chat(controller, api, tmp_path, monkeypatch)
    assert (await chat.up()).status_code == 200
    return chat


async def send(chat: Chat, command: str) -> httpx.Response:
    if command == "deploy":
        return await chat.deploy()
    if command == "clients":
        return await chat.up(clients={"keys_required": True, "keys": [{"name": "a", "sha256": "0" * 64}]})
    if command == "up again":
        return await chat.up()
    if command == "up of another":
        return await chat.api.put("/v1/services/other", json={"model": str(chat.model("1", 1))})
    if command == "down":
        return await chat.api.delete(URL)
    return await chat.api.post(f"{URL}/{command}", json={})


COMMANDS = ["rollback", "undo", "deploy", "down", "clients", "up again", "up of another"]


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_controller_without_a_tick_of_its_own_takes_no_command_that_would_be_lost(
    chat: Chat, command: str
) -> None:
    """A second controller of the database, or one that has just started, answered "begins" with exit 0; a new
    service was created, loaded, and lost while it served."""
    assert (await chat.deploy()).status_code == 201
    chat.restore_older_copy()
    before = chat.picture()

    answer = await send(chat, command)

    said = answer.json()
    assert (answer.status_code, said["exit_code"], said["type"]) == (503, 4, "urn:canaryctl:older-database")
    assert "an older copy or a second one" in said["detail"]
    assert "canaryctl rollback chat --direct" in said["detail"]
    assert chat.picture() == before


@pytest.mark.slow
async def test_a_database_that_was_accepted_takes_commands_before_the_next_tick(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await chat.deploy()).status_code == 201
    chat.fail_with(OLDER)
    monkeypatch.setattr(chat.controller.environment, "knows_all", lambda name: True)

    assert (await send(chat, "rollback")).status_code == 202


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("has_rollout", [False, True])
@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_that_would_be_lost_with_an_older_database_is_refused(
    chat: Chat, command: str, has_rollout: bool
) -> None:
    """It was answered "begins" with exit 0; in the newest database, which was restored as advised, the canary
    was promoted."""
    if has_rollout:
        assert (await chat.deploy()).status_code == 201
    before = chat.picture()
    chat.fail_with(OLDER)

    answer = await send(chat, command)

    said = answer.json()
    assert (answer.status_code, said["exit_code"], said["type"]) == (503, 4, "urn:canaryctl:older-database")
    assert OLDER.text in said["detail"]
    assert "canaryctl rollback chat --direct" in said["detail"]
    assert chat.picture() == before


@pytest.mark.slow
async def test_an_answer_says_what_keeps_the_controller_from_acting(chat: Chat) -> None:
    chat.fail_with(FULL)

    deployed = (await send(chat, "deploy")).json()
    rolled_back = (await send(chat, "rollback")).json()

    rollout, stable = deployed["rollout"], chat.controller.store.service("chat").stable
    assert deployed["warnings"][-1] == f"{rollout} begins{WAITS}"
    begins = f"chat: rollback of {rollout} to {stable} begins{WAITS}"
    assert rolled_back["text"] == f"{begins}; or bypass it: canaryctl rollback chat --direct"


async def test_the_answer_to_down_says_what_keeps_the_controller_from_acting(chat: Chat) -> None:
    chat.fail_with(FULL)

    assert (await send(chat, "down")).json()["text"] == f"chat is being taken down{WAITS}"
