"""The limit of requests under way is shared by clients: one that takes all it can keeps nobody out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count

import pytest
from aiohttp import web

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.router.front.load import Load
from serving.router.front.request_limit import RequestLimit, site_of
from serving.router.types import Limits
from tests.fakes.router_rig import CHAT, Rig, router_rig, until

KEYS = {"team-a": "key-of-team-a-000", "team-b": "key-of-team-b-000"}


def filled(limit: int, clients: int) -> tuple[RequestLimit[int], dict[str, int]]:
    """A limit of which each of these clients takes, in turns, all that it can; and what each has."""
    one: RequestLimit[int] = RequestLimit(Load(requests_limit=limit))
    taken = dict.fromkeys((f"c{n}" for n in range(clients)), 0)
    ids = count()
    while True:
        free = [name for name in taken if one.refusal(name, sum(taken.values())) is None]
        if not free:
            return one, taken
        name = min(free, key=taken.__getitem__)
        one.begin(next(ids), name)
        taken[name] += 1


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (16, 14), (416, 359), (8192, 7056)])
def test_a_client_alone_has_nearly_all_places(limit: int, most: int) -> None:
    # Behind a balancer all users without keys are one client.
    _, taken = filled(limit, 1)

    assert taken == {"c0": most}


@pytest.mark.parametrize("clients", [1, 2, 5, 20])
def test_however_many_take_all_they_can_whoever_has_none_gets_a_place(clients: int) -> None:
    one, taken = filled(800, clients)
    under_way = sum(taken.values())
    refused = [one.refusal(name, under_way) for name in taken]

    assert all(one is not None and "its share of a router's 800" in one.message for one in refused)
    assert max(taken.values()) - min(taken.values()) <= 1
    assert one.refusal("another", under_way) is None


@pytest.mark.parametrize(("limit", "reserve"), [(416, 6), (1952, 30), (8192, 128)])
def test_after_clients_that_filled_it_one_after_the_other_each_newcomer_gets_a_place(
    limit: int, reserve: int
) -> None:
    """Five such took all 8,192 places, three all of 416: what had begun kept its place."""
    one, ids, under_way = RequestLimit[int](Load(requests_limit=limit)), count(), 0
    for name in "abcdefgh":
        while one.refusal(name, under_way) is None:
            one.begin(next(ids), name)
            under_way += 1
    served = 0
    while one.refusal(f"newcomer {served}", under_way) is None:
        one.begin(next(ids), f"newcomer {served}")
        under_way += 1
        served += 1

    assert served >= max(reserve - 8, 1)
    assert under_way == limit


def test_the_networks_of_one_site_get_one_place_of_the_reserve() -> None:
    one, taken = filled(6400, 1)
    under_way = sum(taken.values())
    ids = count(-1, -1)
    for site in (1, 1, 1, 2):
        name = f"address 2001:db8:{site}:{-next(ids)}::/64"
        while under_way < 6400 - 100 and one.refusal(name, under_way) is None:
            one.begin(next(ids), name)
            under_way += 1
    last = "address 2001:db8:1:ffff::/64"
    assert one.refusal(last, under_way) is not None
    assert one.refusal("address 2001:db8:3:1::/64", under_way) is None
    assert one.refusal("address 192.0.2.1", under_way) is None


@pytest.mark.parametrize(
    ("client", "site"),
    [
        ("address 2001:db8:1:2::/64", "site 2001:db8:1::/48"),
        ("address 192.0.2.1", "address 192.0.2.1"),
        ("address ", "address "),
        ("address a:b", "address a:b"),
        ("key a:b", "key a:b"),
    ],
)
def test_a_site_is_of_networks_of_ipv6_alone(client: str, site: str) -> None:
    assert site_of(client) == site


def test_what_has_ended_is_counted_no_more_and_once() -> None:
    one: RequestLimit[int] = RequestLimit(Load(requests_limit=8))
    for n in range(7):
        one.begin(n, "a")
    refused = one.refusal("a", 7)
    for n in (0, 0, 99):
        one.end(n)

    assert refused is not None
    assert (one.refusal("a", 6), one.largest) == (None, ("a", 6))


def test_a_client_with_more_than_half_is_alone_undrawn() -> None:
    load = Load(requests_limit=10)
    found = []
    for requests, largest in ((6, ("a", 6)), (9, ("a", 6)), (6, ("a", 5)), (1, ("a", 1))):
        load.swept(late_s=0.0, requests=requests, has_many_bytes=False, largest=largest)
        found.append((load.is_undrawn, load.undrawn_client, load.is_strained))

    assert found == [(False, "a", True), (False, "a", True), (True, "", True), (False, "", False)]


# ---- on sockets


class Slow:
    """A rig whose engines answer when told to, and clients of several addresses."""

    def __init__(self, rig: Rig, limit: int) -> None:
        self.rig, self.go_on = rig, asyncio.Event()
        rig.front.load.requests_limit = limit
        rig.stable.behave = rig.canary.behave = self._behave

    async def _behave(self, request: web.Request) -> web.StreamResponse:
        await self.go_on.wait()
        return await self.rig.stable.well(request)

    async def ask(self, address: str, key: str = "") -> bytes:
        """The head of what this client is answered."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((address, 0))
        port = int(self.rig.base.rsplit(":", 1)[1])
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock)
        bearer = f"authorization: Bearer {key}\r\n" if key else ""
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{bearer}content-length: 15\r\n\r\n"
        writer.write(head.encode() + b'{"messages":[]}')
        try:
            answer = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
        return answer.partition(b"\r\n")[0]

    async def begin(self, number: int, address: str, key: str = "") -> list[asyncio.Task[bytes]]:
        """So many requests of a client, which are under way at an engine."""
        goal = self.rig.front.under_way + number
        tasks = [asyncio.create_task(self.ask(address, key)) for _ in range(number)]
        await until(lambda: self.rig.front.under_way == goal)
        return tasks


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    limits = Limits(connect_s=60, canary_whole_s=120, stable_s=120)
    async with router_rig(limits) as rig:
        yield Slow(rig, 16)


async def test_an_address_that_takes_all_it_can_keeps_no_other_out(slow: Slow) -> None:
    # All others got 429 for as long as it liked.
    begun = await slow.begin(14, "127.0.0.1")
    refused = await slow.ask("127.0.0.1")
    begun += await slow.begin(1, "127.0.0.5")
    slow.go_on.set()
    served = {(await one).split()[1] for one in begun}

    assert (refused.split()[1], served) == (b"429", {b"200"})
    assert slow.rig.front.requests.largest == ("", 0)


async def test_behind_one_address_clients_are_told_apart_by_their_keys(slow: Slow) -> None:
    table = slow.rig.core.table
    assert table is not None
    access = Access({digest_of(key): ClientKey(name) for name, key in KEYS.items()}, keys_required=True)
    slow.rig.core.on_table(replace(table, change=3, access=access), sent_s=boot_s())
    begun = await slow.begin(14, "127.0.0.1", KEYS["team-a"])
    refused = await slow.ask("127.0.0.1", KEYS["team-a"])
    begun += await slow.begin(1, "127.0.0.1", KEYS["team-b"])
    slow.go_on.set()
    served = {(await one).split()[1] for one in begun}

    assert (refused.split()[1], served) == (b"429", {b"200"})


async def test_while_one_address_has_more_than_half_the_others_are_drawn(slow: Slow) -> None:
    begun = await slow.begin(9, "127.0.0.1")
    await until(lambda: slow.rig.front.load.undrawn_client == "address 127.0.0.1")
    begun += await slow.begin(1, "127.0.0.1")
    begun += await slow.begin(1, "127.0.0.5")
    slow.go_on.set()
    for one in begun:
        await one
    found = [one.assigned_by for one in slow.rig.records()]

    assert (found.count("capped"), len(found)) == (1, 11)


async def test_clients_that_leave_give_their_places_back(slow: Slow) -> None:
    begun = await slow.begin(14, "127.0.0.1")
    for one in begun:
        one.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    await until(lambda: slow.rig.front.under_way == 0)

    assert slow.rig.front.requests.largest == ("", 0)
