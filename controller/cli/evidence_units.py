"""The randomised unit of a recognised log: which of its columns of users, sessions or traces keeps its arm.

Some rows of such a column are blank (a health check) or share a value (`default_user_id`), and each of those
counts by itself. Where there are many, what was drawn cannot be told, and `--map unit=COLUMN` has to say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controller.cli.evidence_cells import is_missing
from controller.cli.evidence_columns import Column, Reading, listed
from controller.cli.evidence_sources import Source, Term
from controller.errors import BadInput
from evaluation.offline.arrays import name_text

MIN_REPEATS = 20  # of values on one arm; fewer may be so by chance
MAX_BLANK = 0.05  # share of the rows that are blank or shared; more of them could hide what was drawn
MAX_SHARED = 0.01  # share of the repeated values that are on both arms (one is always tolerated)
CHANCE = 0.5  # of the values on both arms that draws by request would give: from there on, it was by request


@dataclass(frozen=True, slots=True)
class Candidate:
    """A column that may hold the unit. Arms are compared at the same w, as a raised w moves units."""

    column: str
    blank: int  # rows without a value
    shared: tuple[str, ...]  # values on both arms, the most frequent first
    shared_rows: int
    repeats: int  # rows that repeat a value which keeps its arm
    repeated: int  # values with several rows
    by_chance: float  # of them, how many would be on both arms if each request had been drawn by itself
    has_both_arms: bool
    rows: int

    @property
    def is_by_request(self) -> bool:
        """Whether it does not keep its arm at all, or repeats too rarely to tell."""
        is_rare = self.repeats < MIN_REPEATS or not self.has_both_arms
        return is_rare or (bool(self.shared) and len(self.shared) >= CHANCE * self.by_chance)

    @property
    def has_few_shared(self) -> bool:
        return len(self.shared) <= max(1.0, MAX_SHARED * self.repeated)

    @property
    def is_unit(self) -> bool:
        """Whether it keeps its arm, but for a few rows."""
        return self.has_few_shared and self.blank + self.shared_rows <= MAX_BLANK * self.rows

    def doubt(self) -> str:
        """Why it is unclear whether this is the unit."""
        parts = []
        if self.blank:
            parts.append(f"{self.blank} of {self.rows} rows have no {self.column}")
        if self.shared:
            parts.append(
                f"{len(self.shared)} of its {self.repeated} repeated values are on both arms "
                f"({listed(self.shared[:3])}), where draws by request would give {self.by_chance:.0f}"
            )
        return "; ".join(parts)


def find_unit(reading: Reading, arms: Sequence[float], w: Sequence[float]) -> None:
    """Take a recognised log's unit from the coarsest column whose values keep their arm.

    Raises BadInput where a column keeps its arm too often for chance, but not always.
    """
    if reading.log is None or "assigned_by" in reading.sources:
        return
    if "unit" in reading.sources:
        _with_blank(reading, reading.sources["unit"].columns[0])
        return
    doubts = []
    for name in reading.log.units:
        if name not in reading.table.columns:
            continue
        found = _candidate(name, reading.table.columns[name], arms, w)
        if found.is_by_request:
            continue
        if found.is_unit:
            _take(reading, found)
            return
        doubts.append(found)
        if found.has_few_shared:  # blank cells hide the unit; a finer column would not be what was drawn
            break
    if doubts and not reading.options.only_stable:  # a range of stable needs no unit
        raise _unclear(reading, doubts[0])
    reading.notes.append("each request is its own unit: no column of users keeps its arm")


def _candidate(name: str, values: Sequence[object], arms: Sequence[float], w: Sequence[float]) -> Candidate:
    blank = [is_missing(value) for value in values]
    keys = [(_key(value), weight) for value, weight in zip(values, w, strict=True)]
    named = [(key, arm) for key, arm, gone in zip(keys, arms, blank, strict=True) if not gone]
    sizes, on_canary = Counter(key for key, _ in named), Counter(key for key, arm in named if arm == 1)
    both = [key for key in sizes if 0 < on_canary[key] < sizes[key]]
    shared = list(dict.fromkeys(value for value, _ in sorted(both, key=lambda key: -sizes[key])))
    is_shared = set(shared)
    kept = {key: size for key, size in sizes.items() if key[0] not in is_shared}
    at_w, canary_at_w = Counter(weight for _, weight in keys), Counter[float]()
    for (_, weight), arm in zip(keys, arms, strict=True):
        canary_at_w[weight] += int(arm)
    share = {weight: canary_at_w[weight] / n for weight, n in at_w.items()}
    return Candidate(
        name,
        sum(blank),
        tuple(shared),
        sum(size for key, size in sizes.items() if key[0] in is_shared),
        sum(size - 1 for size in kept.values()),
        sum(size > 1 for size in sizes.values()),
        sum(1.0 - share[k[1]] ** size - (1.0 - share[k[1]]) ** size for k, size in sizes.items()),
        len({on_canary[key] > 0 for key in kept}) > 1,
        len(values),
    )


def _key(value: object) -> str:
    """A cell as the name that it will be; one that can be none as its text, to be refused with its line."""
    try:
        return name_text(value)
    except ValueError:
        return str(value)


def _take(reading: Reading, found: Candidate) -> None:
    """Make the column the unit; its blank and shared rows each count by themselves."""
    values, name = reading.table.columns[found.column], found.column
    is_shared = set(found.shared)
    own = [is_missing(value) or _key(value) in is_shared for value in values]
    _give(reading, name, own)
    if not any(own):
        reading.notes.append(f"unit from {name}: each of its values is always on one arm")
        return
    parts = [f"{found.blank} have none"] if found.blank else []
    if found.shared:
        parts.append(f"{found.shared_rows} share {listed(found.shared)}, which is on both arms")
    reading.notes.append(
        f"unit from {name}, but {sum(own)} of {found.rows} rows count each by itself: {' and '.join(parts)}"
    )


def _with_blank(reading: Reading, name: str) -> None:
    """The unit that the command line names: rows without it each count by themselves."""
    values = reading.table.columns[name]
    own = [is_missing(value) for value in values]
    if any(own) and not all(own) and reading.sources["unit"].text != "unit":
        _give(reading, name, own)
        reading.notes.append(f"{sum(own)} of {len(own)} rows have no {name} and count each by itself")


def _give(reading: Reading, name: str, own: Sequence[bool]) -> None:
    """Set the unit, with a name of its own for each row that counts by itself."""
    table = reading.table
    if not any(own):
        reading.sources["unit"] = Source(name, (Term(name, None),))
        return
    units, drawn = f"{name} or its own row", "drawn by"
    columns = dict(table.columns)
    columns[units] = [
        f"({table.place(row)})" if is_own else value
        for row, (value, is_own) in enumerate(zip(columns[name], own, strict=True))
    ]
    columns[drawn] = ["request" if is_own else "sticky" for is_own in own]
    reading.table = replace(table, columns=columns)
    reading.sources["unit"] = Source(name, (Term(units, None),))
    reading.sources["assigned_by"] = Source(drawn, (Term(drawn, None),))


def _unclear(reading: Reading, found: Candidate) -> BadInput:
    request = reading.sources.get("request_id")
    by_request = f", or --map unit={request.text} if each request was" if request is not None else ""
    return BadInput(
        f"{reading.table.name}: it is unclear whether {found.column} was drawn: {found.doubt()}; "
        f"give --map unit={found.column} if it was{by_request}"
    )


def w_from(since_s: float, columns: Mapping[str, Column]) -> Column:
    """The w of each row, 0 of those before the canary came. Raises BadInput for a canary before that."""
    is_before = np.asarray(columns["t_s"], dtype=np.float64) < since_s
    early = int(np.count_nonzero(is_before & (np.asarray(columns["arm"]) == 1)))
    if early:
        raise BadInput(f"{early} rows of the canary are before --canary-since; give an earlier time")
    return np.where(is_before, 0.0, np.asarray(columns["w"], dtype=np.float64))
