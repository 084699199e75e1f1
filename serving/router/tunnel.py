"""A client's WebSocket, passed through to stable: `/v1/realtime`, as vLLM serves it.

Rules:
1. It is never drawn and never recorded: a connection of many utterances is no request that could be assigned,
   repeated or compared. It stays with the engine of stable that it was opened to, until one side closes it.
2. The handshake is answered by the engine. What it does not accept is an error of the router, in one line.
3. A side that reads slowly stops the reading of the other. A tunnel in which nothing moves for `idle_s` ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from serving.clock import boot_s
from serving.messages import Arm, Replica
from serving.router.attempts import preferred
from serving.router.headers import RawHeaders, value_of
from serving.router.sending import engine_headers
from serving.router.types import Refusal, Request
from serving.targets import REALTIME, Endpoint

if TYPE_CHECKING:
    from serving.router.client_connection import ClientConnection
    from serving.router.router import RouterCore

HEAD_LIMIT = 64 << 10  # bytes of the engine's answer to the handshake
ACCEPTED = b"HTTP/1.1 101 "
NOT_A_WEBSOCKET = Refusal(
    426,
    "upgrade_required",
    f"{REALTIME} is a WebSocket; send a handshake of HTTP/1.1 with `upgrade: websocket`",
    ((b"upgrade", b"websocket"),),
)


def is_websocket(headers: RawHeaders) -> bool:
    """True for the head of a WebSocket's handshake."""
    connection = (value_of(headers, b"connection") or "").lower()
    upgrade = (value_of(headers, b"upgrade") or "").strip().lower()
    return upgrade == "websocket" and "upgrade" in connection


class _End(asyncio.Protocol):
    """One end of a tunnel: what it reads, the other writes."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.other: _End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.tunnel.moved_s = boot_s()
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tunnel.close()


class _ClientEnd(_End):
    """In place of the connection that the client's handshake came on, which is told of the end."""

    owner: ClientConnection

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.owner.connection_lost(exc)


class _EngineEnd(_End):
    """Reads the answer to the handshake first."""

    def __init__(self, tunnel: Tunnel) -> None:
        super().__init__(tunnel)
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            super().data_received(data)
            return
        self._head += data
        if b"\r\n\r\n" in self._head or len(self._head) > HEAD_LIMIT:
            # What follows waits until the client's end is there to write it.
            assert self.transport is not None
            self.transport.pause_reading()
            self.answer.set_result(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(b"")
        super().connection_lost(exc)


class Tunnel:
    """One WebSocket, from `opened` on until either side closes it."""

    def __init__(self, core: RouterCore, replica: Replica) -> None:
        self.moved_s = boot_s()
        self._core = core
        self._url = replica.url
        self._idle_s = core.limits.idle_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.engine = _EngineEnd(self)
        self.client = _ClientEnd(self)
        self.engine.other, self.client.other = self.client, self.engine
        core.in_flight[self._url] = core.in_flight.get(self._url, 0) + 1

    def join(self, client: ClientConnection, answer: bytes) -> None:
        """The engine has accepted: the client's connection is this tunnel's from now on."""
        transport = client.transport
        self.client.owner = client
        self.client.connection_made(transport)
        transport.set_protocol(self.client)
        transport.write(answer)
        transport.resume_reading()
        if self.engine.transport is not None and not self.engine.transport.is_closing():
            self.engine.transport.resume_reading()
        self._check()

    def close(self) -> None:
        """Close both ends; what has been written is sent."""
        if self._is_closed:
            return
        self._is_closed = True
        left = self._core.in_flight[self._url] - 1
        if left:
            self._core.in_flight[self._url] = left
        else:
            del self._core.in_flight[self._url]
        if self._timer is not None:
            self._timer.cancel()
        for end in (self.engine, self.client):
            if end.transport is not None:
                end.transport.close()

    def _check(self) -> None:
        left_s = self.moved_s + self._idle_s - boot_s()
        if left_s <= 0:
            self.close()
        elif not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._check)


async def serve(client: ClientConnection, core: RouterCore, request: Request, request_id: str) -> None:
    """Open a tunnel for this handshake, or answer why there is none."""
    if not is_websocket(request.headers):
        client.refuse(NOT_A_WEBSOCKET)
        return
    found = await _opened(core, request, request_id)
    if isinstance(found, Refusal):
        client.refuse(found, closes=True)
    else:
        tunnel, answer = found
        tunnel.join(client, answer)


async def _opened(core: RouterCore, request: Request, request_id: str) -> tuple[Tunnel, bytes] | Refusal:
    """A tunnel to stable and its engine's answer to the handshake, which accepts it; or why there is none."""
    client = core.assigner.identify(request)
    if isinstance(client, Refusal):
        return client
    request = core.assigner.without_consumed(request)
    arm = core.table.stable if core.table is not None else None
    if arm is None or not arm.replicas:
        text = f"service {core.service}: no replica of stable is ready; retry"
        return Refusal(503, "no_capacity", text, retry_after_s=1)
    if not arm.has_fence:
        text = f"service {core.service}: {REALTIME} of an endpoint is not passed on; connect to it directly"
        return Refusal(501, "no_realtime", text)
    best = preferred(arm.replicas, request_id)
    rest = [one for one in arm.replicas if one not in best]
    for replica in (*best, *rest):
        tunnel = Tunnel(core, replica)
        try:
            answer = await _shaken(tunnel, core, arm, replica, request, request_id)
        except BaseException:
            tunnel.close()
            raise
        status = answer.split(b"\r\n", 1)[0]
        if answer.startswith(ACCEPTED):
            return tunnel, answer
        tunnel.close()
        if answer and b" 503 " not in status:
            shown = status.decode("latin-1").removeprefix("HTTP/1.1 ")[:40]
            text = f"service {core.service}: stable's engine does not accept {REALTIME} ({shown})"
            return Refusal(501, "no_realtime", f"{text}; its model may not take audio")
    text = f"service {core.service}: no replica of stable version {arm.version} answers; retry"
    return Refusal(503, "no_capacity", text, retry_after_s=1)


async def _shaken(
    tunnel: Tunnel, core: RouterCore, arm: Arm, replica: Replica, request: Request, request_id: str
) -> bytes:
    """What the engine answers to the handshake; empty: nothing in time."""
    assert core.table is not None
    endpoint = Endpoint.parsed(replica.url)
    host, _, port = endpoint.authority.rpartition(":")
    headers = engine_headers(request, core.table, arm, request_id, is_canary=False)
    lines = [f"GET {endpoint.path(request.target)} HTTP/1.1\r\nhost: {endpoint.authority}\r\n".encode()]
    lines += [b"%b: %b\r\n" % one for one in headers]
    lines.append(b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n")
    try:
        async with asyncio.timeout(core.limits.connect_s + core.limits.lookup_s):
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(core.limits.connect_s):
                await loop.create_connection(lambda: tunnel.engine, host.strip("[]"), int(port))
            assert tunnel.engine.transport is not None
            tunnel.engine.transport.write(b"".join(lines))
            return await tunnel.engine.answer
    except (OSError, TimeoutError, ValueError):
        return b""
