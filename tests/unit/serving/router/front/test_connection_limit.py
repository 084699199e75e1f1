"""The limit of connections: no address keeps others out, and one may have all while no other comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from serving.router.front.connection_limit import LOOKED_AT, ConnectionLimit
from serving.router.front.load import Load
from serving.router.types import Limits, Refusal
from tests.fakes.router_rig import Rig, router_rig, until

HEAD = b"POST /chat/v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
ASKED = HEAD % 15 + b'{"messages":[]}'
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


class Held:
    """A connection in one of four states."""

    def __init__(self, state: str = "idle") -> None:
        self.state = state

    @property
    def unread_bytes(self) -> int:
        return int(self.state == "unread")

    def close_if_idle(self, refusal: Refusal | None = None) -> bool:
        ends = self.state == "idle" or (self.state == "arriving" and refusal is not None)
        if ends:
            self.state = "closed"
        return ends

    def abort_if_unread(self) -> bool:
        if self.state != "unread":
            return False
        self.abort()
        return True

    def abort(self) -> None:
        self.state = "broken"


def full(*held: Held, limit: int, network: str = "balancer") -> ConnectionLimit[Held]:
    """Places that these have, all of one network."""
    one: ConnectionLimit[Held] = ConnectionLimit(Load(connections_limit=limit, turned_away_limit=2))
    for each in held:
        one.join(each, network)
    return one


def test_one_network_may_have_all_places() -> None:
    held = [Held() for _ in range(4)]
    places = full(*held, limit=4)

    assert [places.refusal(one) for one in held] == [None] * 4


def test_at_the_limit_the_same_network_gets_no_other() -> None:
    held, late = [Held() for _ in range(4)], Held()
    places = full(*held, late, limit=4)

    refusal = places.refusal(late)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (429, "overloaded")
    assert {one.state for one in held} == {"idle"}


def test_another_network_gets_the_place_of_an_idle_connection_first() -> None:
    held = [Held("busy"), Held("arriving"), Held(), Held()]
    places = full(*held, limit=4)
    comers = [Held(), Held()]
    for index, one in enumerate(comers):
        places.join(one, f"n{index}")

    assert [one.state for one in held] == ["busy", "arriving", "closed", "closed"]
    assert all(places.has_place(one) for one in comers)


def test_then_that_of_one_that_is_arriving_and_never_one_of_a_request() -> None:
    held, comer = [Held("busy"), Held("arriving"), Held("busy"), Held("busy")], Held()
    places = full(*held, limit=4)
    places.join(comer, "n")

    assert [one.state for one in held] == ["busy", "closed", "busy", "busy"]
    assert places.has_place(comer)


def test_then_that_of_one_that_does_not_read_which_is_broken() -> None:
    """It was told to close, which it did when its client had read: never."""
    held = [Held("unread"), Held("arriving"), Held("busy"), Held("busy")]
    places = full(*held, limit=4)
    comers = [Held("busy"), Held("busy")]
    for index, one in enumerate(comers):
        places.join(one, f"n{index}")

    assert [one.state for one in held] == ["broken", "closed", "busy", "busy"]


def test_those_that_lost_their_place_count_among_those_without_one() -> None:
    """Places went round: each turn left one open that had lost its place, until no file was left."""
    held = [Held("arriving") for _ in range(8)]
    places = full(*held, limit=8)  # and two are turned away
    for index in range(4):
        places.join(Held("busy"), f"n{index}")

    assert [one.state for one in held[:4]] == ["closed", "closed", "broken", "broken"]


def test_a_network_keeps_half_of_the_places() -> None:
    held, comers = [Held() for _ in range(4)], [Held() for _ in range(3)]
    places = full(*held, limit=4)
    for one in comers:
        places.join(one, "n")

    assert [one.state for one in held] == ["closed", "closed", "idle", "idle"]
    assert [places.has_place(one) for one in comers] == [True, True, False]


def test_who_has_no_place_gets_the_next_that_is_free() -> None:
    held, late = [Held() for _ in range(2)], Held()
    places = full(*held, late, limit=2)
    places.leave(held[0])

    assert places.refusal(late) is None
    assert places.refusal(held[1]) is None


def test_who_comes_beyond_those_that_are_turned_away_is_broken() -> None:
    held = [Held("busy") for _ in range(6)]
    full(*held, limit=3)  # and two are turned away

    assert [one.state for one in held] == ["busy"] * 5 + ["broken"]


def test_each_look_for_a_place_is_short_and_the_next_goes_on_from_there() -> None:
    held = [*(Held("busy") for _ in range(LOOKED_AT)), Held()]
    places = full(*held, limit=len(held))
    first, second = Held(), Held()
    places.join(first, "a")
    found = [places.has_place(first)]
    places.join(second, "b")

    assert [*found, places.has_place(second), held[-1].state] == [False, True, "closed"]


@asynccontextmanager
async def crowded(limit: int, sent: Callable[[int], bytes]) -> AsyncIterator[tuple[Rig, int]]:
    """A router whose places all belong to 127.0.0.2, of which each connection has sent something."""
    limits = Limits(canary_stream_s=20.0, canary_whole_s=20.0, stable_s=20.0, idle_s=20.0)
    async with router_rig(limits) as rig:

        async def healthy(path: str) -> tuple[int, bytes] | None:
            return (200, b"ok") if path == "/health" else None

        rig.front.serve_own_routes(healthy, (b"/health",))
        rig.front.load.connections_limit = limit
        port = int(rig.base.rsplit(":", 1)[1])
        writers = []
        for index in range(limit):
            writers.append(await connect(port, "127.0.0.2", sent(index)))
        await until(lambda: rig.front.load.connections == limit)
        yield rig, port
        for _, writer in writers:
            writer.close()


async def connect(port: int, address: str, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(sent)
    return reader, writer


async def answer(port: int, address: str, sent: bytes) -> bytes:
    """The first line of what this client is answered."""
    reader, writer = await connect(port, address, sent)
    first = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    return first


BEGINNINGS = {"nothing": b"", "half a head": HEAD[:30], "half a body": HEAD % 999 + b"{"}


@pytest.mark.parametrize("sent", BEGINNINGS.values(), ids=BEGINNINGS)
async def test_one_address_that_holds_every_connection_keeps_nobody_out(sent: bytes) -> None:
    async with crowded(4, lambda _: sent) as (_, port):
        others = [await answer(port, f"127.0.0.{index}", ASKED) for index in (3, 4)]

    assert others == [b"HTTP/1.1 200 OK\r\n"] * 2


async def test_behind_one_address_the_routers_own_routes_are_answered_beyond_the_limit() -> None:
    async with crowded(2, lambda _: HEAD[:30]) as (_, port):
        user, probe = await answer(port, "127.0.0.2", ASKED), await answer(port, "127.0.0.2", HEALTH)

    assert (user[:12], probe[:12]) == (b"HTTP/1.1 429", b"HTTP/1.1 200")


async def test_one_that_was_turned_away_is_told_so_by_its_head_and_closed() -> None:
    async with crowded(2, lambda _: HEAD[:30]) as (rig, port):
        reader, writer = await connect(port, "127.0.0.2", HEAD % 999)
        read = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        refusals = dict(rig.core.counters.refusals)

    assert read.startswith(b"HTTP/1.1 429 ")
    assert b"connection: close\r\n" in read
    assert b"the router has 2 connections, which is its limit" in read
    assert refusals == {"overloaded": 1}
