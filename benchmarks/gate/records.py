"""Measured rows, appended to files by item: an interrupted run resumes, a long one goes in pieces."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gate.trials import Row

TELL_EVERY_S = 60.0  # an estimate of what is left
ROUND = 10  # repetitions of an item before those of the next


@dataclass(frozen=True, slots=True)
class Item:
    """Something measured in repetitions. `file`: the name of its file, without its ending."""

    name: str
    file: str
    reps: int
    measure: Callable[[int], Row]


class Records:
    """Measured rows by item."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, file: str) -> list[Row]:
        """The rows so far, by repetition, without a truncated last line."""
        path = self._path(file)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows: list[Row] = [json.loads(line) for line in lines if line.endswith("}")]
        return sorted(rows, key=lambda row: row["rep"])  # type: ignore[arg-type, return-value]

    def append(self, file: str, row: Row) -> None:
        """Append a row."""
        with self._path(file).open("a", encoding="utf-8") as out:
            # A line break first: the last line may be truncated.
            out.write("\n" + json.dumps(row))

    def discard(self, file: str) -> None:
        """Delete the rows."""
        self._path(file).unlink(missing_ok=True)

    def _path(self, file: str) -> Path:
        return self._folder / f"{file}.jsonl"


def slug(name: str) -> str:
    """The name as that of a file. Two names that differ in a sign only (< and >) stay different."""
    words = {"+": "plus", "<": "below", ">": "above"}
    return "".join(c if c.isalnum() else words.get(c, "-") for c in name)


def measure(items: Sequence[Item], records: Records, until_s: float, *, jobs: int = 1) -> None:
    """Fill the records in rounds over the items, so that an interrupted run has rows of each."""
    todo = [(index, rep) for index, item in enumerate(items) for rep in _missing(item, records)]
    todo.sort(key=lambda job: job[1] // ROUND)
    remaining = Counter(index for index, _ in todo)
    estimate = Estimate(remaining)
    told_s = time.monotonic()
    with multiprocessing.Pool(jobs, _set_items, (items,)) if jobs > 1 else nullcontext() as pool:
        _set_items(items)
        rows = map(_measured, todo) if pool is None else pool.imap_unordered(_measured, todo)
        while todo and time.monotonic() < until_s and (measured := next(rows, None)):
            index, row, cpu_s = measured
            records.append(items[index].file, row)
            remaining[index] -= 1
            estimate.add(index, cpu_s)
            if time.monotonic() >= told_s + TELL_EVERY_S:
                told_s = time.monotonic()
                print(estimate.text(jobs), file=sys.stderr, flush=True)
            if remaining[index] == 0:
                print(f"{items[index].name}: {items[index].reps} runs", file=sys.stderr, flush=True)


def recheck(items: Sequence[Item], recorded: Mapping[str, Sequence[Row]], *, jobs: int = 1) -> list[str]:
    """Measure recorded rows (by item's name) again; returns the names of the items with one that differs.

    Shows what the digests cannot: a change of the gate that acts only later than the requests they cover.
    """
    expected = {
        (index, _repetition(row)): row
        for index, item in enumerate(items)
        for row in recorded.get(item.name, ())
    }
    different: set[int] = set()
    with multiprocessing.Pool(jobs, _set_items, (items,)) if jobs > 1 else nullcontext() as pool:
        _set_items(items)
        todo = list(expected)
        for index, row, _ in map(_measured, todo) if pool is None else pool.imap_unordered(_measured, todo):
            if json.loads(json.dumps(row)) != expected[index, _repetition(row)]:
                different.add(index)
    return [items[index].name for index in sorted(different)]


class Estimate:
    """What is left to measure, by the mean CPU seconds of each item's runs so far. `remaining`: runs by item,
    counted down by the caller; an item without a run yet is taken for the mean of the others."""

    def __init__(self, remaining: Counter[int]) -> None:
        self._remaining = remaining
        self._spent: dict[int, float] = defaultdict(float)
        self._runs: Counter[int] = Counter()

    def add(self, index: int, cpu_s: float) -> None:
        """Add a run of an item."""
        self._spent[index] += cpu_s
        self._runs[index] += 1

    def left_s(self) -> float:
        """CPU seconds left."""
        usual = sum(self._spent.values()) / max(sum(self._runs.values()), 1)
        means = {index: self._spent[index] / runs for index, runs in self._runs.items()}
        return sum(runs * means.get(index, usual) for index, runs in self._remaining.items())

    def text(self, jobs: int) -> str:
        """The estimate in words, for so many processes with a core each."""
        minutes = self.left_s() / 60
        runs = sum(self._remaining.values())
        return f"{runs} runs left: {minutes:.0f} core-minutes, {minutes / jobs:.0f} minutes on {jobs} cores"


def _missing(item: Item, records: Records) -> list[int]:
    done = {row["rep"] for row in records.read(item.file)}
    return [rep for rep in range(item.reps) if rep not in done]


def _repetition(row: Row) -> int:
    """Which repetition a row is of."""
    assert isinstance(row["rep"], int)
    return row["rep"]


_ITEMS: dict[int, Item] = {}  # of this process, which may be a worker


def _set_items(items: Sequence[Item]) -> None:
    _ITEMS.clear()
    _ITEMS.update(enumerate(items))


def _measured(job: tuple[int, int]) -> tuple[int, Row, float]:
    """The item, the row, and the CPU seconds that it took."""
    index, rep = job
    started_s = time.process_time()
    return index, _ITEMS[index].measure(rep), time.process_time() - started_s


def by_name(items: Sequence[Item]) -> Mapping[str, Item]:
    """The items by name. Raises ValueError where two have the same file."""
    files = Counter(item.file for item in items)
    twice = [file for file, count in files.items() if count > 1]
    if twice:
        raise ValueError(f"several items are recorded in {', '.join(twice)}; rename one")
    return {item.name: item for item in items}
