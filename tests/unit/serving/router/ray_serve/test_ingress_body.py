"""Requests that come as ASGI calls: their bodies have the limits of the front, and no more of one is held."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any

import pytest

from serving.access import Access, ClientKey, digest_of
from serving.clock import boot_s
from serving.router.front import request_parser
from serving.router.ray_serve.ingress_ray import Ingress
from tests.fakes.router_rig import CHAT, Rig, router_rig

PART = b" " * 65_536
Message = MutableMapping[str, Any]


class Call:
    """One ASGI call, whose client sends these parts and then leaves; None: it sends blanks without end."""

    def __init__(self, rig: Rig, parts: list[bytes] | None, *headers: tuple[bytes, bytes]) -> None:
        self.scope = {"type": "http", "method": "POST", "path": CHAT, "headers": list(headers)}
        self.taken = 0  # bytes of the body
        self.sent: list[Message] = []
        self.has_more = True  # after the last part
        self._parts = parts
        self._ingress = object.__new__(Ingress)  # without Serve's starter, which it would replace
        self._ingress._base = rig.base

    async def run(self) -> Call:
        async with asyncio.timeout(60):
            await self._ingress(self.scope, self._receive, self._send)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def code(self) -> str:
        body = b"".join(one.get("body", b"") for one in self.sent)
        return str(json.loads(body)["error"]["code"])

    async def _receive(self) -> Message:
        await asyncio.sleep(0)
        if self._parts is None:
            self.taken += len(PART)
            return {"type": "http.request", "body": PART, "more_body": True}
        if not self._parts:
            return {"type": "http.disconnect"}
        part = self._parts.pop(0)
        self.taken += len(part)
        return {"type": "http.request", "body": part, "more_body": self.has_more or bool(self._parts)}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)


async def test_a_body_without_end_is_413_at_the_fronts_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_parser, "BODY_LIMIT", 1 << 20)
    async with router_rig() as rig:
        call = await Call(rig, None).run()

    assert (call.status, call.code) == (413, "body_too_large")
    assert call.taken < 32 << 20  # some MiB are in the sockets


async def test_a_declared_length_above_the_limit_is_413_before_the_body_has_come() -> None:
    async with router_rig() as rig:
        call = await Call(rig, None, (b"content-length", b"100000000")).run()

    assert (call.status, call.code) == (413, "body_too_large")
    assert call.taken < 32 << 20


async def test_who_may_not_ask_is_refused_before_the_body_has_come() -> None:
    async with router_rig() as rig:
        access = Access({digest_of("sk-1" * 8): ClientKey("team")}, keys_required=True)
        assert rig.core.table is not None
        rig.core.on_table(replace(rig.core.table, change=2, access=access), sent_s=boot_s())
        call = await Call(rig, None).run()

    assert (call.status, call.code) == (401, "invalid_api_key")
    assert call.taken < 32 << 20


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize("declares", [True, False])
async def test_a_body_in_parts_reaches_the_engine_whole(cut: int, declares: bool) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 500}]}).encode()
    parts = [body[at : at + cut] for at in range(0, len(body), cut)]
    headers = [(b"content-length", b"%d" % len(body))] if declares else []
    async with router_rig() as rig:
        call = Call(rig, parts, (b"content-type", b"application/json"), *headers)
        call.has_more = False
        await call.run()

    assert call.status == 200
    assert rig.canary.bodies == [body]


async def test_a_request_whose_client_leaves_in_mid_body_reaches_no_engine() -> None:
    async with router_rig() as rig:
        call = await Call(rig, [b'{"messages"', b": []}"]).run()

    assert call.sent == []
    assert (rig.stable.seen, rig.canary.seen) == ([], [])
