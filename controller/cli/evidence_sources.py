"""Which column of a file holds what: `--map`, and the logs that are recognised by their columns.

A source is a column (`duration`), a nested one (`usage.completion_tokens`), one in another unit
(`duration:s`), the presence of a value (`error.message:present`), the opposite of an event (`!success`), or
a difference of two of these (`endTime-startTime`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from controller.cli.evidence_cells import UNITS, event, is_missing, is_present
from controller.cli.evidence_formats import RawTable
from controller.cli.evidence_logs import KNOWN_LOGS, KnownLog
from controller.errors import BadInput
from evaluation.offline.names import KNOWN, is_opposite, near_name

PRESENT = "present"  # as a unit: 1 where the column has a value


@dataclass(frozen=True, slots=True)
class Term:
    """One column. unit: None: as it is."""

    column: str
    unit: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """What a known column is read from: a term, or the difference of two."""

    text: str
    terms: tuple[Term, ...]  # one or two
    is_opposite: bool = False  # 1 where the column says no
    is_found: bool = False  # by itself, in a recognised log
    others: tuple[Source, ...] = ()  # of an event: it happened where one of them says so, too

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(term.column for term in self.terms)

    @property
    def all_columns(self) -> tuple[str, ...]:
        """With those of the others."""
        return (*self.columns, *(column for other in self.others for column in other.columns))

    @property
    def said(self) -> str:
        """The source, with the others, as it is told."""
        return " or ".join((self.text, *(other.text for other in self.others)))


def recognised(table: RawTable) -> KnownLog | None:
    """The log that the file's columns are those of; None: none, or it has our own names."""
    if "t_s" in table.columns:
        return None
    for log in KNOWN_LOGS:
        if all(any(name in table.columns for name in names) for names in log.signature):
            return log
    return None


def log_sources(table: RawTable, log: KnownLog) -> dict[str, Source]:
    """The sources of a recognised log whose columns exist in the file, by known column.

    Of several, the first that holds a value; of an event, also each further column that says it happened.
    """
    out: dict[str, Source] = {}
    for target, texts in log.sources.items():
        usable = [source for text in texts if (source := _usable(table, text)) is not None]
        if target == "arm":
            usable = [source for source in usable if _tells_arms(table, source)]
        if usable and target in KNOWN:
            out[target] = next((source for source in usable if has_value(table, source)), usable[0])
    for target, texts in log.also.items():
        found = [source for text in texts if (source := _usable(table, text)) is not None]
        saying = [source for source in found if source.text not in log.sources[target] or target not in out]
        saying = [source for source in saying if _ever_happens(table, target, source)]
        if target in out:
            out[target] = replace(out[target], others=tuple(s for s in saying if s.text != out[target].text))
        elif saying:
            out[target] = replace(saying[0], others=tuple(saying[1:]))
    return out


def _tells_arms(table: RawTable, source: Source) -> bool:
    """Whether each row has a value and there are two: one name for both arms would tell none."""
    cells = table.columns[source.columns[0]]
    return not any(is_missing(cell) for cell in cells) and len({str(cell) for cell in cells}) == 2


def has_value(table: RawTable, source: Source) -> bool:
    """Whether each of its columns has a value in some row."""
    return all(any(not is_missing(cell) for cell in table.columns[name]) for name in source.columns)


def _usable(table: RawTable, text: str) -> Source | None:
    source = replace(parsed_source(table, text), is_found=True)
    return source if all(name in table.columns for name in source.columns) else None


def _ever_happens(table: RawTable, metric: str, source: Source) -> bool:
    """Whether a source of one column says of some row that the event happened."""
    [term] = source.terms
    cells = table.columns[term.column]
    if term.unit == PRESENT:
        return any(is_present(cell) for cell in cells)
    return any(event(metric, cell) == 1.0 for cell in cells)


def parsed_maps(table: RawTable, pairs: Sequence[str], known: Collection[str] = KNOWN) -> dict[str, Source]:
    """The sources of `--map KNOWN=SOURCE` options. Raises BadInput, with a line for each that is none."""
    out: dict[str, Source] = {}
    targets = [pair.partition("=")[0].strip() for pair in pairs]
    twice = dict.fromkeys(one for one in targets if targets.count(one) > 1)
    refused = [f"--map {target} is given twice; give one source" for target in twice]
    for pair, target in zip(pairs, targets, strict=True):
        try:
            out[target] = _parsed_map(table, pair, known)
        except BadInput as exc:
            refused += exc.details
    if refused:
        raise BadInput(refused)
    return out


def _parsed_map(table: RawTable, pair: str, known: Collection[str]) -> Source:
    """The source of one option. Raises BadInput."""
    target, separator, text = pair.partition("=")
    target, text = target.strip(), text.strip()
    if not separator or not text:
        raise BadInput(f"--map {pair!r} is not NAME=COLUMN; write --map latency_ms=duration")
    if target not in known:
        near = near_name(target)
        sign = "!" if is_opposite(target) else ""
        remedy = f"did you mean {near}={sign}{text}?" if near else f"use one of {', '.join(KNOWN)}"
        raise BadInput(f"--map {pair}: {target!r} is not a column of a backtest; {remedy}")
    source = parsed_source(table, text)
    for column in source.columns:
        _refuse_absent(table, pair, column)
    return source


def parsed_source(table: RawTable, text: str) -> Source:
    """A source as written. A minus sign within the name of a column is part of the name."""
    if text.startswith("!") and text not in table.columns:
        return replace(parsed_source(table, text[1:].strip()), text=text, is_opposite=True)
    whole = _term(table, text)
    if whole.column in table.columns or "-" not in text:
        return Source(text, (whole,))
    cuts = [index for index, letter in enumerate(text) if letter == "-"]
    pairs = [(_term(table, text[:cut].strip()), _term(table, text[cut + 1 :].strip())) for cut in cuts]
    for first, second in pairs:
        if first.column in table.columns and second.column in table.columns:
            return Source(text, (first, second))
    return Source(text, pairs[0] if len(pairs) == 1 else (whole,))


def _term(table: RawTable, text: str) -> Term:
    column, separator, unit = text.rpartition(":")
    if text not in table.columns and separator and (unit in UNITS or unit == PRESENT):
        text, found = column, unit
    else:
        found = ""
    _unpack(table, text)
    return Term(text, found or None)


def _unpack(table: RawTable, name: str) -> None:
    """Add the column of a dotted name that lies within JSON text, as in a CSV export of metadata."""
    outer, _, inner = name.partition(".")
    if name in table.columns or not inner or outer not in table.columns:
        return
    cells: list[object] = []
    for cell in table.columns[outer]:
        value: object = None
        if isinstance(cell, str) and cell.lstrip().startswith("{"):
            try:
                value = json.loads(cell)
            except ValueError:
                return
        for key in inner.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        cells.append(value)
    if any(cell is not None for cell in cells):
        table.columns[name] = cells


def inner_columns(name: str, cells: Sequence[object]) -> dict[str, list[object]]:
    """The columns within one of JSON objects, by dotted name; of any other column, itself."""
    objects = []
    for cell in cells:
        if isinstance(cell, str) and cell.lstrip().startswith("{"):
            try:
                cell = json.loads(cell)
            except ValueError:
                return {name: list(cells)}
        objects.append(cell)
    if not any(isinstance(cell, dict) for cell in objects):
        return {name: list(cells)}
    keys = dict.fromkeys(key for cell in objects if isinstance(cell, dict) for key in cell)
    return {
        f"{name}.{key}": [cell.get(key) if isinstance(cell, dict) else None for cell in objects]
        for key in keys
    }


def _refuse_absent(table: RawTable, pair: str, column: str) -> None:
    if column in table.columns:
        return
    near = get_close_matches(column, list(table.columns), n=1)
    remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(table.columns))}"
    raise BadInput(f"--map {pair}: {table.name} has no column {column!r}; {remedy}")
