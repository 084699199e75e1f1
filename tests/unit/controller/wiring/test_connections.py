"""The API's connections: one that says nothing ends, and never keeps another from being answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import pytest
import uvicorn

from controller.wiring.connections import Connections, bounded_protocol

HALF = b"POST /v1/services/chat/rollback HTTP/1.1\r\nhost: x\r\n"
LIMIT_S = 60.0


async def app(scope: object, receive: object, send: Callable[..., object]) -> None:
    await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": b""})  # type: ignore[misc]


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
