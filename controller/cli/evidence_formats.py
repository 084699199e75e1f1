"""Cells of an evidence file, by column and as written: CSV, JSON lines, JSON, Parquet, each also as .gz.

Nested JSON becomes dotted names (`usage.completion_tokens`, `choices.0.finish_reason`). Each row keeps its
number in the file, so that every message names the line that an editor shows.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeGuard

from controller.cli.evidence_cells import as_mapping
from controller.errors import BadInput

MAX_ROWS = 20_000_000
MAX_LINE = 2**26  # characters, of a cell too: a file of 7 MB may unpack to one line of gigabytes
MAX_JSON = 2**30  # characters of a whole JSON document, which is held in memory several times over
MAX_DEPTH = 6  # of nested JSON that becomes columns
DELIMITERS = (",", ";", "\t", "|")
DELIMITER_LINE = re.compile(r"\s*\"?sep=([,;\t|])\"?\s*", re.IGNORECASE)
LIST_KEYS = ("data", "rows", "logs", "traces", "observations", "results")  # of a JSON object around the rows
# Of the same object: how many rows or pages there are in all, and that there are more.
TOTAL_KEYS = ("total", "total_count", "totalCount", "total_items", "totalItems", "total_rows")
PAGES_KEYS = ("total_pages", "totalPages", "page_count", "pageCount")
MORE_KEYS = ("has_more", "hasMore", "next_page", "nextPage", "next_cursor", "nextCursor", "next")

Rows = Iterator[tuple[int, Mapping[str, object]]]  # a row's number in the file, and its cells by column


@dataclass(frozen=True, slots=True)
class RawTable:
    """Cells by column. `lines`: each row's number in the file, counted as `word` (line, row or item)."""

    name: str
    columns: dict[str, list[object]]  # of equal length; None: missing
    lines: list[int]
    word: str
    has_decimal_commas: bool = False  # 0,05 is a number, as spreadsheets write it beside `;`
    notes: tuple[str, ...] = ()  # what may be wrong with the file, one line each
    is_replay: bool = False  # a replay's records: half of the requests to each arm, whatever the policy

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """Where a row stands in the file: `line 18`."""
        return f"{self.word} {self.lines[row]}"

    def pick(self, rows: Sequence[int]) -> RawTable:
        """The chosen rows, in that order."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        lines = [self.lines[row] for row in rows]
        return replace(self, columns=columns, lines=lines)


def read_table(path: Path) -> RawTable:
    """The cells of a file; its format follows its suffix. Raises BadInput, with the line."""
    readers: Mapping[str, Callable[[Path], RawTable]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    if path.is_dir():
        raise BadInput(f"{path} is a folder; give one file in it (.jsonl, .json, .csv or .parquet)")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    reader = readers.get(suffix)
    if reader is None:
        raise BadInput(
            f"{path.name} ends in {suffix or 'nothing'}; give a .jsonl, .json, .csv or .parquet file, "
            "or one of the first three as .gz"
            + (
                "; a proxy's log is read as CSV with a line of names, or as JSON lines"
                if suffix == ".log"
                else ""
            )
        )
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BadInput(f"{path.name} is no file but a pipe or a device; write its content to a file")
        return reader(path)
    except gzip.BadGzipFile as exc:
        raise BadInput(f"{path.name} is not gzip; compress it again, or drop .gz from its name") from exc
    except EOFError as exc:
        raise BadInput(f"{path.name} is cut off; copy it again") from exc
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror or exc}; check the path") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path.name} is not UTF-8 (byte {exc.start}); save it as UTF-8") from exc


def _open(path: Path, newline: str | None = None) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)  # Excel writes a byte order mark


def _bounded(path: Path, lines: IO[str]) -> Iterator[str]:
    """The lines. Raises BadInput for one that is too long."""
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise BadInput(f"{path.name} line {number} has over {MAX_LINE} characters; is it of this format?")
        yield line


# --- JSON


def _read_jsonl(path: Path) -> RawTable:
    with _open(path) as lines:
        return _by_column(path, _json_rows(path, _bounded(path, lines)), word="line")


def _json_rows(path: Path, lines: Iterable[str]) -> Rows:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path.name} line {number}"
            yield number, _flat(_object(_parsed(line, place, "write one object per line"), place))


def _read_json(path: Path) -> RawTable:
    with _open(path) as file:
        text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise BadInput(
                f"{path.name} has over {MAX_JSON} characters; write one object per line, as .jsonl"
            )
        found = _parsed(text, path.name, "write an array of objects")
    if isinstance(found, dict):
        lists = [found[key] for key in LIST_KEYS if isinstance(found.get(key), list)]
        if len(lists) == 1:
            _refuse_page(path.name, found, len(lists[0]))
            found = lists[0]
    if not isinstance(found, list):
        raise BadInput(
            f"{path.name} holds {type(found).__name__}, not an array of objects; "
            "for one object per line, name it .jsonl"
        )
    places = (f"{path.name} item {number}" for number in range(1, len(found) + 1))
    rows = (_flat(_object(row, place)) for row, place in zip(found, places, strict=True))
    return _by_column(path, enumerate(rows, start=1), word="item")


def _refuse_page(name: str, found: Mapping[str, object], rows: int) -> None:
    """Raise BadInput where the object around the rows says that there are more than these."""
    meta = found.get("meta")
    said = {**found, **(meta if isinstance(meta, dict) else {})}

    def count(*keys: str) -> int:
        values = [said.get(key) for key in keys]
        return max((value for value in values if type(value) is int), default=0)

    total, pages = count(*TOTAL_KEYS), count(*PAGES_KEYS)
    if total > rows:
        more = f"{rows} of {total} rows"
    elif pages > 1:
        more = f"{rows} rows, one of {pages} pages"
    elif any(said.get(key) not in (None, False, "") for key in MORE_KEYS):
        more = f"{rows} rows of a list that goes on"
    else:
        return
    raise BadInput(
        f"{name} holds {more}; a part would be judged as the whole: get all pages, and write the rows of all "
        "into one array"
    )


def _parsed(text: str, place: str, remedy: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except ValueError as exc:
        raise BadInput(f"{place} is not JSON ({exc}); {remedy}") from exc
    except RecursionError as exc:
        raise BadInput(f"{place} is nested too deeply; write flat objects") from exc


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("duplicate key")
    return row


def _object(row: object, place: str) -> Mapping[str, object]:
    if not isinstance(row, dict):
        raise BadInput(f"{place} is {type(row).__name__}, not an object; write one object for each request")
    return row


def is_named_values(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Whether this is a list of objects with a name and a value, as of scores: each name is a column."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) and "value" in one for one in value
    )


def _flat(row: Mapping[str, object], prefix: str = "", depth: int = 1) -> dict[str, object]:
    """The row with nested objects, and the first item of lists of objects, as dotted names."""
    out: dict[str, object] = {}
    for key, value in row.items():
        name, value = f"{prefix}{key}", as_mapping(value)
        if isinstance(value, list) and value and isinstance(value[0], dict) and not is_named_values(value):
            name, value = f"{name}.0", value[0]
        if isinstance(value, dict) and value and depth < MAX_DEPTH:
            out |= _flat(value, f"{name}.", depth + 1)
        elif value != {}:
            out[name] = value
    return out


# --- CSV


def _read_csv(path: Path) -> RawTable:
    with _open(path, newline="") as lines, _long_cells():
        header, skipped = lines.readline(MAX_LINE), 0
        start = 0
        if (named := DELIMITER_LINE.fullmatch(header)) is not None:  # Excel writes and reads `sep=;`
            start, skipped = lines.tell(), 1
            header = lines.readline(MAX_LINE)
        delimiter = named[1] if named is not None else max(DELIMITERS, key=header.count)
        lines.seek(start)
        reader = csv.DictReader(_bounded(path, lines), strict=True, delimiter=delimiter)
        try:
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            _refuse_two(path, names)
            rows = _csv_rows(path, reader, skipped)
            table = _by_column(path, rows, word="line", names=names, has_decimal_commas=delimiter == ";")
            return replace(table, notes=_swallowed(table, delimiter))
        except csv.Error as exc:
            line = reader.reader.line_num + skipped  # of the record that cannot be read, not of the last one
            raise BadInput(f"{path.name} line {line} is not CSV ({exc}); quote the cell") from exc


@contextmanager
def _long_cells() -> Iterator[None]:
    """Long cells: exports hold whole prompts. The limit is one of the process."""
    before = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _refuse_two(path: Path, names: Sequence[str]) -> None:
    duplicate = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if duplicate is None:
        return
    if any(_is_figure(name) for name in names):
        raise BadInput(
            f"{path.name} has no header line, its first line holds {duplicate!r} twice; write the columns' "
            "names above it, in the order of the log's format"
        )
    raise BadInput(f"{path.name} has two columns {duplicate!r}; name each once")


def _is_figure(name: str) -> bool:
    """Whether a column's name can only be a value: a status, a time, a size."""
    try:
        float(name)
    except ValueError:
        return False
    return True


def _swallowed(table: RawTable, delimiter: str) -> tuple[str, ...]:
    """A note where a stray quote may have made one cell of several rows: it holds as many delimiters as each
    of its line breaks would take with it."""
    more = len(table.columns) - 1
    found: dict[int, int] = {}  # rows that a cell may have taken in, by the row that it is in
    for cells in table.columns.values() if more else ():
        for row, cell in enumerate(cells):
            if isinstance(cell, str) and "\n" in cell and cell.count(delimiter) == more * cell.count("\n"):
                found[row] = found.get(row, 0) + cell.count("\n")
    if not found:
        return ()
    at = table.place(next(iter(found)))
    return (
        f"{len(found)} cells hold line breaks that look like {sum(found.values())} rows of the file, as "
        f"after a stray quote; the first ends at {at}",
    )


def _csv_rows(path: Path, reader: csv.DictReader[str], skipped: int) -> Rows:
    for row in reader:
        if None in row or None in row.values():
            width = len(reader.fieldnames or ())
            raise BadInput(
                f"{path.name} line {reader.line_num + skipped} does not have {width} cells like the header; "
                "correct it"
            )
        yield reader.line_num + skipped, row


# --- Parquet


def _read_parquet(path: Path) -> RawTable:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise BadInput(
            "reading Parquet needs pyarrow; pip install 'canaryctl[plot]', or convert to CSV"
        ) from exc
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise BadInput(
                    f"{path.name} has {file.metadata.num_rows} rows, limit {MAX_ROWS}; split it by time"
                )
            table = file.read()
        for _ in range(MAX_DEPTH):
            if not any(pa.types.is_struct(field.type) for field in table.schema):
                break
            table = table.flatten()  # as nested JSON: `usage.completion_tokens`
        _refuse_two(path, table.column_names)
        cells = {name: _cells(table.column(name)) for name in table.column_names if name != PANDAS_INDEX}
    except pa.ArrowException as exc:
        raise BadInput(f"{path.name} is not Parquet ({str(exc).splitlines()[0]}); write it again") from exc
    rows: Rows = enumerate(
        (_flat(dict(zip(cells, row, strict=True))) for row in zip(*cells.values(), strict=True)), 1
    )
    maps = {field.name for field in table.schema if pa.types.is_map(field.type)}  # a column for each key
    return _by_column(path, rows, word="row", names=[name for name in cells if name not in maps])


PANDAS_INDEX = "__index_level_0__"


def _cells(column: Any) -> list[object]:
    """Plain values. Times are in microseconds at most, Python having no room for more, and in UTC, as
    they are stored, since a zone may be unknown here. A value that Python cannot hold becomes a text."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp(_unit(kind), None if kind.tz is None else "UTC"), safe=False)
    elif pa.types.is_duration(kind):
        column = column.cast(pa.duration(_unit(kind)), safe=False)
    try:
        found: list[object] = column.to_pylist()
    except (OverflowError, ValueError):
        found = [_value_of(value) for value in column]
    if any(isinstance(cell, bytes) for cell in found):
        return _decoded(found)
    return found


def _unit(kind: Any) -> str:
    """The unit of a type of times; a coarser one than microseconds stays, as it holds longer times."""
    return "us" if kind.unit == "ns" else str(kind.unit)


def _value_of(value: Any) -> object:
    """A value; a text in place of one that Python cannot hold, such as a date after the year 9999."""
    try:
        found: object = value.as_py()
    except (OverflowError, ValueError):
        return f"{value.type} out of range"
    return found


def _decoded(cells: Sequence[object]) -> list[object]:
    """Bytes as the text that they are, or else as hexadecimal digits, as a UUID."""
    try:
        return [cell.decode() if isinstance(cell, bytes) else cell for cell in cells]
    except UnicodeDecodeError:
        return [cell.hex() if isinstance(cell, bytes) else cell for cell in cells]


def _by_column(
    path: Path, rows: Rows, *, word: str, names: Iterable[str] = (), has_decimal_commas: bool = False
) -> RawTable:
    columns: dict[str, list[object]] = {name: [] for name in names}
    lines: list[int] = []
    for index, (number, row) in enumerate(rows):
        for name in [name for name in row if name not in columns]:
            columns[name] = [None] * index  # missing in all earlier rows
        for name, values in columns.items():
            values.append(row.get(name))
        lines.append(number)
        if index >= MAX_ROWS:
            raise BadInput(f"{path.name} has more than {MAX_ROWS} rows; split it by time")
    return RawTable(path.name, columns, lines, word, has_decimal_commas)
