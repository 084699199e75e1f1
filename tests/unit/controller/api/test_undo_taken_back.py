"""An undo that is itself taken back: who asks for the way back is told where the service goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from controller.rollout.state import CauseKind, Departure, DepartureStep, Phase
from tests.fakes.controller import FakeController
from tests.unit.controller.api.test_undo import Chat


@pytest.fixture
async def chat(controller: FakeController, api: httpx.AsyncClient, tmp_path: Path) -> Chat:
    return Chat(controller, api, tmp_path)


def take_back(chat: Chat, undo: str) -> None:
    """The undo's version failed, so it leaves again."""
    state = chat.load(undo)
    departure = Departure(state.canary.id, state.stable.id, DepartureStep.UNLOAD, 0.0, 0.0)
    chat.commit(replace(state, phase=Phase.ROLLING_BACK, departure=departure))


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["rollback", "undo"])
@pytest.mark.parametrize("is_queued", [True, False])
async def test_no_undo_that_is_taken_back_is_called_the_way_back(
    chat: Chat, command: str, is_queued: bool
) -> None:
    first, second = await chat.up(), await chat.promote(2)
    undo = (await chat.post("undo"))["rollout"]
    if is_queued:
        assert (await chat.post("undo", to=second))["outcome"] == "asked"
    else:
        take_back(chat, undo)

    answer = await chat.post(command, reason="it insults people")
    there = await chat.post("undo", to=second)

    assert (answer["status"], answer["exit_code"]) == (409, 3)
    assert f"chat is returning to {second}: undo {undo} to {first} is taken back" in answer["detail"]
    assert f"canaryctl undo chat --to {first}" in answer["detail"]
    assert (there["outcome"], there["text"]) == ("already", f"chat is returning to {second} already")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rollback", "undo"])
async def test_after_an_undo_of_an_undo_the_way_back_is_named(chat: Chat, command: str) -> None:
    first, second = await chat.up(), await chat.promote(2)
    chat.succeed((await chat.post("undo"))["rollout"])
    chat.succeed((await chat.post("undo", to=second))["rollout"])

    text = (await chat.post(command))["text"]

    assert text == f"chat: already serving {second}; to go further back: canaryctl undo chat --to {first}"


@pytest.mark.slow
async def test_after_a_failed_undo_the_same_command_tries_again(chat: Chat) -> None:
    first, _ = await chat.up(), await chat.promote(2)
    undo = (await chat.post("undo"))["rollout"]
    take_back(chat, undo)
    chat.fail(undo, CauseKind.PROBE)

    again = await chat.post("rollback")

    assert chat.load(again["rollout"]).canary.id == first


@pytest.mark.slow
async def test_a_rollback_that_leaves_an_undo_alone_names_what_would_end_it(chat: Chat) -> None:
    """Its `already` was read at 3 a.m. as the end of the undo, which went on."""
    first, second = await chat.up(), await chat.promote(2)
    await chat.post("undo")

    text = (await chat.post("rollback"))["text"]

    ending = f"to end that and keep {second}: canaryctl undo chat --to {second}"
    assert text == f"chat is returning to {first} already; {ending}"
