"""Load: connections that each send their next request as soon as the last is answered, and check it.

The keys vary (64 users), so that a router with two arms uses both.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass
from typing import cast

from benchmarks.router.engine import CHUNKS, END, MODEL

USERS = 64


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement showed. Times in ms; `rate`: answers a second."""

    p50_ms: float
    p99_ms: float
    rate: float
    answers: int


def requests(path: str, *, is_stream: bool, key: str = "") -> list[bytes]:
    """One request for each user. key: of a proxy that wants one."""
    found = []
    for index in range(USERS):
        message = {"role": "user", "content": f"What is the capital of country {index}?"}
        fields = {"model": MODEL, "messages": [message], "user": f"user-{index}", "stream": is_stream}
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"x-session-id: user-{index}\r\n"
        if key:
            head += f"authorization: Bearer {key}\r\n"
        found.append(head.encode() + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    return found


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, sent: list[bytes], offset: int, is_stream: bool, until_s: float) -> None:
        self._requests = itertools.cycle(sent[offset % len(sent) :] + sent[: offset % len(sent)])
        self._is_stream, self._until_s = is_stream, until_s
        self.times_s: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        self._buffer = b""
        self._size: int | None = None  # of the answer and its head; -1: in chunks; None: unknown yet
        self._began_s = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_whole():
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._fail("an error was answered")
            return
        if self._is_stream and self._buffer.count(b"data: {") != CHUNKS + 1:
            self._fail("a stream is not whole")
            return
        now_s = time.perf_counter()
        self.times_s.append(now_s - self._began_s)
        if now_s < self._until_s:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def _is_whole(self) -> bool:
        """True when the answer has ended by its framing."""
        if self._size is None:
            split = self._buffer.find(b"\r\n\r\n")
            if split < 0:
                return False
            head = self._buffer[:split].lower()
            start = head.find(b"content-length:")
            self._size = split + 4 + int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else -1
        return self._buffer.endswith(END) if self._size < 0 else len(self._buffer) >= self._size

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"{why}: {self._buffer[:300]!r}"))
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"connection lost after {self._buffer[:300]!r}"))


async def measure(
    port: int, path: str, *, clients: int, is_stream: bool, seconds: float, key: str = ""
) -> Load:
    """Load on one address. Raises ConnectionError when any answer is wrong."""
    sent = requests(path, is_stream=is_stream, key=key)
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    connections = [
        await loop.create_connection(
            lambda index=index: Client(sent, index * 7, is_stream, began_s + seconds),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        for index in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in connections))
    took_s = time.perf_counter() - began_s
    times = sorted(time_s for _, client in connections for time_s in client.times_s)
    return Load(
        times[len(times) // 2] * 1000,
        times[min(len(times) * 99 // 100, len(times) - 1)] * 1000,
        len(times) / took_s,
        len(times),
    )
