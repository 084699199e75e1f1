"""Measured rows, appended to files by item: an interrupted run resumes, a long one goes in pieces."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gate.trials import Row

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
    with multiprocessing.Pool(jobs, _set_items, (items,)) if jobs > 1 else nullcontext() as pool:
        _set_items(items)
        rows = map(_measured, todo) if pool is None else pool.imap_unordered(_measured, todo)
        while todo and time.monotonic() < until_s and (measured := next(rows, None)):
            index, row = measured
            records.append(items[index].file, row)
            remaining[index] -= 1
            if remaining[index] == 0:
                print(f"{items[index].name}: {items[index].reps} runs", file=sys.stderr, flush=True)


def _missing(item: Item, records: Records) -> list[int]:
    done = {row["rep"] for row in records.read(item.file)}
    return [rep for rep in range(item.reps) if rep not in done]


_ITEMS: dict[int, Item] = {}  # of this process, which may be a worker


def _set_items(items: Sequence[Item]) -> None:
    _ITEMS.clear()
    _ITEMS.update(enumerate(items))


def _measured(job: tuple[int, int]) -> tuple[int, Row]:
    index, rep = job
    return index, _ITEMS[index].measure(rep)


def by_name(items: Sequence[Item]) -> Mapping[str, Item]:
    """The items by name. Raises ValueError where two have the same file."""
    files = Counter(item.file for item in items)
    twice = [file for file, count in files.items() if count > 1]
    if twice:
        raise ValueError(f"several items are recorded in {', '.join(twice)}; rename one")
    return {item.name: item for item in items}
