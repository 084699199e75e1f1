"""The API's connections: one that says nothing ends, and never keeps another from being answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn

from controller.wiring.connections import BoundedProtocol, Connections, bounded_protocol

HALF = b"POST /v1/services/chat/rollback HTTP/1.1\r\nhost: x\r\n"
LIMIT_S = 60.0


LARGE = 32 << 20  # bytes: more than the system takes for a socket


async def app(scope: dict[str, Any], receive: object, send: Callable[..., Any]) -> None:
    size = LARGE if scope["path"] == "/large" else 0
    head = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 202, "headers": head})
    await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture
def served() -> Iterator[Callable[[Connections], int]]:
    servers: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def serve(bounds: Connections) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=bounded_protocol(bounds),
            ws="none",
            lifespan="off",
            log_config=None,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return int(listener.getsockname()[1])

    yield serve
    for server, thread, listener in servers:
        server.should_exit = server.force_exit = True
        thread.join(LIMIT_S)
        listener.close()


def half(port: int) -> socket.socket:
    """A connection with half a head."""
    client = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    client.sendall(HALF)
    return client


def has_ended(client: socket.socket) -> bool:
    """True once the server has ended it; waits for that."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def rollback(port: int) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    connection.request("POST", "/v1/services/chat/rollback", b"{}")
    return connection.getresponse().status


@pytest.mark.slow
def test_a_head_that_does_not_come_ends_its_connection(served: Callable[[Connections], int]) -> None:
    port = served(Connections(8, head_s=0.2))

    assert has_ended(half(port))


@pytest.mark.slow
def test_half_a_head_after_an_answer_ends_its_connection(served: Callable[[Connections], int]) -> None:
    port = served(Connections(8, head_s=0.2))
    client = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 202")
    client.sendall(HALF)

    while client.recv(4096):
        pass


@pytest.mark.slow
def test_of_too_many_connections_the_oldest_that_says_nothing_goes(
    served: Callable[[Connections], int],
) -> None:
    """220 half heads refused every rollback, for as long as they liked."""
    bounds = Connections(8)
    port = served(bounds)
    idle = [half(port) for _ in range(20)]

    assert rollback(port) == 202
    assert len(bounds) <= 8
    assert all(has_ended(client) for client in idle[:12])


def test_the_newest_connection_is_refused_only_where_all_others_are_answered() -> None:
    ended: list[str] = []

    class Stub:
        def __init__(self, name: str) -> None:
            self.name = name

        def end(self) -> None:
            ended.append(self.name)

    bounds = Connections(2)
    busy, other, idle, last = (Stub(name) for name in ("busy", "other", "idle", "last"))
    bounds.made(busy)  # type: ignore[arg-type]
    bounds.is_waiting(busy, is_idle=False)  # type: ignore[arg-type]
    bounds.made(idle)  # type: ignore[arg-type]
    bounds.made(other)  # type: ignore[arg-type]
    bounds.is_waiting(other, is_idle=False)  # type: ignore[arg-type]
    bounds.made(last)  # type: ignore[arg-type]

    assert ended == ["idle", "last"]


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answer_is_ended(served: Callable[[Connections], int]) -> None:
    """What was made for it stayed in memory for as long as it liked."""
    bounds = Connections(8, head_s=3600.0, unread_s=0.2)
    port = served(bounds)
    ends_at_s = time.monotonic() + LIMIT_S
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        client.recv(1)
        while len(bounds):
            assert time.monotonic() < ends_at_s
            time.sleep(0.01)


@pytest.mark.parametrize("name", ["_wait_for_head", "_wait_for_reader"])
def test_who_reads_slowly_is_waited_for_and_who_stops_is_not(name: str) -> None:
    """A long answer was cut off 10 s after its last byte was handed to the system, read or not."""
    unread, ended, later = [60], [], []

    class Transport:
        def get_write_buffer_size(self) -> int:
            return unread[0]

        def abort(self) -> None:
            ended.append(unread[0])

    class Loop:
        def call_later(self, delay_s: float, wait_on: object, size: int) -> None:
            later.append(size)

    one: Any = BoundedProtocol.__new__(BoundedProtocol)
    one.transport, one.loop, one.bounds = Transport(), Loop(), Connections(8)
    one._head_timer = one._unread_timer = None
    getattr(one, name)(100)
    waited = list(later), list(ended)
    getattr(one, name)(60)

    assert (waited, ended) == (([60], []), [60])
