"""Speed before and after a change: one benchmark at a git revision and in this tree, alternating in one run.

    python -m benchmarks.compare REVISION [--benchmark benchmarks.tick] [--rounds 3] [ITS OPTIONS]

The benchmark must exist at both and print JSON. Each figure is the median of its rounds; `ratio` is this tree
over the revision. Machines are noisy: only the ratios mean something.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def figures(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON document, by its dotted path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from figures(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def run_once(tree: Path, benchmark: str, arguments: list[str]) -> dict[str, float]:
    """The figures of one run of the benchmark in `tree`. Raises CalledProcessError."""
    command = [sys.executable, "-m", benchmark, *arguments]
    done = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    return dict(figures(json.loads(done.stdout)))


def compare(before: Path, after: Path, benchmark: str, rounds: int, arguments: list[str]) -> list[str]:
    """One line a figure: before, after, ratio."""
    runs: dict[Path, list[dict[str, float]]] = {before: [], after: []}
    for _ in range(rounds):
        for tree, found in runs.items():
            found.append(run_once(tree, benchmark, arguments))
    lines = [f"{'figure':40} {'before':>12} {'after':>12} {'ratio':>7}"]
    for name in runs[after][0].keys() & runs[before][0].keys():
        old, new = (statistics.median(one[name] for one in runs[tree]) for tree in (before, after))
        lines.append(f"{name:40} {old:12.4g} {new:12.4g} {new / old if old else float('nan'):7.3f}")
    return [lines[0], *sorted(lines[1:])]


def main() -> None:
    """Check the revision out beside this tree, run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("revision")
    parser.add_argument("--benchmark", default="benchmarks.tick")
    parser.add_argument("--rounds", type=int, default=3)
    given, arguments = parser.parse_known_args()  # the rest goes to the benchmark
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", tree, given.revision], cwd=ROOT, check=True
        )
        try:
            print("\n".join(compare(tree, ROOT, given.benchmark, given.rounds, arguments)))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
