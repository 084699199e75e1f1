"""Fault matrix: `make soak`.

    python -m benchmarks.soak [--parts NAMES] [--only CLASS] [--requests N] [--runs N]
                             [--strikes N] [--jobs N] [--sample] [--fresh] [--help]

Parts:

- `fakes`: each fault of `faults.py`, until N requests have met it.
- `fairness`: identical arms under each fault, through the gate as shipped.
- `processes`: routers, controller and table actor killed.
- `engines`: kill -9 and SIGSTOP of a real vLLM engine.

A class that has been measured is not measured again, unless --fresh is given. --sample: a few of each, in
minutes; nothing is written.

The whole goes to `benchmarks/results/soak.json`. Exits 1 when a user saw a failure, or a record is not what
happened.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.soak import fairness, on_engines, on_fakes, on_processes
from benchmarks.soak.faults import FAULTS
from benchmarks.soak.results import FOLDER, Results

CACHE = Path(__file__).parents[2] / ".cache" / "soak"
REQUESTS, RUNS, STRIKES = 10_000, 1000, 200
SAMPLE_REQUESTS, SAMPLE_RUNS = 100, 8
SAMPLE_FAULTS = ("mixed", "status 400", "cut")
Measure = tuple[int, Callable[[], dict[str, Any]]]  # how many of what its part counts, and how


def classes(args: argparse.Namespace) -> Mapping[str, Mapping[str, Measure]]:
    """How each class of each part is measured."""
    requests, runs = (SAMPLE_REQUESTS, SAMPLE_RUNS) if args.sample else (args.requests, args.runs)
    faults = SAMPLE_FAULTS if args.sample else fairness.CLASSES
    parts: dict[str, Mapping[str, Measure]] = {
        "fakes": {fault.name: (requests, partial(_on_fakes, fault.name, requests)) for fault in FAULTS},
        "fairness": {name: (runs, partial(fairness.measure, name, runs, args.jobs)) for name in faults},
    }
    if not args.sample:
        n = args.strikes
        kills = max(20, n // 10) if n >= STRIKES else n
        parts["processes"] = {
            kind: (kills, partial(on_processes.run, kind, kills)) for kind in on_processes.KINDS
        }
        parts["engines"] = {kind: (n, partial(on_engines.run, kind, n)) for kind in ("killed", "frozen")}
    return parts


def _on_fakes(name: str, requests: int) -> dict[str, Any]:
    from benchmarks.soak.faults import BY_NAME

    return on_fakes.run(BY_NAME[name], requests).as_json()


def main(argv: list[str] | None = None) -> int:
    """Measure what has not been measured; returns 1 when something was wrong."""
    args = _parser().parse_args(argv)
    results = Results(CACHE)
    parts = classes(args)
    wrong: list[str] = []
    for part, by_name in parts.items():
        if args.parts and part not in args.parts.split(","):
            continue
        for name, (size, measure) in by_name.items():
            if args.only and name != args.only:
                continue
            figures = None if args.sample or args.fresh else results.read(part, name)
            if figures is None or figures.get("wanted", 0) < size:
                figures = {"wanted": size, **measure()}
                if not args.sample:
                    results.write(part, name, figures)
            print(f"{part}: {name}: {_line(figures)}", flush=True)
            wrong += [f"{part}: {name}: {one}" for one in _wrong(figures)]
    if not args.sample:
        wanted = {part: list(by_name) for part, by_name in parts.items()}
        collected = results.collect(wanted, "python -m benchmarks.soak")
        (FOLDER / "soak.json").write_text(json.dumps(collected, indent=1) + "\n", encoding="utf-8")
    for line in wrong:
        print(line[:2000], file=sys.stderr)
    return 1 if wrong else 0


def _line(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in figures.items() if _short(value))


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value["count"]) if "count" in value else ""
    return str(value)


def _wrong(figures: Mapping[str, Any]) -> list[str]:
    """What a class must not show."""
    lists = [figures.get(name, {"first": []})["first"] for name in ("failures", "mismatches")]
    return [*lists[0], *lists[1], *figures.get("missed", [])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default="", metavar="NAMES", help="only these, with commas between")
    parser.add_argument("--only", default="", metavar="CLASS", help="only this class")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="that meet each fault on fakes")
    parser.add_argument("--runs", type=int, default=RUNS, help="of identical arms under each fault")
    parser.add_argument("--strikes", type=int, default=STRIKES, help="of each kind on a real engine")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of fairness")
    parser.add_argument("--sample", action="store_true", help="a few of each, in minutes")
    parser.add_argument("--fresh", action="store_true", help="measure again what has been measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
