"""Benchmark of the router: `make bench-router`.

    python -m benchmarks.router [--seconds N] [--rounds N] [--only NAMES] [--install] [--help]

Every router stands in front of the same two fake engines in one run, one process each; rounds alternate
between them. For a whole answer and for a stream of 20 events: median and p99 at one client, answers a second
and p99 at 32 clients, CPU time a request (of the router's processes). The best of the rounds counts, of p99
the median: other work on the machine only adds. Clients, routers and engines share the machine: trust ratios.

Results go to `benchmarks/results/router.{json,md}`, with --plot also `router.svg`; with --only nothing is
written there. Exits 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.router import peers, report
from benchmarks.router.client import Load, measure
from benchmarks.router.engine import run_engine

RESULTS = Path(__file__).parent.parent / "results"
CLIENTS = 32
CASES = {"whole": False, "stream": True}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a goal was missed."""
    args = _parser().parse_args(argv)
    if args.install:
        peers.install()
        return 0
    chosen = [peer for peer in peers.PEERS if not args.only or peer.name in args.only.split(",")]
    result = run(chosen, seconds=args.seconds, rounds=args.rounds)
    print(report.as_markdown(result))
    if not args.only:
        (RESULTS / "router.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "router.md").write_text(report.as_markdown(result), encoding="utf-8")
        if args.plot:
            report.plot(result, RESULTS / "router.svg")
    missed = [goal["says"] for goal in result["goals"] if goal["reached"] is False]
    print(f"missed goals: {'; '.join(missed)}" if missed else "every goal that was measured was reached")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds")
    parser.add_argument("--only", default="", metavar="NAMES", help="only these, with commas between")
    parser.add_argument("--plot", action="store_true", help="also draw router.svg (needs matplotlib)")
    parser.add_argument("--install", action="store_true", help="install the peers, and do nothing else")
    return parser


def run(chosen: list[peers.Peer], *, seconds: float, rounds: int) -> dict[str, Any]:
    """All figures, as JSON values."""
    skipped = {peer.name: why for peer in chosen if (why := peer.missing()) is not None}
    with ExitStack() as stack:
        engines = stack.enter_context(two_engines())
        started = {"direct": peers.Started(engines[0], peers.PATH, None)}
        for peer in chosen:
            if peer.name in skipped:
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="router-bench-")))
            try:
                started[peer.name] = stack.enter_context(peers.running(peer, folder, engines))
            except RuntimeError as exc:
                skipped[peer.name] = str(exc)
        for why in skipped.values():
            print(why, file=sys.stderr)
        figures = {
            case: _measured(started, is_stream=is_stream, seconds=seconds, rounds=rounds)
            for case, is_stream in CASES.items()
        }
        served = [_served(engine) for engine in engines]
    result: dict[str, Any] = {
        "what": "ms, answers/s, CPU us an answer; best of the rounds, p99: median",
        "seconds": seconds,
        "rounds": rounds,
        "clients": [1, CLIENTS],
        "settings": {peer.name: peer.settings for peer in chosen if peer.name in started},
        "skipped": {name: why.splitlines()[0] for name, why in skipped.items()},
        "answers_of_engines": served,
        "figures": figures,
    }
    result["goals"] = report.goals(result)
    return result


@contextmanager
def two_engines() -> Iterator[tuple[int, int]]:
    """The ports of two fake engines, each a process."""
    context = multiprocessing.get_context("spawn")
    ports, processes = [], []
    for _ in range(2):
        here, there = context.Pipe()
        process = context.Process(target=run_engine, args=(there,), daemon=True)
        process.start()
        ports.append(int(here.recv()))
        processes.append(process)
    try:
        yield ports[0], ports[1]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _served(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/engine/served", timeout=5) as answer:
        return int(answer.read())


def _measured(
    started: dict[str, peers.Started], *, is_stream: bool, seconds: float, rounds: int
) -> dict[str, dict[str, float]]:
    one: dict[str, list[Load]] = {name: [] for name in started}
    many: dict[str, list[Load]] = {name: [] for name in started}
    cpu_us: dict[str, list[float]] = {name: [] for name in started}
    for _ in range(rounds):
        for name, router in started.items():
            load_of = partial(
                measure, router.port, router.path, is_stream=is_stream, seconds=seconds, key=router.key
            )
            one[name].append(asyncio.run(load_of(clients=1)))
            before_s = router.cpu_s()
            load = asyncio.run(load_of(clients=CLIENTS))
            cpu_us[name].append((router.cpu_s() - before_s) / load.answers * 1e6)
            many[name].append(load)
    base_ms = min(load.p50_ms for load in one["direct"])
    return {
        name: {
            "p50_ms": round(min(load.p50_ms for load in one[name]), 4),
            "added_p50_ms": round(min(load.p50_ms for load in one[name]) - base_ms, 4),
            "p99_ms": round(statistics.median(load.p99_ms for load in one[name]), 3),
            "rate": round(max(load.rate for load in many[name])),
            "p99_at_32_ms": round(statistics.median(load.p99_ms for load in many[name]), 2),
            "cpu_us": round(min(cpu_us[name]), 1),
        }
        for name in started
    }


if __name__ == "__main__":
    sys.exit(main())
