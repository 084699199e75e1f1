"""Verifying client of the fault matrix: it knows every byte of every answer.

An answer is right when its status is 200 and it is one of these:

- byte for byte that of one engine, whichever arm;
- of a stream that stable continued: one id, one `created`, the role in its first event alone, no field that
  an engine does not write, the whole text, one finish, the usage of both parts if it was asked for, and one
  [DONE].

Keep-alives, which are comments or pings, are taken out first. The parser is httptools' for answers, so that
the framing is checked by other code than the router's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httptools

from benchmarks.soak.answers import CHAT, MESSAGES, Kind, answer_of, body_of, kind_of, plain

KEEP_ALIVES = b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n'  # that of `/v1/messages` last
ANSWER_S = 180.0  # a client gives up after this: a failure
How = Literal["canary", "stable", "stitched"]


class NotRight(Exception):
    """An answer is not what it must be; the message says how."""


def check(kind: Kind, body: bytes, data: bytes) -> How:
    """Whose answer this is. Raises NotRight."""
    fields = json.loads(body)
    if kind.is_stream:
        keep_alive = KEEP_ALIVES[kind.path == MESSAGES]
        while data.startswith(keep_alive) or b"\n\n" + keep_alive in data:
            data = data.removeprefix(keep_alive).replace(b"\n\n" + keep_alive, b"\n\n")
    expected = {arm: answer_of(arm, kind.path, fields) for arm in ("canary", "stable")}
    for arm, events in expected.items():
        if data == plain(events):
            return arm  # type: ignore[return-value]
    if not kind.is_continued:
        raise NotRight(f"neither engine's bytes: {_shown(data)}")
    for events in expected.values():  # the shape of either, since stable's own streams are continued too
        if _shape(plain(events)) == _shape(data):
            _check_stitched(data, plain(events), fields, is_chat=kind.path == CHAT)
            return "stitched"
    raise NotRight(f"another id, model or time than an engine's: {_shown(data)}")


def _shown(data: bytes) -> str:
    return repr(data[:300] + b" ... " + data[-300:] if len(data) > 600 else data)


def _events(data: bytes) -> list[dict[str, Any]]:
    """The events before [DONE]. Raises NotRight for anything but whole `data:` events of one line."""
    parts = data.split(b"\n\n")
    if len(parts) < 3 or parts[-1] or parts[-2] != b"data: [DONE]":
        raise NotRight(f"no [DONE] at its end: {_shown(data)}")
    found = []
    for part in parts[:-2]:
        try:
            event = json.loads(part.removeprefix(b"data: "))
        except ValueError:
            event = None
        if not part.startswith(b"data: {") or not isinstance(event, dict):
            raise NotRight(f"not an event: {part[:200]!r}")
        found.append(event)
    return found


def _shape(data: bytes) -> set[tuple[object, ...]]:
    return {tuple(one.get(name) for name in ("id", "object", "created", "model")) for one in _events(data)}


def _check_stitched(data: bytes, expected: bytes, fields: Mapping[str, Any], *, is_chat: bool) -> None:
    read, known = _Stream(data, is_chat=is_chat), _Stream(expected, is_chat=is_chat)
    for name in ("text", "finish", "usage"):
        got, wanted = getattr(read, name), getattr(known, name)
        if got != wanted:
            raise NotRight(f"{name} {got!r}, not {wanted!r}")
    is_always = (fields.get("stream_options") or {}).get("continuous_usage_stats", False)
    if read.usages != (read.choices if is_always else 0):
        raise NotRight(f"{read.usages} events of {read.choices} name the usage")


class _Stream:
    """A stream of one choice as its client reads it. Raises NotRight."""

    def __init__(self, data: bytes, *, is_chat: bool) -> None:
        self.text, self.finish, self.usage = "", None, None
        self.choices = self.usages = 0
        events = _events(data)
        for index, event in enumerate(events):
            allowed = {"id", "object", "created", "model", "choices", "usage"}
            if event.keys() - allowed or not isinstance(event.get("choices"), list):
                raise NotRight(f"fields {sorted(event)}")
            if not event["choices"]:
                if index != len(events) - 1 or not event.get("usage"):
                    raise NotRight(f"an event without a choice at {index} of {len(events)}: {event}")
                self.usage = event["usage"]
                continue
            self._read(event, is_first=index == 0, is_chat=is_chat)

    def _read(self, event: Mapping[str, Any], *, is_first: bool, is_chat: bool) -> None:
        (choice,) = event["choices"]
        shown = "delta" if is_chat else "text"
        if choice.keys() != {"index", shown, "logprobs", "finish_reason"} or choice["index"] != 0:
            raise NotRight(f"a choice with {choice}")
        if self.finish is not None:
            raise NotRight("an event after the finish")
        if is_chat:
            delta = choice["delta"]
            if delta.keys() != ({"role", "content"} if is_first else {"content"}):
                raise NotRight(f"delta {delta} in event {self.choices}")
            self.text += delta["content"]
        else:
            self.text += choice["text"]
        self.finish = choice["finish_reason"]
        self.choices += 1
        self.usages += event.get("usage") is not None and not (is_chat and is_first)
        if is_chat and is_first:
            self.choices -= 1  # engines write no usage beside the role


@dataclass
class Tally:
    """What the clients saw. by_id: of each request, its kind and whose answer it was."""

    by_id: dict[str, tuple[str, How]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)  # by kind
    whose: Counter[str] = field(default_factory=Counter)
    times_s: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection, which sends its next request when an answer is whole; after a failure it is closed."""

    def __init__(self, path: str, tally: Tally, next_: Callable[[], int | None]) -> None:
        self._path, self._tally, self._next = path, tally, next_
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._number = self._next()
        if self._number is None:
            self._end()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._body, self._headers = bytearray(), dict[str, str]()
        self._kind, self._asked = kind_of(self._number), body_of(self._number)
        self._began_s = time.perf_counter()
        self._timer = asyncio.get_running_loop().call_later(ANSWER_S, self._fail, f"no end in {ANSWER_S} s")
        head = f"POST {self._path}{self._kind.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self._transport.write(
            head.encode() + b"content-length: %d\r\n\r\n%b" % (len(self._asked), self._asked)
        )

    # ---- of the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}")
            return
        try:
            whose = check(self._kind, self._asked, bytes(self._body))
        except NotRight as exc:
            self._fail(str(exc))
            return
        tally = self._tally
        tally.by_id[self._headers.get("x-canaryctl-request-id", "")] = self._kind.name, whose
        tally.answers[self._kind.name] += 1
        tally.whose[whose] += 1
        tally.times_s.append(time.perf_counter() - self._began_s)
        self._timer.cancel()
        if self._parser.should_keep_alive():
            asyncio.get_running_loop().call_soon(self._send)
        else:
            self._end()

    # ---- of the connection

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"not HTTP: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._fail(f"connection lost ({exc})")

    def _fail(self, why: str) -> None:
        if self.done.done():
            return
        request = self._headers.get("x-canaryctl-request-id", "no head")
        arm = self._headers.get("x-canaryctl-arm", "")
        asked = f"{self._kind.name}, request {self._number} ({request}, {arm})"
        self._tally.failures.append(f"{asked}: {why}; got {_shown(bytes(self._body))}")
        self._end()
        self._transport.abort()

    def _end(self) -> None:
        if self._number is not None:
            self._timer.cancel()
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


async def ask_all(port: int, path: str, tally: Tally, next_: Callable[[], int | None], clients: int) -> None:
    """Ask until `next_` gives no number any more; a connection that ends is replaced.

    path: before /v1, such as /chat.
    """
    loop = asyncio.get_running_loop()
    is_over = False

    def number() -> int | None:
        nonlocal is_over
        found = next_()
        is_over = is_over or found is None
        return found

    async def one() -> None:
        while not is_over:
            try:
                _, client = await loop.create_connection(
                    lambda: Client(path, tally, number), "127.0.0.1", port
                )
            except OSError as exc:
                tally.failures.append(f"no connection to the router: {exc}")
                await asyncio.sleep(0.1)
                continue
            await client.done

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())
