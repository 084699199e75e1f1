"""WebSockets of `/v1/realtime`: passed through to an engine of stable, with real clients and servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
import websockets
from websockets.asyncio.client import connect

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.credentials import ControlSecret, DataSecret
from serving.fleet.engine_front import EngineFront
from serving.messages import Arm, Replica, RouteTable
from serving.router.turns import Turns
from serving.router.types import Limits
from tests.fakes.router_rig import SECRET, Rig, router_rig, until


class EchoEngine:
    """In place of vLLM's application: repeats what it is sent, in capitals."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.query = b""
        self._accepts = accepts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers, self.query = dict(scope["headers"]), scope["query_string"]
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


@pytest.mark.slow
async def test_messages_pass_both_ways_and_a_close_reaches_the_client() -> None:
    app = EchoEngine()
    async with tunnelled(app) as rig:
        async with connect(
            address(rig),
            additional_headers={"authorization": "Bearer mine", "accept-language": "x", "x-n": "1"},
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
    assert app.headers[b"accept-language"] == b"x"
    assert not {b"authorization", b"x-n"} & app.headers.keys()
    assert (records, rig.canary.seen) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "offered"),
    [
        ("", ["realtime", "openai-insecure-api-key.sk-client", "openai-beta.v1"]),
        ("?api-key=sk-client&a=b", None),
    ],
    ids=["subprotocol", "query"],
)
async def test_a_key_that_only_a_pages_websocket_sends_opens_the_tunnel_and_stays_here(
    query: str, offered: list[str] | None
) -> None:
    app = EchoEngine()
    access = Access({digest_of("sk-client"): ClientKey("page")}, keys_required=True)
    async with tunnelled(app) as rig:
        table = rig.core.table
        assert table is not None
        rig.core.on_table(replace(table, access=access, change=table.change + 1), sent_s=boot_s())
        protocols = None if offered is None else list(map(websockets.Subprotocol, offered))
        async with connect(address(rig) + query, subprotocols=protocols) as one:
            await one.send("abc")
            said = await one.recv()

    assert said == "ABC"
    assert app.query == (b"a=b" if query else b"")
    assert app.headers.get(b"sec-websocket-protocol") == (b"realtime, openai-beta.v1" if offered else None)


class _Told:
    """Notes who joins these turns."""

    def __init__(self, turns: Turns, joined: list[Turns]) -> None:
        self._turns, self._join, self._joined = turns, turns.join, joined

    def join(self, work: Callable[[], object], least_s: float = 0.0, client: str = "") -> None:
        self._joined.append(self._turns)
        self._join(work, least_s, client)


@pytest.mark.slow
async def test_both_sides_are_read_in_turns_and_an_open_tunnel_counts_as_under_way() -> None:
    """Of forty that sent as fast as they could the loop read 8 MB each before it did anything else."""
    async with tunnelled(EchoEngine()) as rig:
        assert rig.front.upstream is not None
        joined: list[Turns] = []
        for turns in (rig.front.turns, rig.front.upstream.turns):
            told = _Told(turns, joined)
            turns.join = told.join  # type: ignore[method-assign]
        async with connect(address(rig), max_size=1 << 24, compression=None) as one:
            await one.send("x" * 4_000_000)
            await one.recv()
            under_way = rig.front.under_way
        await until(lambda: rig.front.under_way == 0)

    assert set(joined) == {rig.front.turns, rig.front.upstream.turns}
    assert under_way == 1


@pytest.mark.slow
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


@pytest.mark.slow
async def test_a_tunnel_in_which_nothing_moves_is_closed() -> None:
    async with tunnelled(EchoEngine(), Limits(idle_s=0.3)) as rig:
        async with connect(address(rig), ping_interval=None) as one:
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(one.recv(), 20)
        await until(lambda: not rig.core.in_flight)


@pytest.mark.slow
async def test_the_next_replica_is_asked_where_one_does_not_answer() -> None:
    async with engine(EchoEngine()) as (url, _), engine(None) as (loading, _), router_rig() as rig:
        use(rig, "http://127.0.0.1:9", loading, url)
        async with connect(address(rig)) as one:
            await one.send("a")
            answer = await one.recv()

    assert answer == "A"


@pytest.mark.slow
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


@pytest.mark.slow
async def test_the_answer_to_a_handshake_has_the_headers_of_every_answer() -> None:
    async with (
        tunnelled(EchoEngine()) as rig,
        connect(address(rig), additional_headers={"x-request-id": "mine"}) as one,
    ):
        assert one.response is not None
        headers = one.response.headers

    assert (headers["x-canaryctl-version"], headers["x-request-id"]) == ("v-1", "mine")
    assert headers["x-canaryctl-arm"] == "stable"
    assert "server" not in headers  # the engine's


async def test_a_handshake_that_reaches_no_engine_says_why() -> None:
    async with router_rig() as rig:
        use(rig, "http://127.0.0.1:9")
        status, body = await refusal(rig)

    assert status == 503
    assert "no replica of stable version v-1 answers (connection refused)" in body


async def test_a_plain_request_is_told_that_it_is_a_websocket() -> None:
    async with router_rig() as rig:
        answer = await rig.client.get("/chat/v1/realtime")
        posted = await rig.client.post("/chat/v1/realtime", json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert posted.status_code == 405


@pytest.mark.slow
async def test_an_engine_accepts_a_websocket_of_its_routers_alone() -> None:
    async with engine(EchoEngine(), DataSecret("another")) as (url, _), router_rig() as rig:
        use(rig, url)
        status, _ = await refusal(rig)
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with connect(url.replace("http", "ws") + "/v1/realtime"):
                pass

    # Not that "its model may not take audio", as was said: the engine was not asked.
    assert (status, caught.value.response.status_code) == (503, 403)


@pytest.mark.slow
async def test_a_service_that_requires_keys_requires_one_here() -> None:
    async with tunnelled(EchoEngine()) as rig:
        table = rig.core.table
        assert isinstance(table, RouteTable)
        access = Access(keys={}, keys_required=True)
        rig.core.on_table(replace(table, access=access, change=9), sent_s=boot_s())
        status, _ = await refusal(rig)

    assert status == 401


@pytest.mark.slow
async def test_a_client_that_leaves_before_the_engine_answers_is_counted_no_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with router_rig() as rig:
            use(rig, f"http://127.0.0.1:{silent.getsockname()[1]}")
            host, port = rig.base.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            offer = "connection: Upgrade\r\nupgrade: websocket\r\n\r\n"
            head = "GET /chat/v1/realtime HTTP/1.1\r\nhost: x\r\n" + offer
            writer.write(head.encode())
            await until(lambda: sum(rig.core.in_flight.values()) == 1)
            writer.transport.abort()
            await until(lambda: not rig.core.in_flight)
            await until(lambda: not rig.front._connections)


@pytest.mark.slow
async def test_many_tunnels_that_end_at_once_end_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a thousand in one turn of the loop held up all streams for 0.1 s."""
    joined: list[Turns] = []
    async with tunnelled(EchoEngine()) as rig:
        upstream = rig.front.upstream
        assert upstream is not None
        monkeypatch.setattr(upstream, "turns", _Told(upstream.turns, joined))
        monkeypatch.setattr(upstream.turns, "is_free", lambda: False, raising=False)
        async with connect(address(rig)):
            await until(lambda: bool(upstream.tunnels))
        await until(lambda: not upstream.tunnels)

    assert joined
