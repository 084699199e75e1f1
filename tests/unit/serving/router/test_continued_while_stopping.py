"""A router stops: a canary's stream that begins after stable was asked beside it, and breaks. Virtual time.

Engines of ours, whose streams another can continue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serving.router.exchange.exchange import Exchange
from serving.router.types import Limits
from tests.fakes.token_engine import PROMPT, TokenEngine
from tests.fakes.virtual_wire import LAST_CHUNK, Piece, chunked, head, virtual_time, wire

ENGINE = TokenEngine("Hello world, this is an answer.")
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}]})
OF_IDS = ("/v1/completions", {"prompt": PROMPT, "max_tokens": 100})


def begun(path: str, body: dict[str, Any], after_s: float) -> Piece:
    more = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in ENGINE.head(path, body)[1:])
    return after_s, head(200, "text/event-stream" if body.get("stream") else "application/json", more=more)


def stable(path: str, body: dict[str, Any]) -> Sequence[Piece]:
    if path == "/tokenize":
        return [begun(path, body, 0.1), (0.0, chunked(ENGINE.tokenize())), (0.0, LAST_CHUNK)]
    events = ENGINE.events(path, body)
    return [begun(path, body, 0.5), *((0.3, chunked(one)) for one in events), (0.0, LAST_CHUNK)]


def answer_of(path: str, body: dict[str, Any], *, breaks: bool) -> tuple[bytes, list[str], bool]:
    """(what the client read, what stable was asked, whether it was still answering when the client had some
    of the canary's answer). Stable is asked beside the canary at 20 s; the canary's stream begins at 25 s."""

    async def go() -> tuple[bytes, list[str], bool]:
        loop = asyncio.get_running_loop()
        began_s, asked, called = loop.time(), [], False

        def of_stable(path: str, body: dict[str, Any]) -> Sequence[Piece]:
            if path:
                asked.append(path)
            return stable(path, body) if path else ()

        def of_canary(path: str, body: dict[str, Any]) -> Sequence[Piece]:
            events = ENGINE.events(path, body) if path else []
            ends: list[Piece] = [(1.0, "reset")] if breaks else [(0.0, LAST_CHUNK)]
            shown = events[:8] if breaks else events
            return [begun(path, body, 25.0), *((0.2, chunked(one)) for one in shown), *ends] if path else ()

        made = await wire(of_stable, weight_bp=9999, canary=of_canary, limits=Limits())
        transport = made.send(path, {**body, "user": "u", "stream": True})
        stopping = loop.create_task(made.front.stop(drain_s=40.0))
        while not transport.has_left:
            await asyncio.sleep(0.1)
            if 25.5 < loop.time() - began_s < 26.0 and made.front.upstream is not None:
                calls = made.front.upstream.calls
                called = any(one.attempt.endpoint.authority == "stable-0" for one in calls)
        await stopping
        return transport.read, asked, called

    with virtual_time() as loop:
        return loop.run_until_complete(go())


@pytest.mark.parametrize("fails", ["broken", "stopped", "refused"])
def test_one_request_that_cannot_be_ended_keeps_no_other_from_being_told(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of `"prompt": [1.0, 2]` raised in `stop`: nobody was told, and no record was sent."""

    async def go() -> tuple[list[bytes], list[str]]:
        def of_canary(path: str, body: dict[str, Any]) -> Sequence[Piece]:
            events = ENGINE.events(path, body) if path else []
            return [begun(path, body, 0.1), *((0.2, chunked(one)) for one in events[:5])] if path else ()

        made = await wire(lambda path, body: (), weight_bp=9999, canary=of_canary, limits=Limits())
        path, body = OF_IDS
        sent = [made.send(path, {**body, "user": f"u{n}", "stream": True}) for n in range(3)]
        await asyncio.sleep(3)
        ended, usual = list[str](), getattr(Exchange, fails)

        def fail(self: Exchange, *args: Any, **more: Any) -> Any:
            ended.append(self.request_id)
            if len(ended) == 1:
                raise ValueError("a fault of our own")
            return usual(self, *args, **more)

        monkeypatch.setattr(Exchange, fails, fail)
        await made.front.stop(drain_s=1.0)
        return [one.read for one in sent], ended

    with virtual_time() as loop:
        read, ended = loop.run_until_complete(go())

    assert len(ended) == 3
    assert all(b'"code": "stopping"' in one for one in read)


def text_of(read: bytes) -> str:
    """The text of a stream of TokenEngine's, a character an event."""
    names = (b'"text":"', b'"content":"')
    parts = [line.partition(name)[2].partition(b'"')[0] for line in read.split(b"\n") for name in names]
    return b"".join(parts).decode()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), [CHAT, OF_IDS])
def test_a_stream_that_breaks_is_continued_and_not_begun_again(path: str, body: dict[str, Any]) -> None:
    """Stable's fresh answer was taken for that of the continuation: text twice, or a cut stream."""
    read, asked, _ = answer_of(path, body, breaks=True)

    assert (text_of(read), read.count(b"[DONE]")) == (ENGINE.text, 1)
    assert asked == ([path, "/tokenize", OF_IDS[0]] if path == CHAT[0] else [path, path])


def test_stable_writes_no_more_once_the_client_has_the_canarys_answer() -> None:
    read, asked, is_writing = answer_of(*CHAT, breaks=False)

    assert text_of(read) == ENGINE.text
    assert (asked, is_writing) == ([CHAT[0]], False)


def test_an_error_of_our_own_at_one_request_keeps_no_other_client_and_no_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two streams that are open at the end of the drain raises when it is to be continued."""
    continued = Exchange._begin_continued
    raised: list[str] = []

    def raising(self: Exchange, *args: Any) -> Any:
        if not raised:
            raised.append(self.request_id)
            raise ValueError("an error of our own")
        return continued(self, *args)

    async def go() -> tuple[list[bytes], bool, int]:
        def of_canary(path: str, body: dict[str, Any]) -> Sequence[Piece]:
            events = ENGINE.events(path, body)[:5] if path else []
            return [begun(path, body, 0.1), *((0.2, chunked(one)) for one in events)] if path else ()

        made = await wire(stable, weight_bp=9999, canary=of_canary, limits=Limits())
        monkeypatch.setattr(Exchange, "_begin_continued", raising)
        sent = [made.send(OF_IDS[0], {**OF_IDS[1], "user": f"u{i}", "stream": True}) for i in range(3)]
        await asyncio.sleep(3.0)
        stopped: list[bool] = []

        async def stop() -> None:
            stopped.append(True)

        monkeypatch.setattr(made.front._background, "stop", stop, raising=False)
        await made.front.stop(drain_s=4.0)
        return [one.read for one in sent], stopped == [True], len(made.front._connections)

    with virtual_time() as loop:
        read, is_stopped, left = loop.run_until_complete(go())

    assert len(raised) == 1
    assert all(b"stopping" in one for one in read)
    assert (is_stopped, left) == (True, 0)
