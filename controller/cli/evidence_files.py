"""Evidence files: columns of recorded requests, as the evaluation reads them.

One row per request. `docs/backtest.md` and `canaryctl backtest --columns` list the columns; other names are
given by `--map`, and some logs are recognised (`evidence_sources.py`). A malformed row is refused with its
line: skipping rows would bias the evidence. Rows are sorted by the time of their assignment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from shlex import quote

import numpy as np
from numpy.typing import NDArray

from controller.cli.evidence_amounts import read_amounts, without_void
from controller.cli.evidence_cells import says_outcome
from controller.cli.evidence_columns import (
    Column,
    Reading,
    ReadOptions,
    arms,
    canary_option,
    listed,
    numbers,
    texts,
    times,
)
from controller.cli.evidence_formats import RawTable, read_table
from controller.cli.evidence_outcomes import (
    count_first_attempts,
    leave_out_no_requests,
    name_requests,
    read_failure_codes,
    read_status,
    refuse_answering_arms,
    without_cancelled,
)
from controller.cli.evidence_scores import PREFIX, ignored_note, score_sources, unpacked
from controller.cli.evidence_sources import (
    PRESENT,
    Source,
    Term,
    has_value,
    inner_columns,
    log_sources,
    parsed_maps,
    recognised,
)
from controller.cli.evidence_units import find_unit, w_from
from controller.cli.evidence_votes import with_scores
from controller.cli.router_records import NOTE, is_of_router, of_one_rollout, rows_of_records
from controller.cli.router_verdicts import with_verdicts
from controller.errors import BadInput
from controller.spec.prices import PricesSpec
from evaluation.metrics import CATALOGUE, UNANSWERED, WAITS
from evaluation.offline.names import EVENTS, KNOWN, is_opposite, near_misses, near_name
from evaluation.records import SETTLE_S

REQUIRED = ("t_s", "arm", "w")
TEXTS = frozenset({"request_id", "unit", "assigned_by"})
AS_IS = ReadOptions()
LONG_SHARE = 0.5  # of the latencies; the median is then beyond what the gates tell apart


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """Columns of an evidence file, in order of assignment."""

    columns: Mapping[str, Column]  # by name, of equal length
    ignored: tuple[str, ...]  # columns of the file that no gate uses
    lines: tuple[int, ...] = ()  # each row's number in the file
    word: str = "row"  # what the file counts: lines, rows or items
    notes: tuple[str, ...] = ()  # how the file was read, one line each
    empty: tuple[str, ...] = ()  # metrics whose column holds no value at all
    unit: str | None = None  # the file's column that is taken for the unit; None: none is
    prices: PricesSpec | None = None  # by which its costs were computed; None: they were not
    is_replay: bool = False  # records of `canaryctl replay`, which are one stage of 50 %

    @property
    def rows(self) -> int:
        return len(self.columns["t_s"])

    @property
    def unanswered(self) -> NDArray[np.bool_]:
        """Which rows have no answer, by `error` or `rejected`; their other values are none of an answer."""
        out = np.zeros(self.rows, dtype=np.bool_)
        for name in UNANSWERED & self.columns.keys():
            out |= np.asarray(self.columns[name]) == 1
        return out

    def waits_ended(self, metric: str) -> NDArray[np.bool_]:
        """Which rows have no value of a wait because the client left."""
        if metric not in WAITS or "cancelled" not in self.columns:
            return np.zeros(self.rows, dtype=np.bool_)
        unknown = np.isnan(np.asarray(self.columns[metric], dtype=np.float64))
        ended: NDArray[np.bool_] = (np.asarray(self.columns["cancelled"]) == 1) & unknown
        return ended

    def place(self, row: int) -> str:
        """Where a row stands in the file: `line 18`."""
        return f"{self.word} {self.lines[row]}" if self.lines else f"row {row + 1}"


def read_evidence(path: Path, *, extra: Sequence[str] = (), options: ReadOptions = AS_IS) -> EvidenceFile:
    """Columns of a .jsonl, .json, .csv (each also .gz) or .parquet file. Raises BadInput, with the line.

    extra: further required columns of text, such as a category.
    """
    reading = _sources_of(read_table(path), options, extra)
    leave_out_no_requests(reading)
    read_failure_codes(reading)
    read_amounts(reading)
    read_status(reading)
    count_first_attempts(reading)
    refuse_answering_arms(reading)
    if len(reading.table) == 0:
        raise BadInput(f"{path.name} has no rows; give a file with requests")
    refused: list[str] = _lacking(reading, extra)
    ignored, unclear = _unused(reading, extra)
    refused += unclear
    columns = _columns(reading, extra, refused)
    if refused:
        raise BadInput(tuple(dict.fromkeys(refused)))
    return _sorted(reading, columns, ignored)


def _columns(reading: Reading, extra: Sequence[str], refused: list[str]) -> dict[str, Column]:
    """The columns that can be read; a line in `refused` for each that cannot."""
    columns: dict[str, Column] = {}
    options = reading.options
    if "arm" in reading.sources:
        with _collected(refused):
            columns["arm"] = arms(reading)
    elif options.only_stable:
        columns["arm"] = np.zeros(len(reading.table), dtype=np.int64)
        reading.notes.append(
            "every row counts as stable's: no column is the arm; where a canary answered some, say which: "
            "--map arm=COLUMN"
        )
    if "w" in reading.sources:
        with _collected(refused):
            columns["w"] = numbers(reading, "w", reading.sources["w"])
    else:
        columns["w"] = np.full(len(reading.table), options.w or 0.0)
    with _collected(refused):
        name_requests(reading)
    if options.canary_since_s is not None and {"arm", "w"} <= columns.keys():
        with _collected(refused):
            columns["t_s"] = times(reading, reading.sources["t_s"])
            columns["w"] = w_from(options.canary_since_s, columns)
    if {"arm", "w"} <= columns.keys():
        with _collected(refused):
            find_unit(reading, columns["arm"].tolist(), np.asarray(columns["w"]).tolist())
    for name, source in reading.sources.items():
        if name in columns:
            continue
        with _collected(refused):
            if name == "t_s":
                columns[name] = times(reading, source)
            elif name in TEXTS or name in extra:
                columns[name] = texts(reading, name, source, is_word=name == "assigned_by")
            elif name not in ("arm", "w"):
                columns[name] = numbers(reading, name, source)
    return columns


@contextmanager
def _collected(refused: list[str]) -> Iterator[None]:
    """Take what is refused within into the list: a user mends all of a file in one go."""
    try:
        yield
    except BadInput as exc:
        refused += exc.details


def _sources_of(table: RawTable, options: ReadOptions, extra: Sequence[str]) -> Reading:
    """The source of each known column: `--map`, else its own name in any case, else a recognised log's."""
    is_router, others, joined = is_of_router(table), None, None
    table, said = with_verdicts(table) if is_router else (table, ())
    if options.scores is not None:
        table, joined = with_scores(table, options.scores)
    if options.rollout is not None and not is_router:
        raise BadInput(
            f"--rollout is for records of canaryctl router, and {table.name} has none; leave it out"
        )
    if options.prices is not None and not is_router:
        raise BadInput(
            f"--prices is for records of canaryctl router, and {table.name} has none; --map cost=COLUMN"
        )
    if is_router:
        table, others = (table, None) if options.only_stable else of_one_rollout(table, options.rollout)
        mapped = (text.partition("=")[2] for text in options.maps)
        named = (word for text in mapped for word in re.split(r"[^\w.]+", text))
        table = rows_of_records(table, {*extra, *options.covariates, *named}, options.prices)
    table, repeats = unpacked(_renamed(table, extra))
    log = recognised(table)
    own = {name: Source(name, (Term(name, None),)) for name in (*KNOWN, *extra) if name in table.columns}
    own |= {name: Source(name, (Term(name, None),)) for name in options.covariates if name in table.columns}
    given = parsed_maps(table, options.maps, (*KNOWN, *options.covariates))
    found = score_sources(table) | (log_sources(table, log) if log is not None else {})
    # A column of its own name without any value, as `error: null` where all is well, says nothing.
    own = {name: source for name, source in own.items() if name not in found or has_value(table, source)}
    own, found = (
        {name: s for name, s in sources.items() if not options.ignore & {name, *s.all_columns}}
        for sources in (own, found)
    )
    if (failing := _failing_objects(table, own)) is not None and "error" not in given.keys() | options.ignore:
        own["error"] = failing
    sources, notes = {**found, **own, **given}, [*table.notes, *([NOTE] if is_router else [])]
    notes += [*said, *(line for line in (joined, others) if line is not None)]
    if repeats:
        notes.append(f"{repeats} scores repeat one of the same request and name: the first counts, as live")
    if log is not None and log.only is not None and log.only[0] in table.columns:
        name, value = log.only
        rows = [row for row, cell in enumerate(table.columns[name]) if cell == value]
        if rows and len(rows) < len(table):
            notes.append(f"{len(table) - len(rows)} rows whose {name} is not {value} are left out")
            table = table.pick(rows)
    reading = Reading(table, options, log, sources)
    reading.notes.extend(notes)
    return _noted(reading)


def _failing_objects(table: RawTable, own: Mapping[str, Source]) -> Source | None:
    """The source of a column `error` that is null where all is well, and an object where it is not; None: the
    file has no such column. A table has the parts of the object as columns of their own."""
    if "error" not in own or has_value(table, own["error"]):
        return None
    parts = [
        Source(f"{name}:{PRESENT}", (Term(name, PRESENT),))
        for name in table.columns
        if name.startswith("error.")
    ]
    return replace(parts[0], others=tuple(parts[1:])) if parts else None


def _noted(reading: Reading) -> Reading:
    if reading.log is not None:
        used = ", ".join(
            f"{name} from {source.said}" for name, source in reading.sources.items() if source.said != name
        )
        reading.notes.insert(0, f"read as {_article(reading.log.title)}: {used}")
    return reading


def _article(title: str) -> str:
    return f"{'an' if title[0] in 'AEIOUaeiou' or title.startswith('n') else 'a'} {title}"


def _renamed(table: RawTable, extra: Sequence[str]) -> RawTable:
    """The table with known names in lower case: `Latency_MS` and `T_S` are the columns they look like."""
    columns = {}
    for name, values in table.columns.items():
        plain = name.strip().lower().replace("-", "_").replace(" ", "_")
        is_known = plain in KNOWN and plain not in table.columns and name not in extra
        columns[plain if is_known and plain not in columns else name] = values
    return replace(table, columns=columns)


def _lacking(reading: Reading, extra: Sequence[str]) -> list[str]:
    """A line on the required columns without a source, with how to give each; empty: there are none."""
    table, options = reading.table, reading.options
    if options.w is not None and "w" in reading.sources:
        return [f"{table.name} has a column w and --w is given; leave one out"]
    needed = _needed(reading, extra)
    if not needed:
        return []
    names = list(table.columns)
    near = {known: name for name, known in near_misses(names).items()}
    remedies = []
    for name in needed:
        if name in options.covariates and (close := get_close_matches(name, names, n=1, cutoff=0.6)):
            remedies.append(f"--map {name}={close[0]}")
        elif name in near:
            remedies.append(f"--map {name}={near[name]}")
        elif name == "w":
            remedies.append("--w 5% if it was the same for every row")
        elif name == "arm" and (two := _two_valued(reading)):
            remedies.append(" or ".join(f"--map arm={quote(column)} {option}" for column, option in two))
        else:
            remedies.append(f"--map {name}=COLUMN")
    return [
        f"{table.name} lacks {', '.join(needed)}; give {', '.join(remedies)} (it has {listed(names)}; "
        "what each column holds: canaryctl backtest --columns)"
    ]


def _needed(reading: Reading, extra: Sequence[str]) -> list[str]:
    """The required columns without a source."""
    options = reading.options
    given = {*reading.sources, *(["arm", "w"] if options.only_stable else ["w"] * (options.w is not None))}
    return [name for name in (*REQUIRED, *extra, *options.covariates) if name not in given]


def _two_valued(reading: Reading) -> list[tuple[str, str]]:
    """Columns of text with exactly two values, and the option that names the canary.

    Never how a request ended: by that, all failures would be of one arm.
    """
    used = {column for source in reading.sources.values() for column in source.all_columns}
    found = []
    for column, cells in reading.table.columns.items():
        if column in used or near_name(column) in CATALOGUE:
            continue
        for name, values in inner_columns(column, cells).items():
            words = [value for value in values if isinstance(value, str) and value]
            if len(kinds := set(words)) == 2 and not any(says_outcome(kind) for kind in kinds):
                found.append((name, canary_option(words)))
    return found[:3]


def _unused(reading: Reading, extra: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The columns that nothing is read from, and a line for each of them that looks like a known column."""
    used = {column for source in reading.sources.values() for column in source.all_columns} | set(extra)
    unused = [name for name in reading.table.columns if name not in used]
    if (note := ignored_note(unused)) is not None:
        reading.notes.append(note)
        unused = [name for name in unused if not name.startswith(PREFIX)]
    missing = [name for name in KNOWN if name not in reading.sources]
    lacking = _needed(reading, extra)
    unclear = []
    for name, near in near_misses(unused, reading.options.ignore).items():
        if near in lacking:
            continue  # the line on what the file lacks names it
        if near not in missing or (reading.log is not None and near not in CATALOGUE):
            continue
        unit = f" ({name}:s if it is in seconds)" if near.endswith("_ms") else ""
        if near == "unit":
            unclear.append(
                f"{reading.table.name}: column {name!r} is unknown and close to unit; give --map unit={name} "
                f"if all requests of one {name} were sent to one arm, or --ignore {name} if each request was "
                "drawn by itself"
            )
            continue
        says = f"says the opposite of {near}" if is_opposite(name) else f"is unknown and close to {near}"
        unclear.append(
            f"{reading.table.name}: column {name!r} {says}; "
            f"give --map {near}={'!' * is_opposite(name)}{name}{unit}, or --ignore {name}"
        )
    return tuple(sorted(unused)), unclear


def _note_long(reading: Reading, columns: Mapping[str, Column]) -> None:
    """Say where nearly all latencies lie beyond the longest wait that the gates tell apart."""
    values = np.asarray(columns.get("latency_ms", ()), dtype=np.float64)
    known = values[~np.isnan(values)]
    longest = SETTLE_S * 1000.0
    if len(known) and float((known >= longest).mean()) >= LONG_SHARE:
        share, median_s = float((known >= longest).mean()), float(np.median(known)) / 1000.0
        reading.notes.append(
            f"{share:.0%} of latency_ms are beyond {SETTLE_S:g} s, the longest wait that the gates tell "
            f"apart (median {median_s:.4g} s): how much slower the canary is there is NOT judged; if it is "
            "in another unit, give --map latency_ms=COLUMN:ms (or :us), else compare with ab judge or an "
            "observed range"
        )


def _note_only_where_true(reading: Reading, columns: Mapping[str, Column]) -> None:
    """Say how to read an event's column that has a value only where the event happened."""
    for name, source in reading.sources.items():
        if name not in EVENTS or len(source.terms) != 1:
            continue
        values = np.asarray(columns[name], dtype=np.float64)
        if np.isnan(values).any() and (values == 1.0).any() and not (values == 0.0).any():
            reading.notes.append(
                f"{source.text} has a value only where it is 1; if empty means that it did not happen, "
                f"give --map {name}={source.columns[0]}:present"
            )


def _sorted(reading: Reading, columns: Mapping[str, Column], ignored: tuple[str, ...]) -> EvidenceFile:
    """The file in order of time; rows of the same time keep their order."""
    at_s, table = np.asarray(columns["t_s"], dtype=np.float64), reading.table
    order = np.argsort(at_s, kind="stable")
    if bool((np.diff(at_s) < 0.0).any()):
        reading.notes.append("rows are sorted by time")
    columns = without_cancelled(reading, without_void(reading, columns))
    _note_long(reading, columns)
    _note_only_where_true(reading, columns)
    empty = tuple(
        name
        for name, values in columns.items()
        if name in CATALOGUE and bool(np.isnan(np.asarray(values, dtype=np.float64)).all())
    )
    return EvidenceFile(
        {name: values[order] for name, values in columns.items() if name not in empty},
        ignored,
        tuple(table.lines[row] for row in order.tolist()),
        table.word,
        tuple(reading.notes),
        empty,
        reading.sources["unit"].text if "unit" in reading.sources else None,
        reading.options.prices,
        table.is_replay,
    )
