"""Reports from other projects' trackers about how endpoints are reached (tests/public_reports.md)."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from serving.clock import boot_s
from serving.messages import Arm, Replica
from serving.router.types import Limits
from serving.router.upstreams import resolver as resolver_module
from serving.router.upstreams.reachability import LOG_EVERY_S, Reachability, reason_of
from serving.router.upstreams.resolver import AddressInfo, Resolver
from serving.targets import Endpoint
from tests.fakes.router_rig import Engine, Rig, router_rig, running


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


def info(address: str) -> AddressInfo:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 0)


def publish(rig: Rig, stable: str, canary: str | None = None, *, weight_bp: int = 0) -> None:
    rig.publish(change=2, canary=False)
    assert rig.core.table is not None
    arms = [
        Arm(name, (Replica(url),), True) if url else None for name, url in (("v-1", stable), ("v-2", canary))
    ]
    table = replace(rig.core.table, change=3, stable=arms[0], canary=arms[1], weight_bp=weight_bp)
    rig.core.on_table(table, sent_s=boot_s())


def resolve_by(rig: Rig, lookup: resolver_module.Lookup) -> None:
    assert rig.front.upstream is not None
    rig.front.upstream.resolver = Resolver(lookup)


# ---- names


@pytest.mark.slow
async def test_a_canary_whose_name_hangs_costs_stable_nothing(rig: Rig) -> None:
    hangs = threading.Event()
    asked: list[str] = []

    def lookup(host: str) -> list[AddressInfo]:
        asked.append(host)
        if host == "canary.example":
            hangs.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return [info("127.0.0.1")]

    resolve_by(rig, lookup)
    assert rig.front.upstream is not None
    rig.front.upstream.limits = replace(rig.front.upstream.limits, connect_s=0.3)
    publish(rig, f"http://stable.example:{rig.stable.port}", "http://canary.example:1", weight_bp=5000)
    answers = await asyncio.gather(*(rig.ask(user=f"u{n}") for n in range(60)))
    hangs.set()
    records = rig.records()

    assert {one.status_code for one in answers} == {200}
    assert {one.cause for one in records if one.arm == 0} == {None}
    assert {one.cause for one in records if one.arm == 1} == {"refused"}
    assert asked.count("canary.example") == 1


async def test_a_name_server_that_fails_leaves_what_was_found_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(resolver_module, "boot_s", lambda: now[0])
    errors: list[OSError | None] = [None, socket.gaierror(socket.EAI_AGAIN, "later"), None]

    def lookup(host: str) -> list[AddressInfo]:
        if (error := errors.pop(0)) is not None:
            raise error
        return [info(f"127.0.0.{len(errors)}")]

    one, found = Resolver(lookup), []
    for at_s in (0.0, 0.5, 5.0, 10.0):
        now[0] = 1000.0 + at_s
        found.append((await one.addresses("a.example", 7))[0][4])

    assert found == [("127.0.0.2", 7), ("127.0.0.2", 7), ("127.0.0.2", 7), ("127.0.0.0", 7)]


@pytest.mark.parametrize(
    ("number", "after_s"), [(socket.EAI_NONAME, 5.0), (socket.EAI_AGAIN, resolver_module.STALE_S + 1)]
)
async def test_a_name_that_is_gone_or_failed_for_long_is_not_found(
    monkeypatch: pytest.MonkeyPatch, number: int, after_s: float
) -> None:
    now = [1000.0]
    monkeypatch.setattr(resolver_module, "boot_s", lambda: now[0])
    errors: list[OSError | None] = [None, socket.gaierror(number, "x")]

    def lookup(host: str) -> list[AddressInfo]:
        if (error := errors.pop(0)) is not None:
            raise error
        return [info("127.0.0.1")]

    one = Resolver(lookup)
    await one.addresses("a.example", 7)
    now[0] += after_s

    with pytest.raises(socket.gaierror):
        await one.addresses("a.example", 7)


async def test_a_lookup_that_hangs_leaves_what_was_found_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "FRESH_S", 0.0)
    monkeypatch.setattr(resolver_module, "PATIENCE_S", 0.02)
    hangs, count = threading.Event(), []

    def lookup(host: str) -> list[AddressInfo]:
        count.append(host)
        if len(count) > 1:
            hangs.wait(20)
        return [info("127.0.0.1")]

    one = Resolver(lookup)
    found = [await one.addresses("a.example", 7) for _ in range(4)]
    hangs.set()

    assert ([len(addresses) for addresses in found], len(count)) == ([1] * 4, 2)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_needs_no_lookup(host: str) -> None:
    def lookup(host: str) -> list[AddressInfo]:
        raise AssertionError(host)

    ((*_, address),) = await Resolver(lookup).addresses(host, 7)

    assert address[:2] == (host, 7)


# ---- addresses of a name


@pytest.fixture
def swallowing() -> Iterator[str]:
    """A loopback address whose listener's queue is full, so that connections to it hang."""
    with socket.socket() as full:
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        fillers = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            fillers.append(one)
        yield str(full.getsockname()[1])
        for one in fillers:
            one.close()


@pytest.mark.slow
async def test_a_dead_first_address_of_a_name_is_passed_over(rig: Rig, swallowing: str) -> None:
    """The engine listens at the same port of another address."""
    engine = Engine("other")
    port = int(swallowing)
    resolve_by(rig, lambda host: [info("127.0.0.2"), info("127.0.0.1")])
    async with running(engine, port=port):
        publish(rig, f"http://dual.example:{port}")
        began_s = boot_s()
        answer = await rig.ask()

    assert (answer.status_code, boot_s() - began_s < 4.0) == (200, True)


async def test_a_kept_connection_has_a_greatest_age(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name moves to another address."""
    monkeypatch.setattr(resolver_module, "FRESH_S", 0.0)
    at = ["127.0.0.1"]
    resolve_by(rig, lambda host: [info(at[0])])
    moved = Engine("moved")
    async with running(moved, host="127.0.0.3", port=rig.stable.port):
        publish(rig, f"http://blue.example:{rig.stable.port}")
        await rig.ask()
        at[0] = "127.0.0.3"
        kept = (await rig.ask()).json()["id"]
        assert rig.front.upstream is not None
        rig.front.upstream.limits = replace(rig.front.upstream.limits, connection_age_s=0.0)
        await rig.ask()  # after this answer the connection is too old
        followed = (await rig.ask()).json()["id"]

    assert (kept, followed) == ("id-stable", "id-moved")
    assert Limits().connection_age_s == 60.0


# ---- TLS


async def test_a_dot_at_the_end_of_a_host_is_no_part_of_its_certificate(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[object] = []

    async def create(factory: object, **options: object) -> object:
        names.append(options["server_hostname"])
        assert isinstance(options["sock"], socket.socket)
        options["sock"].close()
        raise OSError("enough")

    resolve_by(rig, lambda host: [info("127.0.0.1")])
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create)
    assert rig.front.upstream is not None
    for authority in (f"a.example.:{rig.stable.port}", f"a.example:{rig.stable.port}"):
        with pytest.raises(OSError, match="enough"):
            await rig.front.upstream.connect(Endpoint.parsed(f"https://{authority}"), asyncio.Protocol)

    assert names == ["a.example"] * 2


# ---- why an endpoint cannot be reached


async def test_why_an_endpoint_cannot_be_reached_is_logged_once_and_told(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    publish(rig, f"http://127.0.0.1:{port}")
    with caplog.at_level(logging.WARNING, "canaryctl.router"):
        refused = [await rig.ask() for _ in range(3)]
        async with running(Engine("back"), port=port):
            back = await rig.ask()
    logged = [(one.getMessage(), one.__dict__.get("reason")) for one in caplog.records]

    assert [one.status_code for one in (*refused, back)] == [503, 503, 503, 200]
    assert "answers (connection refused); retry" in refused[0].json()["error"]["message"]
    assert logged == [
        ("endpoint cannot be reached", "connection refused"),
        ("endpoint is reached again", None),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ssl.SSLCertVerificationError("unable to get local issuer"), "its certificate is not valid"),
        (ssl.SSLError("WRONG_VERSION_NUMBER"), "TLS failed; it may not speak https"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "its name cannot be resolved"),
        (TimeoutError(), "no connection in time"),
        (ConnectionRefusedError(111, "x"), "connection refused"),
        (OSError("http://secret.host"), "no connection"),
    ],
)
def test_a_reason_names_no_host(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


def test_an_endpoint_that_comes_and_goes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    one = Reachability()
    with caplog.at_level(logging.WARNING, "canaryctl.router"):
        for second in range(int(LOG_EVERY_S * 3)):
            one.failed("http://a", ConnectionRefusedError(111, "x"), now_s=second)
            one.reached("http://a", now_s=second + 0.5)

    assert len(caplog.records) <= 6


async def test_a_lookup_whose_thread_cannot_start_fails_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name waited for ever for the answer of a thread that the system had refused."""
    one = Resolver(lambda host: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))])

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="no thread to look up"):
            await asyncio.wait_for(one.addresses("engine.example", 80), 2)
    found = await asyncio.wait_for(one.addresses("engine.example", 80), 2)

    assert [address[4] for address in found] == [("127.0.0.1", 80)]
