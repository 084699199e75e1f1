"""What a client that means harm does to other clients' streams, and to the router's memory.

    python -m benchmarks.router.hostile [--only REGEX] [--seconds 10] [--help]

The front of `canaryctl router` stands before two engines. Twenty streams of 50 events a second are read
through it, every byte checked, while one kind of hostile client is at work in a process of its own, at a
lower priority, for it is not the machine's load that is measured. Each event carries the time at which its
engine wrote it: `late` is how much later its reader had it. That holds what the machine was busy with; the
longest turn of the router's event loop, in CPU time, does not (`watched.py`). `undisturbed` is the same
without a hostile client. Memory is the most of the router and its child processes.

Results go to `benchmarks/results/hostile.json` (not with --only or --seconds). Exits 1 when a stream failed,
a turn of the loop took more than 50 ms, or memory went beyond its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks.router import streams
from benchmarks.router import watched as watch_of
from benchmarks.soak import router
from benchmarks.soak.on_fakes import start, stop
from serving.router.front.load import open_files

RESULTS = Path(__file__).parent.parent / "results" / "hostile.json"
STREAMS, RATE, SECONDS = 20, 50.0, 10.0
TURN_MS = 50.0
MEMORY_MIB = 1024.0 + 512.0  # the budget of bodies, and what is read of them at once
READ_EVERY_S = 0.1
MIB = 1 << 20
PIECE = 256 << 10
ADDRESS = "127.0.0.2"  # of the hostile client, which is not that of the streams
CHAT = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
POOLING = CHAT.replace("/v1/chat/completions", "/pooling")
OPENING = b'{"model":"chat","messages":[{"role":"user","content":"'


@dataclass(frozen=True, slots=True)
class Hostile:
    """One kind. `pieces`: what a connection sends, made anew for each. `pause_s`: between two pieces.
    `reads`: whether it reads what it is answered."""

    connections: int
    pieces: Callable[[], Iterable[bytes]]
    pause_s: float = 0.0
    reads: bool = True


def _head(size: int, more: str = "", *, start: str = CHAT) -> bytes:
    return f"{start}content-length: {size}\r\n{more}\r\n".encode()


def _large(filler: bytes, *, size: int = 64 * MIB - 1024, before: bytes = OPENING) -> Iterator[bytes]:
    """A body of one filler, just below the most that is read."""
    yield _head(len(before) + size) + before
    piece = filler * (PIECE // len(filler))
    for _ in range(size // len(piece)):
        yield piece
    yield piece[: size % len(piece)]


def _random(size: int = 64 * MIB - 1024) -> Iterator[bytes]:
    yield _head(size)
    for at in range(0, size, PIECE):
        yield os.urandom(min(PIECE, size - at))


def _nested(levels: int) -> Iterator[bytes]:
    value = b'{"a":' * levels + b"1" + b"}" * levels
    body = b'{"model":"chat","messages":[{"role":"user","content":"hello"}],"x":' + value + b"}"
    yield _head(len(body)) + body


def _names(count: int) -> Iterator[bytes]:
    body = b'{"model":"chat",' + b",".join(b'"%d":%d' % (n, n) for n in range(count)) + b"}"
    yield _head(len(body))
    yield body


def _compressed(size: int) -> Iterator[bytes]:
    body = gzip.compress(OPENING + b" " * size + b'"}]}')
    yield _head(len(body), "content-encoding: gzip\r\n") + body


def _chunks(size: int) -> Iterator[bytes]:
    """A body in chunks of one byte."""
    yield f"{CHAT}transfer-encoding: chunked\r\n\r\n".encode()
    piece = b"1\r\n \r\n" * (PIECE // 6)
    for _ in range(size * 6 // len(piece)):
        yield piece


def _form() -> Iterator[bytes]:
    part = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n\r\n'
    body = part * (8 * MIB // len(part)) + b"--b--\r\n"
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(body)
    yield head + b"content-type: multipart/form-data; boundary=b\r\n\r\n"
    yield body


def _trickled(head: bytes) -> Iterator[bytes]:
    """The beginning, then a byte at a time."""
    yield head
    while True:
        yield b"a"


def _again(body: bytes, more: str = "", *, start: str = CHAT) -> Callable[[], Iterator[bytes]]:
    """One body with a length, again and again on the same connection."""

    def pieces() -> Iterator[bytes]:
        while True:
            yield _head(len(body), more, start=start) + body

    return pieces


def _growing(size: int) -> Iterator[bytes]:
    """A body of which so many bytes come at a time, in the same moment as those of all others."""
    yield _head(64 * MIB) + OPENING
    while True:
        yield b"a" * size


def _silent() -> Iterator[bytes]:
    """A request whose body never comes."""
    yield _head(64 * MIB)
    while True:
        yield b""


def _ahead() -> Iterator[bytes]:
    """A stream, and behind it requests with as much of a head as is read."""
    stream = _endless_stream()
    yield next(stream)
    head = _head(len(SMALL), "x-filler: " + "a" * 60_000 + "\r\n")
    while True:
        yield head + SMALL


def _framed(before: bytes, filler: bytes) -> Iterator[bytes]:
    """What frames a body in chunks and never ends."""
    yield f"{CHAT}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n".encode() + before
    for _ in range(79 * MIB // PIECE):
        yield filler * PIECE


def _turns(content: bytes) -> bytes:
    """A chat whose first assistant turn has this content."""
    return b'{"model":"chat","messages":[{"role":"user"},{"role":"assistant","content":' + content + b"}]}"


TEXT = OPENING + b"a" * (MIB - 200) + b'"}]}'  # just below what another process reads
ESCAPES = OPENING + b"\\u00e9" * (MIB // 6 - 50) + b'"}]}'
LISTS = _turns(b"[" + b"[]," * 20_000 + b"0]")
FLOATS = _turns(b"[" + b",".join([b"1." + b"2" * 30 + b"e-300"] * 26_000) + b"]")
NAMES = b'{"model":"chat",' + b",".join(b'"%d":%d' % (n, n) for n in range(4700)) + b"}"
NANS = _turns(b"[" + b"NaN," * (MIB // 4 - 50) + b"0]")
TURNS = b'{"model":"chat","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 30_000) + b"]}"
SMALL = b'{"model":"chat","max_tokens":1,"messages":[{"role":"user","content":"hello"}]}'
VECTORS = b'{"model":"chat","input":[' + b",".join([b"[1,2,3,4]"] * 100_000) + b"]}"
USER = gzip.compress(b'{"model":"chat","messages":[],"user":"' + b"a" * 60 * 10**6 + b'"}')


def _many(one: bytes, count: int = 2000) -> Iterator[bytes]:
    yield one * count


def _endless_stream() -> Iterator[bytes]:
    fields = {"model": "chat", "stream": True, "max_tokens": 10**6, "messages": [{"role": "user"}]}
    body = json.dumps(fields).encode()
    yield _head(len(body)) + body
    while True:
        yield b""


KINDS: dict[str, Hostile] = {
    "64 MiB of one string": Hostile(8, lambda: _large(b"a")),
    "64 MiB of escapes": Hostile(8, lambda: _large(b"\\u00e9")),
    "64 MiB of spaces": Hostile(8, lambda: _large(b" ", before=b"")),
    "64 MiB of brackets": Hostile(8, lambda: _large(b"[", before=b"")),
    "64 MiB of numbers": Hostile(8, lambda: _large(b"1,", before=b'{"model":"chat","x":[')),
    "64 MiB of random bytes": Hostile(8, _random),
    "1000 levels": Hostile(32, lambda: _nested(1000)),
    "1,000,000 levels": Hostile(8, lambda: _nested(1_000_000)),
    "500,000 names": Hostile(8, lambda: _names(500_000)),
    "64 MiB from 64 KiB of gzip": Hostile(8, lambda: _compressed(64 * MIB - 1024)),
    "4 GiB from 4 MiB of gzip": Hostile(2, lambda: _compressed(1024 * MIB)),
    "chunks of one byte": Hostile(8, lambda: _chunks(8 * MIB)),
    "form of 160,000 parts": Hostile(8, _form),
    "head without an end": Hostile(8, lambda: _many(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000, 1)),
    "head of one long line": Hostile(8, lambda: _many(b"GET /" + b"a" * 8 * MIB, 1)),
    "heads a byte at a time": Hostile(1000, lambda: _trickled(b"GET / HTTP/1.1\r\na: "), 1.0),
    "bodies a byte at a time": Hostile(1000, lambda: _trickled(_head(64 * MIB) + OPENING), 1.0),
    "2000 requests at once, 404": Hostile(16, lambda: _many(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")),
    "2000 bad requests at once": Hostile(16, lambda: _many(_head(2) + b"{]")),
    "connections opened and closed": Hostile(64, lambda: _many(b"", 1), 0.001),
    "streams that nobody reads": Hostile(200, _endless_stream, 1.0, reads=False),
    "100 x 60 KB of lists": Hostile(100, _again(LISTS)),
    "100 x 60 KB of names": Hostile(100, _again(NAMES)),
    "100 x 1 MiB of text": Hostile(100, _again(TEXT)),
    "100 x 1 MiB of escapes": Hostile(100, _again(ESCAPES)),
    "100 x 64 MiB": Hostile(100, lambda: _large(b"a")),
    "4 x 1 MB of floats": Hostile(4, _again(FLOATS)),
    "60 MB of a user's name, as gzip": Hostile(12, _again(USER, "content-encoding: gzip\r\n")),
    "trailer without an end": Hostile(8, lambda: _framed(b"0\r\nx-t: ", b"a")),
    "size of a chunk without an end": Hostile(8, lambda: _framed(b"", b"0")),
    "8 x 1 MiB of NaN": Hostile(8, _again(NANS)),
    "8 x 30,000 turns": Hostile(8, _again(TURNS)),
    "8 x 1 MB for /pooling": Hostile(8, _again(VECTORS, start=POOLING)),
    "1000 small requests at once": Hostile(1000, _again(SMALL), 1.0),
    "2000 bodies that grow at once": Hostile(2000, lambda: _growing(19_000), 1.0),
    "1000 heads whose bodies do not come": Hostile(1000, _silent, 1.0),
    "heads of 60 KB behind a stream": Hostile(100, _ahead, 0.1, reads=False),
    "all connections from one address": Hostile(17_000, lambda: iter([b"GET"] + [b""] * 60), 1.0),
    "random bytes": Hostile(64, lambda: iter([os.urandom(65536)])),
}


async def attack(kind: Hostile, port: int, seconds: float) -> Counter[str]:
    """Send for so many seconds; the first lines that were answered, and connections that broke."""
    seen: Counter[str] = Counter()
    until_s = time.monotonic() + seconds

    async def read(reader: asyncio.StreamReader) -> None:
        first = await reader.readline()
        seen[first[9:12].decode("latin-1") or "closed"] += 1
        while await reader.read(65536):
            pass

    async def one() -> None:
        while time.monotonic() < until_s:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ADDRESS, 0))
            except OSError:
                seen["refused"] += 1
                await asyncio.sleep(0.1)
                continue
            reading = asyncio.ensure_future(read(reader)) if kind.reads else None
            with contextlib.suppress(OSError):
                for piece in kind.pieces():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(kind.pause_s)
                    if time.monotonic() > until_s or (reading and reading.done()):
                        break
            if reading is not None:
                with contextlib.suppress(OSError, TimeoutError):
                    await asyncio.wait_for(reading, max(min(until_s - time.monotonic(), 2.0), 0.01))
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(kind.connections):
            group.create_task(one())
    return seen


@dataclass(frozen=True, slots=True)
class Row:
    """Beside one kind. Times in ms, that of the event loop's longest turn in CPU time; memory in MiB.

    `answers`: of the hostile client, by status.
    """

    longest_turn_ms: float
    late_p99_ms: float
    late_max_ms: float
    failed: tuple[str, ...]
    memory_mib: float
    answers: dict[str, int]


def measure(kind: str | None, seconds: float) -> Row:
    """The streams beside this kind; None: undisturbed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = stack.enter_context(streams.paced_engines(RATE))
        table = Path(folder) / "table.json"
        urls = dict(zip(("stable", "canary"), ports, strict=True))
        table.write_text(json.dumps({arm: [f"http://127.0.0.1:{port}"] for arm, port in urls.items()}))
        settings = router.Settings(str(table), f"{folder}/records.jsonl", "s", streams.WEIGHT_BP, {})
        watched = watch_of.Settings(settings, f"{folder}/longest")
        process, port = start("benchmarks.router.watched", watched)
        stack.callback(stop, process)
        memory = stack.enter_context(_Memory(psutil.Process(process.pid)))
        sender = None
        if kind is not None:
            command = [sys.executable, "-m", __spec__.name, "--send", kind, str(port), str(seconds)]
            sender = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(10)
            )
        row = uvloop.run(streams.measure(port, None, STREAMS, seconds, RATE))
        answers = json.loads(sender.communicate()[0]) if sender else {}
        longest_ms = float(Path(watched.file).read_text(encoding="utf-8"))
    return Row(longest_ms, row.late_p99_ms, row.late_max_ms, row.failed, round(memory.most_mib, 1), answers)


class _Memory:
    """The most that a process and its children held."""

    def __init__(self, process: psutil.Process) -> None:
        self._process, self._done = process, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most_mib = 0.0

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(READ_EVERY_S):
            with contextlib.suppress(psutil.Error):
                family = [self._process, *self._process.children(recursive=True)]
                held = sum(one.memory_info().rss for one in family) / MIB
                self.most_mib = max(self.most_mib, held)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="kinds whose name matches")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each")
    parser.add_argument("--send", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.send:
        kind, port, seconds = args.send
        open_files()
        print(json.dumps(uvloop.run(attack(KINDS[kind], int(port), float(seconds)))))
        return 0
    quiet = measure(None, args.seconds)
    _say("undisturbed", quiet)
    rows, missed = {"undisturbed": quiet}, []
    for name in KINDS:
        if re.search(args.only, name):
            rows[name] = row = measure(name, args.seconds)
            _say(name, row)
            if row.failed or row.longest_turn_ms > TURN_MS or row.memory_mib > MEMORY_MIB:
                missed.append(name)
    result = {
        "what": "streams of other clients beside hostile ones; see benchmarks/router/hostile.py",
        "command": "python -m benchmarks.router.hostile",
        "streams": STREAMS,
        "events_a_second": RATE,
        "seconds": args.seconds,
        "kinds": {name: asdict(row) for name, row in rows.items()},
    }
    if not args.only and args.seconds == SECONDS:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"missed: {'; '.join(missed)}" if missed else "every goal that was measured was reached")
    return 1 if missed else 0


def _say(name: str, row: Row) -> None:
    print(
        f"{name}: longest turn {row.longest_turn_ms:.1f} ms; late by {row.late_p99_ms:.1f} ms (p99), "
        f"{row.late_max_ms:.1f} (most); {len(row.failed)} failed; {row.memory_mib:.0f} MiB; {row.answers}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
