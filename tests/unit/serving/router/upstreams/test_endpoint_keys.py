"""API keys of endpoints: no answer shows one, and an endpoint that refuses one is the operator's fault."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from serving.clock import boot_s
from serving.credentials import SHORTEST_HIDDEN, KeyFilter, KeyReference
from serving.messages import Arm, Replica, RouteTable
from tests.fakes.router_rig import CHUNKS, SECRET, Rig, router_rig

KEY = "sk-our-paid-key-0123"
REFERENCE = KeyReference("env", "VENDOR_KEY")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("VENDOR_KEY", KEY)
    async with router_rig() as one:
        yield one


def publish(rig: Rig, *, canary: bool) -> None:
    keyed = {"external": True, "model": "large", "api_key": REFERENCE}
    stable = Arm("v-1", (Replica(rig.stable.url),), **({} if canary else keyed))  # type: ignore[arg-type]
    arm = Arm("v-2", (Replica(rig.canary.url),), **keyed) if canary else None  # type: ignore[arg-type]
    bp = 10_000 if canary else 0
    rig.core.on_table(RouteTable("chat", 1, 2, 2, "r-1", "salt", bp, stable, arm, 0, SECRET), sent_s=boot_s())


def echo(status: int, gap: int | None = None) -> object:
    async def behave(request: web.Request) -> web.StreamResponse:
        sent = request.headers["authorization"].removeprefix("Bearer ")
        text = f'{{"error": "Received API Key = {sent}!"}}'
        if gap is None:
            return web.Response(status=status, text=text, headers={"x-debug": f"key {sent}"})
        response = web.StreamResponse(status=status, headers={"x-debug": f"key {sent}"})
        await response.prepare(request)
        for one in (text[:gap], text[gap:]):
            await response.write(one.encode())
        return response

    return behave


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_stable_s_endpoint_refuses_is_our_error_not_the_client_s(
    rig: Rig, status: int
) -> None:
    publish(rig, canary=False)
    rig.stable.behave = echo(status)  # type: ignore[assignment]

    answer = await rig.ask()

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "endpoint_key_refused")
    assert "the operator must correct it" in answer.text
    assert KEY not in answer.text + str(answer.headers)
    record = await rig.record()
    assert (record.error, record.rejected, record.cause, record.outcome) == (
        True,
        False,
        "key refused",
        "failed",
    )


async def test_a_canary_that_refuses_our_key_has_failed_and_stable_answers(rig: Rig) -> None:
    publish(rig, canary=True)
    rig.canary.behave = echo(401)  # type: ignore[assignment]

    answer = await rig.ask()

    assert (answer.status_code, answer.headers["x-canaryctl-arm"]) == (200, "stable")
    record = await rig.record()
    assert (record.error, record.rejected, record.cause) == (True, False, "key refused")


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("gap", [None, 25, 30, 39])
async def test_no_answer_shows_the_key(rig: Rig, status: int, gap: int | None) -> None:
    publish(rig, canary=False)
    rig.stable.behave = echo(status, gap)  # type: ignore[assignment]

    answer = await rig.ask()

    assert answer.status_code == status
    assert answer.text == f'{{"error": "Received API Key = {"*" * len(KEY)}!"}}'
    assert answer.headers["x-debug"] == "key " + "*" * len(KEY)


async def test_a_stream_of_an_endpoint_with_a_key_passes_byte_for_byte(rig: Rig) -> None:
    publish(rig, canary=False)

    assert (await rig.ask(stream=True)).content == b"".join(CHUNKS)


@pytest.mark.parametrize("step", [1, 3, 7, 100])
def test_the_filter_gives_the_same_bytes_however_they_are_split(step: int) -> None:
    data = f"sk-{KEY}sk-our{KEY}{KEY[:-1]} sk-our-paid".encode()
    one = KeyFilter(KEY)

    shown = b"".join(one.feed(data[at : at + step]) for at in range(0, len(data), step)) + one.end()

    assert shown == data.replace(KEY.encode(), b"*" * len(KEY))


def test_a_placeholder_key_is_left_in_answers() -> None:
    assert KeyFilter("EMPTY").feed(b"EMPTY") == b"EMPTY"


@pytest.mark.slow
@given(
    key=st.text("ab", min_size=SHORTEST_HIDDEN, max_size=24),
    pieces=st.lists(st.text("abc", max_size=30), max_size=6),
    at=st.integers(0, 6),
)
def test_a_key_is_hidden_wherever_the_pieces_are_cut(key: str, pieces: list[str], at: int) -> None:
    pieces.insert(at, key)
    data = "".join(pieces).encode()

    one = KeyFilter(key)
    passed = b"".join([*(one.feed(piece.encode()) for piece in pieces), one.end()])

    assert passed == data.replace(key.encode(), b"*" * len(key))


def test_a_long_key_costs_an_event_no_more_than_a_short_one() -> None:
    """One of 8 KB cost 10 ms an event: each of its beginnings was looked for."""
    event = b'data: {"choices": [{"delta": {"content": "word"}}]}\n\n'

    def cpu_s(length: int) -> float:
        one, began_s = KeyFilter("~" * length), time.process_time()
        for _ in range(300):
            assert one.feed(event) == event
        return time.process_time() - began_s

    assert cpu_s(8192) < 1.0  # 3 s before; an end, no measurement
