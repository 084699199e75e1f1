"""WebSockets of `/v1/realtime`: passed through to an engine of stable, with real clients and servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
import websockets
from websockets.asyncio.client import connect

from serving.access import Access
from serving.clock import boot_s
from serving.credentials import ControlSecret, DataSecret
from serving.fleet.engine_front import EngineFront
from serving.messages import Arm, Replica, RouteTable
from serving.router.types import Limits
from tests.fakes.router_rig import SECRET, Rig, router_rig, until


class EchoEngine:
    """In place of vLLM's application: repeats what it is sent, in capitals."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.headers: dict[bytes, bytes] = {}
        self._accepts = accepts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = dict(scope["headers"])
        assert (await receive())["type"] == "websocket.connect"
        if not self._accepts:
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text") or ""
            if text == "bye":
                await send({"type": "websocket.close", "code": 4321})
                return
            await send({"type": "websocket.send", "text": text.upper()})


@asynccontextmanager
async def engine(
    app: EchoEngine | None, secret: DataSecret = SECRET
) -> AsyncIterator[tuple[str, EngineFront]]:
    """An engine's front on a port, as it is served in a cluster; None: it is still loading."""
    front = EngineFront(data=secret, control=ControlSecret.of("root"), describe=dict)
    front.app = app
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(front, log_config=None, lifespan="off", ws="auto")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", front
    finally:
        server.should_exit = server.force_exit = True
        await serving


@asynccontextmanager
async def tunnelled(app: EchoEngine | None, limits: Limits | None = None, **arm: Any) -> AsyncIterator[Rig]:
    async with engine(app) as (url, _), router_rig(limits) as rig:
        use(rig, url, **arm)
        yield rig


def use(rig: Rig, *urls: str, **arm: Any) -> None:
    """All replicas of stable; the canary has the whole weight."""
    table = rig.core.table
    assert table is not None
    stable = Arm("v-1", tuple(map(Replica, urls)), **arm)
    rig.core.on_table(replace(table, stable=stable, change=table.change + 1), sent_s=boot_s())


def address(rig: Rig, path: str = "/chat/v1/realtime") -> str:
    return rig.base.replace("http", "ws") + path


async def refusal(rig: Rig) -> tuple[int, str]:
    """Status and code of a handshake that is not accepted."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connect(address(rig)):
            pass
    response = caught.value.response
    return response.status_code, response.body.decode()


async def test_messages_pass_both_ways_and_a_close_reaches_the_client() -> None:
    app = EchoEngine()
    async with tunnelled(app) as rig:
        async with connect(
            address(rig), additional_headers={"authorization": "Bearer mine", "x-n": "1"}
        ) as one:
            answers = []
            for text in ("abc", "x" * 1_000_000, "y"):
                await one.send(text)
                answers.append(await one.recv())
            in_flight = dict(rig.core.in_flight)
            await one.send("bye")
            with contextlib.suppress(websockets.ConnectionClosed):
                await one.recv()
        await until(lambda: not rig.core.in_flight)
        records = rig.records()

    assert answers == ["ABC", "X" * 1_000_000, "Y"]
    assert one.close_code == 4321
    assert list(in_flight.values()) == [1]
    assert app.headers[b"x-canaryctl-secret"] == SECRET.text.encode()
    assert app.headers[b"x-n"] == b"1"
    assert b"authorization" not in app.headers
    assert (records, rig.canary.seen) == ([], [])


async def test_a_client_that_leaves_ends_the_engines_side() -> None:
    async with engine(EchoEngine()) as (url, front), router_rig() as rig:
        use(rig, url)
        async with connect(address(rig)) as one:
            await one.send("a")
            await one.recv()
            open_at_the_engine = front.in_flight
            one.transport.abort()
        await until(lambda: front.in_flight == 0 and not rig.core.in_flight)
        await until(lambda: not rig.front._connections)

    assert open_at_the_engine == 1


async def test_a_tunnel_in_which_nothing_moves_is_closed() -> None:
    async with tunnelled(EchoEngine(), Limits(idle_s=0.3)) as rig:
        async with connect(address(rig), ping_interval=None) as one:
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(one.recv(), 5)
        await until(lambda: not rig.core.in_flight)


async def test_the_next_replica_is_asked_where_one_does_not_answer() -> None:
    async with engine(EchoEngine()) as (url, _), engine(None) as (loading, _), router_rig() as rig:
        use(rig, "http://127.0.0.1:9", loading, url)
        async with connect(address(rig)) as one:
            await one.send("a")
            answer = await one.recv()

    assert answer == "A"


@pytest.mark.parametrize(
    ("app", "arm", "expected"),
    [
        (None, {}, (503, "no_capacity")),
        (EchoEngine(accepts=False), {}, (501, "no_realtime")),
        (EchoEngine(), {"external": True}, (501, "no_realtime")),
    ],
)
async def test_what_cannot_be_opened_is_refused_in_one_line(
    app: EchoEngine | None, arm: dict[str, Any], expected: tuple[int, str]
) -> None:
    async with tunnelled(app, **arm) as rig:
        status, body = await refusal(rig)
        await until(lambda: not rig.core.in_flight)

    assert (status, expected[1] in body) == (expected[0], True), body


async def test_a_plain_request_is_told_that_it_is_a_websocket() -> None:
    async with router_rig() as rig:
        answer = await rig.client.get("/chat/v1/realtime")
        posted = await rig.client.post("/chat/v1/realtime", json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert posted.status_code == 405


async def test_an_engine_accepts_a_websocket_of_its_routers_alone() -> None:
    async with engine(EchoEngine(), DataSecret("another")) as (url, _), router_rig() as rig:
        use(rig, url)
        status, _ = await refusal(rig)
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connect(url.replace("http", "ws") + "/v1/realtime"):
                pass

    assert (status, caught.value.response.status_code) == (501, 403)


async def test_a_service_that_requires_keys_requires_one_here() -> None:
    async with tunnelled(EchoEngine()) as rig:
        table = rig.core.table
        assert isinstance(table, RouteTable)
        access = Access(keys={}, keys_required=True)
        rig.core.on_table(replace(table, access=access, change=9), sent_s=boot_s())
        status, _ = await refusal(rig)

    assert status == 401
