"""Errors that nobody foresaw end no background loop: of the table actor, of a router, of a table file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.messages import Arm, Replica
from serving.router.ray_serve import replica_ray
from serving.router.router import RouterCore
from serving.router.standalone import table_file
from serving.router.standalone.table_file import FileTableSource
from serving.supervised import LoopState
from serving.table import table_actor
from serving.table.orders import FenceOrder, Split
from serving.table.table_actor import TableActor


class Store:
    """Ray's key-value store."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def _internal_kv_get(self, key: bytes, namespace: bytes) -> bytes | None:
        return self.values.get(key)

    def _internal_kv_put(self, key: bytes, value: bytes, *, overwrite: bool, namespace: bytes) -> None:
        self.values[key] = value

    def _internal_kv_del(self, key: bytes, namespace: bytes) -> None:
        self.values.pop(key, None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a condition in another task
            await asyncio.sleep(0.005)


def failing_once(method: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The method, whose first call raises what nobody foresaw; and a mark for each later call."""
    calls: list[int] = []

    def call(*values: Any, **named: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            raise KeyError("surprise")
        return method(*values, **named)

    return call, calls


def state_of(states: tuple[LoopState, ...], name: str) -> LoopState:
    return next(one for one in states if one.name == name)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    one = Store()
    monkeypatch.setattr(table_actor, "internal_kv", one)
    return one


@pytest.mark.slow
async def test_the_clock_of_a_table_goes_on_after_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = TableActor("chat", None)
    core = actor._core
    tick, calls = failing_once(core.tick)
    monkeypatch.setattr(core, "tick", tick)
    await actor.open("secret", 1)
    await until(lambda: len(calls) >= 2)

    assert state_of(await actor.loops(), "clock") == LoopState("clock", 1, "'surprise'")
    await actor.close(1)


@pytest.mark.slow
async def test_the_fences_of_a_table_are_posted_after_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = TableActor("chat", None)
    await actor.open("secret", 1)
    for version in ("v-1", "v-2"):
        await actor.set_replicas(Arm(version, (Replica("http://127.0.0.1:9"),)))
    await actor.set_split(Split("r-1", "salt", "v-1", "v-2", 500, 1), token=1)
    posted: list[str] = []

    async def note(_: object, order: FenceOrder) -> None:
        posted.append(order.url)

    post, _ = failing_once(note)
    monkeypatch.setattr(actor, "_post", post)
    await actor.set_split(Split("r-1", "salt", "v-1", None, 0, 1), token=1)
    await until(lambda: bool(posted))

    assert state_of(await actor.loops(), "fences").restarts == 1
    await actor.close(1)


async def test_a_closed_table_stores_nothing_any_more(store: Store) -> None:
    actor = TableActor("chat", None)
    await actor.open("secret", 1)
    before = dict(store.values)
    await actor.close(1)
    await actor.set_split(Split("r-1", "salt", "v-1", None, 0, 1), token=1)

    assert (bool(before), store.values) == (True, {})


async def test_a_destroyed_unit_key_has_left_the_store_when_the_call_returns(store: Store) -> None:
    actor = TableActor("chat", None)
    await actor.open("secret", 1)
    await actor.set_split(Split("r-1", "salt", "v-1", None, 0, 1), token=1)
    table = await actor.table()
    assert table.unit_key is not None
    key = table.unit_key.text.encode()
    held = [key in value for value in store.values.values()]
    is_destroyed = await actor.destroy_unit_key("r-1", 1)

    assert (held, is_destroyed) == ([True], True)
    assert not any(key in value for value in store.values.values())
    assert (await actor.table()).unit_key != table.unit_key
    await actor.close(1)


@pytest.mark.slow
async def test_a_router_polls_on_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    client = replica_ray.RayTableClient("chat")
    core = RouterCore("chat", router="r")
    on_table, calls = failing_once(core.on_table)
    monkeypatch.setattr(core, "on_table", on_table)

    async def watch(_: RouterCore) -> None:
        await asyncio.sleep(0.001)

    async def send(*_: object, **__: object) -> None:
        return

    monkeypatch.setattr(client, "watch", watch)
    monkeypatch.setattr(client, "_send", send)
    await client.start(core)
    await until(lambda: len(calls) >= 3)

    assert state_of(client.loops, "poll") == LoopState("poll", 1, "'surprise'")
    await client.stop()


@pytest.mark.slow
async def test_a_table_file_is_watched_on_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.yaml"
    path.write_text("service: chat\nstable: {url: 'http://127.0.0.1:1'}\n")
    monkeypatch.setattr(table_file, "RELOAD_CHECK_S", 0.001)
    source = FileTableSource(path)
    poll, calls = failing_once(source.poll)
    monkeypatch.setattr(source, "poll", poll)
    await source.start(RouterCore("chat", router="r"))
    await until(lambda: "chat" in source.cores and len(calls) >= 2)

    assert source.loops == (LoopState("table file", 1, "'surprise'"),)
    await source.stop()
