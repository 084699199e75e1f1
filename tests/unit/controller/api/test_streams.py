"""Open event streams: bounded in all and of each caller, so that the rest of the API has connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.api.event_stream import HeldStream, Streams
from controller.errors import Unreachable
from tests.fakes.checkpoints import write_checkpoint


def test_one_caller_has_a_part_of_the_streams_and_all_have_no_more_than_there_are() -> None:
    streams = Streams(8)
    for _ in range(2):
        streams.enter("ann")
    with pytest.raises(Unreachable, match="ann has 2 event streams open already") as refused:
        streams.enter("ann")
    for name in ("bob", "cat", "dan"):
        for _ in range(2):
            streams.enter(name)
    with pytest.raises(Unreachable, match="8 event streams are open already, at most 8 may be"):
        streams.enter("eve")

    assert refused.value.retry_after_s is not None


def test_a_stream_that_has_ended_leaves_its_place() -> None:
    streams = Streams(4)
    streams.enter("ann")
    streams.leave("ann")
    streams.enter("ann")

    assert len(streams) == 1


async def test_a_stream_whose_client_is_gone_leaves_its_place_too() -> None:
    left: list[str] = []

    async def endless() -> AsyncIterator[str]:
        while True:
            yield "x"
            await asyncio.sleep(0)

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def refused(_message: Any) -> None:
        raise OSError

    stream = HeldStream(endless(), leave=lambda: left.append("ann"))
    with contextlib.suppress(OSError):
        await asyncio.wait_for(stream({"type": "http"}, gone, refused), 60.0)

    assert left == ["ann"]


async def test_a_stream_of_too_many_is_503_and_says_when_to_come_again(
    api: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    async def none(*_asked: object) -> AsyncIterator[str]:
        yield ""

    monkeypatch.setattr("controller.api.app.events", none)
    monkeypatch.setattr(Streams, "leave", lambda _self, name: taken.append(f"{name} left"))
    await api.put("/v1/services/chat", json={"model": str(write_checkpoint(tmp_path / "m", seed=1))})
    assert (await api.get("/v1/services/chat/events")).status_code == 200

    def full(_self: Streams, name: str) -> None:
        raise Unreachable(f"{name} has too many", retry_after_s=10)

    monkeypatch.setattr(Streams, "enter", full)
    answer = await api.get("/v1/services/chat/events")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert len(taken) == 1  # the one that was open
