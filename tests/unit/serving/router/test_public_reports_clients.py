"""Reports from other projects' trackers about what clients send (tests/public_reports.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from serving.router.request_parser import ParsedRequest, RequestParser
from tests.fakes.router_rig import CHAT, Rig, router_rig
from tests.unit.serving.router.test_wire_limits import exchange, status


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


# ---- an offer to speak another protocol

BODY = b'{"messages": []}'
OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
WITH_LENGTH = b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
IN_CHUNKS = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def parsed(data: bytes, *, size: int) -> list[ParsedRequest]:
    parser = RequestParser()
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
    assert parser.refusal is None
    return list(parser.requests)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("framed", [WITH_LENGTH, IN_CHUNKS])
def test_a_body_is_read_though_an_upgrade_is_offered(framed: bytes, size: int) -> None:
    one = b"POST /v1/x HTTP/1.1\r\nhost: a\r\n"
    found = parsed((one + OFFER + framed) * 2 + one + framed, size=size)

    assert [(request.body, request.keep_alive) for request in found] == [(BODY, True)] * 3
    assert {name for request in found for name, _ in request.headers} <= {
        *(b"host", b"connection", b"content-length", b"transfer-encoding")
    }


def test_an_offer_of_a_websocket_stays_one() -> None:
    data = b"GET /v1/realtime HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    (found,) = parsed(data, size=10_000)

    assert (found.keep_alive, dict(found.headers)[b"upgrade"]) == (False, b"websocket")


@pytest.mark.parametrize("framed", [WITH_LENGTH, IN_CHUNKS])
async def test_a_java_client_that_offers_h2c_is_answered(rig: Rig, framed: bytes) -> None:
    last = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + WITH_LENGTH
    answer = await exchange(
        rig, b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\n" + OFFER + framed + last
    )

    assert (status(answer), answer.count(b"HTTP/1.1 200")) == (200, 2)
    assert rig.canary.bodies == [BODY, BODY]
    assert not {"upgrade", "http2-settings"} & {one.lower() for one in rig.canary.seen[0].headers}


@pytest.mark.parametrize(("version", "waits"), [(b"1.0", False), (b"1.1", True)])
def test_http_1_0_gets_no_interim_answer(version: bytes, waits: bool) -> None:
    parser = RequestParser()
    parser.feed(b"POST /v1/x HTTP/" + version + b"\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")

    assert parser.wants_continue is waits
