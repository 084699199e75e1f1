"""Requests with large or costly bodies: they begin in turns, however many clients send them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from serving.access import Access, ClientKey, digest_of
from serving.router import turns
from serving.router.assignment.clients import Clients
from serving.router.front import client_connection, service_choice
from serving.router.front.client_connection import ClientConnection
from serving.router.front.request_parser import ParsedRequest
from tests.fakes.router_rig import Rig, router_rig, until
from tests.fakes.virtual_wire import Habit, _ClientTransport
from tests.unit.serving.router.front.test_wire_limits import POST, connect, status

CLIENTS = 12


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


class Turn:
    """Counts the turns of the loop, and what is begun in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, self.begun = 0, dict[int, int]()
        monkeypatch.setattr(service_choice, "is_large", self._is_large)
        self._count()

    def _is_large(self, parsed: ParsedRequest, *, is_renamed: bool) -> bool:
        self.begun[self.number] = self.begun.get(self.number, 0) + 1
        return False

    def _count(self) -> None:
        self.number += 1
        self._handle = asyncio.get_running_loop().call_soon(self._count)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.mark.slow
async def test_bodies_that_arrive_at_once_begin_one_after_the_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of 60 KB took 119 ms of one turn of the loop, in which no stream moved."""
    monkeypatch.setattr(turns, "TURN_S", 1e-9)  # spent after one
    body = b'{"messages":[{"role":"user","content":"' + b"a" * client_connection.COSTLY_BODY + b'"}]}'
    clients = [await connect(rig) for _ in range(CLIENTS)]
    turn = Turn(monkeypatch)
    for _, writer in clients:  # written in one turn, so they are read in one
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
    answers = [await reader.readuntil(b"\r\n\r\n") for reader, _ in clients]
    turn.stop()
    for _, writer in clients:
        writer.close()

    assert {status(one) for one in answers} == {200}
    assert sum(turn.begun.values()) == CLIENTS
    assert max(turn.begun.values()) == 1


async def test_a_request_that_waits_for_its_turn_is_not_lost_to_a_limit_or_a_stop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"messages":[{"role":"user","content":"' + b"a" * client_connection.COSTLY_BODY + b'"}]}'
    joined = []
    monkeypatch.setattr(rig.front.turns, "join", lambda work, *more: joined.append(work))
    reader, writer = await connect(rig)
    writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
    await until(lambda: bool(joined))
    (connection,) = rig.front._connections
    connection.check(1e12)
    rig.front.stop_accepting()
    for one in joined:
        one()
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert status(answer) == 200


async def test_what_a_refused_client_still_sends_is_read_in_turns(rig: Rig) -> None:
    joined = []
    reader, writer = await connect(rig)
    writer.write(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n")
    writer.write(b"POST /nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n" + b"a" * 100)
    await reader.readuntil(b"\r\n\r\n")
    join = rig.front.turns.join
    rig.front.turns.join = lambda work, *more: (joined.append(work), join(work, *more))  # type: ignore
    for _ in range(20):
        writer.write(b"a" * 500_000)
    await until(lambda: bool(joined))
    writer.close()


@pytest.mark.slow
async def test_small_requests_of_many_connections_begin_a_few_a_turn(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand at once took 0.4 s of one turn of the loop."""
    monkeypatch.setattr(turns, "TURN_S", 1e-9)  # spent after one
    clients = [await connect(rig) for _ in range(4 * CLIENTS)]
    turn = Turn(monkeypatch)
    for _, writer in clients:
        writer.write(POST + b'content-length: 15\r\n\r\n{"messages":[]}')
    answers = [await reader.readuntil(b"\r\n\r\n") for reader, _ in clients]
    turn.stop()
    for _, writer in clients:
        writer.close()

    assert {status(one) for one in answers} == {200}
    assert sum(turn.begun.values()) == 4 * CLIENTS
    assert max(turn.begun.values()) <= turns.AT_ONCE + 1


async def test_time_limits_and_clients_that_leave_have_their_turns(rig: Rig) -> None:
    clients = [await connect(rig) for _ in range(CLIENTS)]
    for _, writer in clients[1:]:
        writer.write(POST)
    await until(lambda: len(rig.front._connections) == CLIENTS)
    await until(lambda: sum(not one._parser.is_idle for one in rig.front._connections) == CLIENTS - 1)
    joined: list[Callable[[], None]] = []
    rig.front.turns.join = lambda work, *more: joined.append(work)  # type: ignore[method-assign]
    for one in list(rig.front._connections):
        one.check(1e12)
    still = len([one for one in rig.front._connections if not one._is_closing])
    for work in joined:
        work()
    answers = [await reader.read() for reader, _ in clients]
    for _, writer in clients:
        writer.close()

    assert (still, len(joined)) == (CLIENTS, CLIENTS)
    assert sorted({one[9:12] for one in answers}) == [b"", b"408"]


@pytest.mark.parametrize(("key", "name"), [("", "address 127.0.0.1"), ("good", "key ide")])
async def test_a_client_has_one_name_in_the_turns_however_its_requests_arrive(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    """By whether its first body came whole it was `10.0.0.1` or `address 10.0.0.1`, each with a turn."""
    rig.core.assigner._clients = Clients(Access({digest_of("good"): ClientKey("ide")}))
    body = b'{"messages":[{"role":"user","content":"' + b"a" * client_connection.COSTLY_BODY + b'"}]}'
    head = POST + (b"authorization: Bearer %b\r\n" % key.encode() if key else b"")
    head += b"content-length: %d\r\n\r\n" % len(body)
    names, join = set[str](), rig.front.turns.join

    def named(work: Callable[[], None], least_s: float = 0.0, client: str = "") -> None:
        names.add(client)
        join(work, least_s, client)

    monkeypatch.setattr(rig.front.turns, "join", named)
    clients = []
    for pieces in ([head + body], [head, body], [head + body[:99], body[99:]]):
        transport = _ClientTransport(Habit(), asyncio.get_running_loop())
        connection = transport.connection = ClientConnection(rig.front)
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
        clients.append(transport)
    await until(lambda: all(b"\r\n\r\n" in one.read for one in clients))
    names |= {one.connection.reading.client for one in clients}

    assert {status(one.read) for one in clients} == {200}
    assert names - {""} == {name}
