"""Long streams at once through one router.

    python -m benchmarks.router.streams [--streams 500] [--seconds 60] [--rate 50] [--ceiling] [--help]

The front of `canaryctl router` stands before two fenced engines at 50 %, a process each; one client process
reads all streams and checks every byte. Each event carries the time at which its engine wrote it: `late` is
how much later the client had it, engine's and client's own time included (beside it the same without a
router, `direct`). Memory of the router is read in the course of the run. --ceiling: then twice as many
streams, again and again, until events are late by more than a tenth of a second (p99) or bytes are wrong.

Results go to `benchmarks/results/streams.json` (not with other numbers than the default ones). Exits 1 when
a byte was lost, an answer failed, or the router's memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import psutil
import uvloop

from benchmarks.router.engine import LAST
from benchmarks.router.pacing import Settings
from benchmarks.soak import router
from benchmarks.soak.on_fakes import start, stop

RESULTS = Path(__file__).parent.parent / "results" / "streams.json"
PATH = "/v1/chat/completions"
WEIGHT_BP = 5000
OPEN_S = 2.0  # in which the streams are opened
MOST_LATE_MS = 100.0
GROWTH = 1.1  # of the router's memory from the first third of the run to its end
READ_EVERY_S = 1.0
_EVENT = re.compile(
    rb"(?:: ids \d+\n)?"  # the engine's own, which no router passes on
    rb'data: \{"id":"c[^"]*","object":"chat.completion.chunk","created":1,"model":"chat",'
    rb'"choices":\[\{"index":0,"delta":\{"content":"(\d+) (\d+) "\},"finish_reason":null\}\]\}\n\n'
)


@dataclass
class Stream(asyncio.Protocol):
    """One request and its answer, of so many events."""

    number: int
    events: int
    late_us: list[int]
    path: str = PATH
    error: str | None = None
    _size: int = -1  # of the answer's head; -1: not whole yet
    _framed: bytes = b""
    _plain: bytes = b""
    _next: int = 0
    done: asyncio.Future[None] = field(init=False)

    def __post_init__(self) -> None:
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)
        fields = {
            "model": "chat",
            "stream": True,
            "max_tokens": self.events,
            "user": f"user-{self.number}",
            "messages": [{"role": "user", "content": f"Count, {self.number}."}],
        }
        body = json.dumps(fields).encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self._transport.write(head.encode() + b"content-length: %d\r\n\r\n%s" % (len(body), body))

    def data_received(self, data: bytes) -> None:
        """Check what came."""
        now_us = time.monotonic_ns() // 1000
        self._framed += data
        if self._size < 0:
            self._size = self._framed.find(b"\r\n\r\n")
            if self._size < 0:
                return
            if not self._framed.startswith(b"HTTP/1.1 200"):
                self._end(f"answered {self._framed[:200]!r}")
                return
            self._framed = self._framed[self._size + 4 :]
        *lines, self._framed = self._framed.split(b"\r\n")
        if len(lines) % 2:  # a size whose data is not whole
            self._framed = lines.pop() + b"\r\n" + self._framed
        for size, chunk in zip(lines[::2], lines[1::2], strict=True):
            if int(size, 16) != len(chunk):
                self._end(f"chunk of {size!r} has {len(chunk)} bytes")
            elif not chunk:
                self._end(None if self._plain == LAST else f"ends with {self._plain[-200:]!r}")
            else:
                self._read(chunk, now_us)

    def _read(self, chunk: bytes, now_us: int) -> None:
        self._plain += chunk
        at = 0
        while self._next < self.events and (found := _EVENT.match(self._plain, at)):
            if int(found[1]) != self._next:
                self._end(f"event {found[1]!r} came instead of {self._next}")
                return
            self.late_us.append(now_us - int(found[2]))
            self._next += 1
            at = found.end()
        self._plain = self._plain[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection is none of an answer."""
        self._end(f"connection lost after {self._next} events")

    def _end(self, error: str | None) -> None:
        if self.done.done():
            return
        if error is None and self._next != self.events:
            error = f"{self._next} of {self.events} events"
        self.error = error
        self.done.set_result(None)
        self._transport.close()


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Times in ms; memory in MiB, of the router's process, by second; `cpu`: its share of a core."""

    streams: int
    events: int
    failed: tuple[str, ...]
    late_p50_ms: float
    late_p99_ms: float
    late_max_ms: float
    cpu: float = 0.0
    memory_mib: tuple[float, ...] = ()

    @property
    def growth(self) -> float:
        """Memory at the end over that after a third of the run."""
        return self.memory_mib[-1] / self.memory_mib[len(self.memory_mib) // 3] if self.memory_mib else 1.0


async def read_streams(
    port: int, streams: int, events: int, path: str = PATH, *, open_s: float = OPEN_S
) -> tuple[list[Stream], list[int]]:
    """Open the streams within `open_s` and read each to its end; and how late each event was, in us."""
    late_us: list[int] = []
    loop, opened = asyncio.get_running_loop(), []
    for number in range(streams):
        stream = Stream(number, events, late_us, path)
        await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", port)  # type: ignore[misc]
        opened.append(stream)
        await asyncio.sleep(open_s / streams)
    await asyncio.gather(*(stream.done for stream in opened))
    return opened, late_us


async def measure(
    port: int, process: psutil.Process | None, streams: int, seconds: float, rate: float, path: str = PATH
) -> Measured:
    """The streams on one address, and the router's memory and CPU time meanwhile."""
    memory: list[float] = []

    async def watch(process: psutil.Process) -> None:
        while True:
            await asyncio.sleep(READ_EVERY_S)
            memory.append(process.memory_info().rss / 2**20)

    watching = asyncio.create_task(watch(process)) if process else None
    before, began_s = process.cpu_times() if process else None, time.monotonic()
    opened, late_us = await read_streams(port, streams, round(seconds * rate), path)
    took_s = time.monotonic() - began_s
    cpu_s = 0.0
    if process is not None and before is not None and watching is not None:
        watching.cancel()
        after = process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
    late = sorted(late_us) or [0]
    return Measured(
        streams,
        len(late_us),
        tuple(stream.error for stream in opened if stream.error),
        late[len(late) // 2] / 1000,
        late[len(late) * 99 // 100] / 1000,
        late[-1] / 1000,
        cpu_s / took_s,
        tuple(round(one, 1) for one in memory),
    )


@contextmanager
def paced_engines(rate: float) -> Iterator[tuple[int, int]]:
    """The ports of two engines that write so many events a second into each stream."""
    with ExitStack() as stack:
        ports = []
        for _ in range(2):
            engine, port = start("benchmarks.router.pacing", Settings(rate))
            stack.callback(stop, engine)
            ports.append(port)
        yield ports[0], ports[1]


def run(streams: int, seconds: float, rate: float, *, is_direct: bool = False) -> Measured:
    """One run with processes of its own."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = stack.enter_context(paced_engines(rate))
        if is_direct:
            return _measured(ports[0], None, streams, seconds, rate)
        table = Path(folder) / "table.json"
        urls = dict(zip(("stable", "canary"), ports, strict=True))
        table.write_text(json.dumps({arm: [f"http://127.0.0.1:{port}"] for arm, port in urls.items()}))
        settings = router.Settings(str(table), f"{folder}/records.jsonl", "s", WEIGHT_BP, {})
        process, port = start("benchmarks.soak.router", settings)
        stack.callback(stop, process)
        return _measured(port, psutil.Process(process.pid), streams, seconds, rate)


def _measured(
    port: int, process: psutil.Process | None, streams: int, seconds: float, rate: float
) -> Measured:
    measured: Measured = uvloop.run(measure(port, process, streams, seconds, rate))
    return measured


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a byte was lost or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=500, help="at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="each")
    parser.add_argument("--rate", type=float, default=50.0, help="events a second of each")
    parser.add_argument("--ceiling", action="store_true", help="then twice as many, until they are late")
    args = parser.parse_args(argv)
    is_default = all(
        getattr(args, name) == parser.get_default(name) for name in ("streams", "seconds", "rate")
    )
    rows = {"direct": run(args.streams, args.seconds, args.rate, is_direct=True)}
    rows["router"] = run(args.streams, args.seconds, args.rate)
    _say("direct", rows["direct"])
    _say("router", rows["router"])
    more: list[Measured] = []
    while args.ceiling and (not more or _is_sound(more[-1])):
        more.append(run((more[-1].streams if more else args.streams) * 2, args.seconds / 3, args.rate))
        _say("router", more[-1])
    result = {
        "what": "long streams at once through one router; see benchmarks/router/streams.py",
        "command": "python -m benchmarks.router.streams" + (" --ceiling" if args.ceiling else ""),
        "seconds": args.seconds,
        "events_a_second": args.rate,
        **{name: asdict(row) for name, row in rows.items()},
        "ceiling": [asdict(row) for row in more],
    }
    if is_default:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    measured = rows["router"]
    return 1 if measured.failed or measured.growth > GROWTH else 0


def _is_sound(row: Measured) -> bool:
    return not row.failed and row.late_p99_ms <= MOST_LATE_MS


def _say(name: str, row: Measured) -> None:
    memory = f", memory {min(row.memory_mib)} to {max(row.memory_mib)} MiB" if row.memory_mib else ""
    print(
        f"{name}: {row.streams} streams, {row.events} events, {len(row.failed)} failed; late by "
        f"{row.late_p50_ms:.1f} ms (p50), {row.late_p99_ms:.1f} (p99), {row.late_max_ms:.1f} (most); "
        f"{row.cpu:.2f} cores{memory}",
        flush=True,
    )
    for error in row.failed[:3]:
        print(f"  {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
