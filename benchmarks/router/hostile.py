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
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import uvloop

from benchmarks.router import streams
from benchmarks.router import watched as watch_of
from benchmarks.router.hostile_kinds import KINDS, MIB, Hostile
from benchmarks.soak import router
from benchmarks.soak.on_fakes import start, stop
from serving.router.front.load import open_files

RESULTS = Path(__file__).parent.parent / "results" / "hostile.json"
STREAMS, RATE, SECONDS = 20, 50.0, 10.0
TURN_MS = 50.0
MEMORY_MIB = 1024.0 + 512.0  # the budget of bodies, and what is read of them at once
READ_EVERY_S = 0.1
OPENS_S = 10.0  # until a handshake is answered
ADDRESS = "127.0.0.2"  # of the hostile client, which is not that of the streams


async def attack(kind: Hostile, port: int, seconds: float) -> Counter[str]:
    """Send for so many seconds; the first lines that were answered, and connections that broke."""
    seen: Counter[str] = Counter()
    until_s = time.monotonic() + seconds

    async def read(reader: asyncio.StreamReader, *, is_open: bool) -> None:
        if not is_open:
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
            reading = None
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                if kind.opens:
                    writer.write(kind.opens)
                    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), OPENS_S)
                    seen[head[9:12].decode("latin-1")] += 1
                if kind.reads:
                    reading = asyncio.ensure_future(read(reader, is_open=bool(kind.opens)))
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
        if kind is not None and KINDS[kind].is_renamed:
            table.write_text(json.dumps({**json.loads(table.read_text()), "model": "named"}))
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
