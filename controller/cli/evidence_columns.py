"""Columns of an evidence file as arrays: arms, times, numbers, names. A bad cell is refused with its line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from controller.cli import evidence_cells as cells
from controller.cli.evidence_formats import RawTable
from controller.cli.evidence_logs import KnownLog
from controller.cli.evidence_scores import only_score
from controller.cli.evidence_sources import PRESENT, Source, Term
from controller.errors import BadInput
from controller.spec.prices import PricesSpec
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.offline.arrays import name_text
from evaluation.offline.names import is_opposite, near_name
from evaluation.records import is_rate

MAX_SHOWN = 12  # columns or values named in one message
MOST_NEGATIVE = 0.5  # share of durations; more, and the columns are in the wrong order
MAX_ARM_VALUES = 20  # more distinct values than this are no arms
RARER = 1 / 3  # share of the rows below which one of two values is taken for the canary's

COMPACT = "YYYYMMDDhhmmss"  # as a unit: digits of a date and time

Column = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the command line says of a file's columns."""

    maps: tuple[str, ...] = ()  # NAME=SOURCE
    ignore: frozenset[str] = frozenset()  # columns that look like a known one and are not
    w: float | None = None  # of every row; None: the file has it
    canary: str | None = None  # value of the arm's column
    stable: str | None = None
    only_stable: bool = False  # without a column, every row is stable's
    rollout: str | None = None  # of a router's records; None: the newest
    covariates: tuple[str, ...] = ()  # further required columns of numbers, named by a policy
    scores: Path | None = None  # a file of scores, joined by id
    canary_since_s: float | None = None  # earlier rows had no canary: their w is 0
    prices: PricesSpec | None = None  # of a router's tokens; None: no cost is computed


@dataclass(slots=True)
class Reading:
    """A file being read: its cells, the source of each known column, and what is to be said of them."""

    table: RawTable
    options: ReadOptions
    log: KnownLog | None
    sources: dict[str, Source]
    notes: list[str] = field(default_factory=list)

    def refuse(self, row: int, message: str) -> BadInput:
        return BadInput(f"{self.table.name} {self.table.place(row)}: {message}")


def arms(reading: Reading) -> Column:
    """The arms. Rows with neither of two named values are left out, for both arms alike."""
    source, options = reading.sources["arm"], reading.options
    values = reading.table.columns[source.columns[0]]
    words = ["" if cells.is_missing(value) else str(value).strip() for value in values]
    if "" in words:
        raise _without_arm(reading, source, words)
    if options.canary is None and options.stable is None:
        return _arms_by_word(reading, source, values, words)
    kinds = set(words)
    canary, stable = _named_arms(reading, source, kinds)
    rows = [row for row, word in enumerate(words) if word in canary or word in stable]
    if len(rows) < len(words):
        others = sorted(kinds - canary - stable)
        _refuse_groups(reading, source, words, others)
        reading.notes.append(
            f"{len(words) - len(rows)} rows whose {source.text} is neither are left out ({listed(others)})"
        )
        reading.table = reading.table.pick(rows)
    found = np.array([int(words[row] in canary) for row in rows], dtype=np.int64)
    reading.notes.append(
        f"by {source.text}, canary: {listed(sorted(canary))} ({found.sum()} rows), stable: "
        f"{listed(sorted(stable))} ({len(found) - found.sum()} rows)"
    )
    return found


def canary_option(words: Sequence[str]) -> str:
    """The option that names the canary, of the values of an arm's column; VALUE, with those that may be it,
    where none is called so or clearly rarer.

    A wrong one turns PROMOTE and ROLLBACK round: of an uneven split w would notice, of an even one nothing.
    """
    counts = Counter(words)
    kinds = sorted(counts, key=lambda kind: counts[kind])
    likely = [kind for kind in kinds if "canary" in kind.lower()]
    if not likely and len(kinds) == 2 and counts[kinds[0]] < RARER * len(words):
        likely = kinds[:1]
    if len(kinds) == 2 and len(likely) == 1:
        return f"--canary {quote(likely[0][:60])}"
    shown = [quote(kind[:60]) for kind in sorted(kinds)]
    if len(kinds) == 2:
        return f"--canary VALUE (the new version: {' or '.join(shown)})"
    return f"--canary VALUE --stable VALUE (of {listed(shown)})"


def _named_arms(reading: Reading, source: Source, kinds: Set[str]) -> tuple[Set[str], Set[str]]:
    """The values of the canary and of stable, by `--canary A,B` and `--stable C`. Raises BadInput."""
    table, options = reading.table, reading.options
    canary, stable = _values(options.canary, kinds), _values(options.stable, kinds)
    for name in (*sorted(canary), *sorted(stable)):
        if name not in kinds and canary and stable:
            raise BadInput(f"{table.name}: no row has {source.text} {name!r}; it has {listed(sorted(kinds))}")
    if both := sorted(canary & stable):
        raise BadInput(f"{table.name}: {source.text} {both[0]!r} is given for both arms; give each one")
    if canary and stable:
        return canary, stable
    named, others = canary | stable, kinds - canary - stable
    if len(others) != 1 or not named <= kinds:
        option = "--canary" if stable else "--stable"
        have = listed(sorted(kinds)) if len(kinds) <= MAX_ARM_VALUES else f"{len(kinds)} values"
        absent = sorted(named - kinds)
        remedy = f"{absent[0]!r} is none of them" if absent else f"give {option} as well"
        raise BadInput(f"{table.name}: {source.text} has {have}; {remedy}")
    return (canary, others) if canary else (others, stable)


def _values(option: str | None, kinds: Set[str]) -> Set[str]:
    """The values that an option names: one, or several separated by commas."""
    if option is None:
        return frozenset()
    if option in kinds:
        return frozenset({option})
    return frozenset(part.strip() for part in option.split(",") if part.strip())


def _refuse_groups(reading: Reading, source: Source, words: Sequence[str], others: Sequence[str]) -> None:
    """Raise BadInput where rows that would be left out are failures of an arm.

    Without a live server nginx names the group instead of an address, in exactly those rows.
    """
    if reading.log is None or not source.columns[0].lower().startswith("upstream"):
        return
    for name in others:
        if cells.ADDRESS.fullmatch(name) is None:
            raise reading.refuse(
                list(words).index(name),
                f"{source.text} {name} is no address: no server of that group was live, so its "
                f"{list(words).count(name)} rows are failures of an arm; name it too: "
                f"--canary {reading.options.canary or 'ADDRESS'},{name} if it is the canary's group",
            )


def _without_arm(reading: Reading, source: Source, words: Sequence[str]) -> BadInput:
    """Rows without an arm are no random part: some logs leave it empty exactly where a request failed."""
    count, row = words.count(""), list(words).index("")
    return reading.refuse(
        row,
        f"{source.text} is missing (in {count} of {len(words)} rows); every row needs its assigned arm, "
        "a failed request too: fill it in, or give --map arm=COLUMN with one that always has it",
    )


def _arms_by_word(reading: Reading, source: Source, values: Sequence[object], words: Sequence[str]) -> Column:
    arms = np.empty(len(words), dtype=np.int64)
    for row, word in enumerate(words):
        found = cells.ARMS.get(word.lower())
        if found is None:
            found = cells.number(values[row])
        if found not in (0.0, 1.0):
            shown = f"{found:g}" if isinstance(found, float) else repr(word[:60])
            if all(cells.says_outcome(word) for word in set(words)):
                kinds = listed(sorted(set(words)))
                raise BadInput(
                    f"{reading.table.name}: {source.text} says how a request ended ({kinds}), not which "
                    "version was drawn; give --map arm=COLUMN with one that does"
                )
            raise reading.refuse(
                row,
                f"{source.text} {shown} is neither 0 (stable) nor 1 (canary); say which value is the canary: "
                f"{canary_option(words)}",
            )
        arms[row] = int(found)
    return arms


def times(reading: Reading, source: Source) -> Column:
    """Seconds since the epoch. Raises BadInput where seconds and milliseconds are mixed."""
    first = _epoch_s(reading, source.terms[0])
    if len(source.terms) == 1:
        return first
    return first - _lengths_s(reading, source.terms[1], default="s")


def _epoch_s(reading: Reading, term: Term) -> NDArray[np.float64]:
    values = reading.table.columns[term.column]
    out = np.empty(len(values))
    units: dict[str, int] = {}  # of the cells that are numbers: the first row with each
    zones: dict[bool, int] = {}  # of those that are texts: the first row with and without a time zone
    for row, value in enumerate(values):
        found = cells.number(value, has_decimal_commas=reading.table.has_decimal_commas)
        if found is None or isinstance(value, bool):
            found = cells.time_s(value)
            if (has_zone := cells.has_zone(value)) is not None:
                zones.setdefault(has_zone, row)
        elif term.unit is None and (compact := cells.compact_time_s(found)) is not None:
            found = compact
            units.setdefault(COMPACT, row)
        elif math.isfinite(found) and found != 0.0:
            units.setdefault(term.unit or cells.epoch_unit(found), row)
        if found is None or not math.isfinite(found):
            shown = "is missing" if cells.is_missing(value) else f"{value!r:.60} is not a time"
            raise reading.refuse(
                row, f"{term.column} {shown}; write seconds since the epoch, or 2026-05-01T14:00:05Z"
            )
        out[row] = found
    if len(units) > 1:
        (a, row_a), (b, row_b) = list(units.items())[:2]
        raise reading.refuse(
            row_b,
            f"{term.column} is in {b}, but in {a} in {reading.table.place(row_a)}; write one unit throughout",
        )
    if len(zones) > 1:
        raise reading.refuse(
            zones[False],
            f"{term.column} has no time zone, but one in {reading.table.place(zones[True])}; "
            "write it throughout",
        )
    [unit] = units or ["s"]
    if unit == COMPACT:
        reading.notes.append(f"{term.column} is a date and time, in UTC")
        return out
    if unit == "s" and len(out) and cells.SHEET_DAYS[0] <= out.min() and out.max() < cells.SHEET_DAYS[1]:
        reading.notes.append(
            f"{term.column} is read as seconds; if it is a spreadsheet's date, in days, "
            "write it as 2026-05-01 14:00:05"
        )
    if unit != "s":
        reading.notes.append(f"{term.column} is in {unit}, by its size")
    return out * cells.UNITS[unit]


def _refuse_thousands(reading: Reading, column: str) -> None:
    """Raise BadInput where a point may separate thousands: 1.257 beside 898, or beside 0,5."""
    table = reading.table
    if not table.has_decimal_commas:
        return
    row = cells.ambiguous_thousands(table.columns[column], table.columns.values())
    if row is not None:
        value = str(table.columns[column][row]).strip()
        raise reading.refuse(
            row,
            f"{column} {value} may be {value.replace('.', '')} or {value.replace('.', ',', 1)}; write it "
            "without a separator of thousands, or with a decimal comma",
        )


def _lengths_s(reading: Reading, term: Term, *, default: str) -> NDArray[np.float64]:
    values = reading.table.columns[term.column]
    _refuse_thousands(reading, term.column)
    out = np.empty(len(values))
    commas = reading.table.has_decimal_commas
    for row, value in enumerate(values):
        found = cells.length_s(value, term.unit or default, has_decimal_commas=commas)
        if found is None:
            raise reading.refuse(
                row, f"{term.column} {value!r:.60} is not a length of time; write 812.5, or leave it empty"
            )
        out[row] = found
    return out


def holds_status(reading: Reading, source: Source) -> bool:
    """Whether a source is one column, as it is, of HTTP status codes."""
    if source.others or len(source.terms) != 1 or source.terms[0].unit is not None or source.is_opposite:
        return False
    [name] = source.columns
    return cells.holds_status_codes(name, reading.table.columns[name])


def numbers(reading: Reading, name: str, source: Source) -> NDArray[np.float64]:
    """A column of numbers, NaN where missing; of an event with several sources, 1 where one says so."""
    if source.others:
        alone = (replace(source, others=()), *source.others)
        happened: NDArray[np.float64] = np.fmax.reduce([numbers(reading, name, one) for one in alone])
        return happened
    if name.endswith("_ms"):
        if len(source.terms) == 1:
            return _lengths_s(reading, source.terms[0], default="ms") * 1000.0
        return _durations_ms(reading, source)
    if len(source.terms) == 2:
        raise BadInput(f"--map {name}={source.text}: only times have a difference; map one column")
    [term] = source.terms
    values = reading.table.columns[term.column]
    is_event = name in CATALOGUE and is_rate(name)
    if source.is_opposite and not is_event:
        raise BadInput(f"--map {name}={source.text}: only an event has an opposite; leave out the !")
    if term.unit == PRESENT:
        return np.array([float(cells.is_present(value) != source.is_opposite) for value in values])
    commas = reading.table.has_decimal_commas
    says_opposite = not source.is_opposite and is_opposite(term.column) and near_name(term.column) == name
    is_status = is_event and holds_status(reading, source)
    is_span = is_event and not source.is_opposite and cells.holds_span_codes(term.column, values)
    if is_span:
        reading.notes.append(f"{name} from {source.text}: OpenTelemetry's, 1 is ok and 2 an error")
    if not is_event:
        _refuse_thousands(reading, term.column)
    out = np.empty(len(values))
    unknown: dict[str, int] = {}  # words that say nothing of an event, in a column that was found by itself
    for row, value in enumerate(values):
        value = only_score(value) if name in CATALOGUE else value
        if source.is_opposite:
            found = cells.opposite(name, value)
        elif is_span:
            found = cells.span_event(name, value)
        elif is_event:
            found = cells.event(name, value, is_status=is_status)
        else:
            found = cells.number(value, has_decimal_commas=commas)
        if found in (0.0, 1.0) and says_opposite and cells.number(value) == found:
            remedy = f"give --map {name}=!{term.column}"
            raise reading.refuse(row, f"{term.column} {value!r:.60} says the opposite of {name}; {remedy}")
        if found is None and is_event and source.is_found and isinstance(value, str):
            found, unknown[value] = math.nan, unknown.get(value, 0) + 1
        if found is None:
            raise reading.refuse(
                row, f"{source.text} {value!r:.60} is not {_remedy(name)}, or leave it empty"
            )
        out[row] = found
    if unknown:
        reading.notes.append(
            f"{name} is missing in {sum(unknown.values())} rows whose {source.text} says nothing of it "
            f"({listed([word[:30] for word in unknown])})"
        )
    return out


def _remedy(name: str) -> str:
    if name == "w":
        return "a share; write 0.05 or 5%"
    if name in CATALOGUE and is_rate(name):
        return "an event; write 1 or 0 (yes, no), a status code"
    if name in CATALOGUE and name not in VALUES:
        return "a score; write 0.5 or 50%"
    return "a number; write 0.5"


def _durations_ms(reading: Reading, source: Source) -> NDArray[np.float64]:
    """A difference of two times; NaN where it is negative, as clocks that differ write it. Most of them
    negative are another mistake, and stay."""
    out = _difference_s(reading, source) * 1000.0
    is_negative = out < 0.0
    count = int(is_negative.sum())
    if 0 < count <= MOST_NEGATIVE * int(np.count_nonzero(~np.isnan(out))):
        out[is_negative] = np.nan
        reading.notes.append(f"{count} rows end before they start by {source.text}: missing values")
    return out


def _difference_s(reading: Reading, source: Source) -> NDArray[np.float64]:
    """Seconds between two times; NaN where either is missing."""
    first, second = ([cells.is_missing(v) for v in reading.table.columns[c]] for c in source.columns)
    rows = [row for row, gone in enumerate(zip(first, second, strict=True)) if not any(gone)]
    out = np.full(len(reading.table), np.nan)
    if rows:
        part = Reading(reading.table.pick(rows), reading.options, None, {})
        out[rows] = _epoch_s(part, source.terms[0]) - _epoch_s(part, source.terms[1])
    return out


def texts(reading: Reading, name: str, source: Source, *, is_word: bool) -> Column:
    out = []
    for row, value in enumerate(reading.table.columns[source.columns[0]]):
        if cells.is_missing(value):
            more = f", or --ignore {source.text}" if name == "request_id" else ""
            raise reading.refuse(row, f"it has no {source.text}; fill it in{more}")
        if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
            raise reading.refuse(row, f"{source.text} {value!r:.60} is not a name; write text or a number")
        try:
            text = name_text(value)
        except ValueError as exc:
            raise reading.refuse(row, f"{source.text} {exc}") from exc
        out.append(text.strip().lower() if is_word else text)
    return np.array(out)


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more or "none"
