"""An error of the router's own in a canary's answer, of which the client has nothing: stable answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from serving.engine_headers import TOKENS_HEADER
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange import sending as sending_module
from serving.router.exchange.continuation import tokens_header
from serving.router.headers import returned
from tests.fakes.router_rig import CHUNKS, Rig, router_rig


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with router_rig() as one:
        yield one


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (b"dig 4096", 4096),
        (b"dig \xb2", None),
        (b"dig " + b"9" * 5000, None),
        (b"dig -1", None),
        (b"dig 1_0", None),
        (b"dig", None),
    ],
)
def test_a_limit_of_tokens_is_a_short_decimal_number(value: bytes, limit: int | None) -> None:
    assert tokens_header([(TOKENS_HEADER, value)]) == ("dig", limit)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["returned", "feed"])
async def test_stable_answers_where_a_canarys_answer_makes_an_error_here(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str, stream: bool
) -> None:
    feed = AnswerScan.feed

    def bad_head(headers: list[tuple[bytes, bytes]], **more: Any) -> object:
        if (b"x-bad", b"1") in headers:
            raise ValueError("an error of our own")
        return returned(headers, **more)

    def bad_body(scan: AnswerScan, data: bytes) -> bytes:
        if b"chatcmpl-bad" in data:
            raise ValueError("an error of our own")
        return feed(scan, data)

    async def badly(request: web.Request) -> web.StreamResponse:
        if stream:
            chunks = [one.replace(b"chatcmpl-9", b"chatcmpl-bad") for one in CHUNKS]
            response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-bad": "1"})
            await response.prepare(request)
            for one in chunks:
                await response.write(one)
            return response
        return web.json_response({"id": "chatcmpl-bad"}, headers={"x-bad": "1"})

    if where == "returned":
        monkeypatch.setattr(sending_module, "returned", bad_head)
    else:
        monkeypatch.setattr(AnswerScan, "feed", bad_body)
    rig.canary.behave = badly
    answer = await rig.ask(stream=stream)
    record = await rig.record()

    assert answer.status_code == 200
    assert answer.headers["x-canaryctl-arm"] == "stable"
    assert (record.arm, record.served_arm, record.cause) == (1, 0, "malformed")


async def test_an_error_here_in_both_answers_is_500_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(*_: object, **__: object) -> None:
        raise ValueError("an error of our own")

    monkeypatch.setattr(sending_module, "returned", bad)
    answer = await rig.ask()

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert (len(rig.canary.seen), len(rig.stable.seen)) == (1, 1)
