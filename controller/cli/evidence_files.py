"""Evidence files: columns of recorded requests from JSONL, CSV or Parquet.

One row per request, in order of assignment. Required: `t_s, arm, w, assigned_by`, and `unit` unless every
row is its own unit; optional: every metric of the catalogue. `arm` is 0, 1, `stable` or `canary`; `t_s` is in
seconds, or a Parquet timestamp (UTC unless it has a zone). An empty cell, a missing key and null are missing
values. A malformed row is refused with its line number: skipping rows would bias the evidence.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from controller.errors import BadInput
from evaluation.metrics import CATALOGUE

REQUIRED = ("t_s", "arm", "w", "assigned_by")
TEXTS = frozenset({"request_id", "unit", "assigned_by"})
KNOWN = frozenset({*REQUIRED, "unit", "request_id", "stage", "fell_back", *CATALOGUE})
ARMS = {"stable": 0.0, "canary": 1.0}
WORDS = {"true": 1.0, "false": 0.0}
MAX_ROWS = 20_000_000

Column = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """Columns of an evidence file."""

    columns: Mapping[str, Column]  # by name, of equal length
    ignored: tuple[str, ...]  # columns of the file that no gate uses

    @property
    def rows(self) -> int:
        return len(self.columns["t_s"])


def read_evidence(path: Path, *, extra: Sequence[str] = ()) -> EvidenceFile:
    """Columns of a .jsonl (.ndjson), .csv or .parquet file. Raises BadInput, with the line.

    extra: further required columns of text, such as a category.
    """
    readers: Mapping[str, Callable[[Path], dict[str, list[object]]]] = {
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise BadInput(
            f"{path.name} ends in {path.suffix or 'nothing'}; give a .jsonl, .csv or .parquet file"
        )
    try:
        raw = reader(path)
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror or exc}; check the path") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path.name} is not UTF-8 (byte {exc.start}); save it as UTF-8") from exc
    required = (*REQUIRED, *extra)
    if missing := [name for name in required if name not in raw]:
        present = ", ".join(sorted(raw)) or "none"
        raise BadInput(
            f"{path.name} lacks {', '.join(missing)} (it has {present}); each row needs {', '.join(required)}"
        )
    known = KNOWN | set(extra)
    columns = {
        name: _column(path, name, values, is_text=name in TEXTS or name in extra)
        for name, values in raw.items()
        if name in known
    }
    if len(columns["t_s"]) == 0:
        raise BadInput(f"{path.name} has no rows; give a file with requests")
    return EvidenceFile(columns, tuple(sorted(set(raw) - known)))


def _read_jsonl(path: Path) -> dict[str, list[object]]:
    with path.open(encoding="utf-8-sig") as lines:  # Excel writes a byte order mark
        return _by_column(path, _json_rows(path, lines))


def _json_rows(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, object]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except ValueError as exc:
            raise BadInput(
                f"{path.name} line {number} is not JSON ({exc}); write one object per line"
            ) from exc
        except RecursionError as exc:
            raise BadInput(f"{path.name} line {number} is nested too deeply; write flat objects") from exc
        if not isinstance(row, dict):
            raise BadInput(
                f"{path.name} line {number} is {type(row).__name__}, not an object; write one per line"
            )
        yield row


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("duplicate key")
    return row


def _read_csv(path: Path) -> dict[str, list[object]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            names = list(reader.fieldnames or ())
            duplicate = next((name for index, name in enumerate(names) if name in names[:index]), None)
            if duplicate is not None:
                raise BadInput(f"{path.name} has two columns {duplicate!r}; name each once")
            return _by_column(path, _csv_rows(path, reader), names=names)
        except csv.Error as exc:
            raise BadInput(f"{path.name} line {reader.line_num} is not CSV ({exc}); quote the cell") from exc


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[Mapping[str, object]]:
    for row in reader:
        if None in row or None in row.values():
            width = len(reader.fieldnames or ())
            raise BadInput(
                f"{path.name} line {reader.line_num} does not have {width} cells like the header; correct it"
            )
        yield {name: cell if cell != "" else None for name, cell in row.items()}


def _by_column(
    path: Path, rows: Iterable[Mapping[str, object]], names: Iterable[str] = ()
) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        for name in row.keys() - columns.keys():
            columns[name] = [None] * index  # missing in all earlier rows
        for name, values in columns.items():
            values.append(row.get(name))
        if index >= MAX_ROWS:
            raise BadInput(f"{path.name} has more than {MAX_ROWS} rows; split it by time")
    return columns


def _read_parquet(path: Path) -> dict[str, list[object]]:
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
    except pa.ArrowException as exc:
        raise BadInput(f"{path.name} is not Parquet ({str(exc).splitlines()[0]}); write it again") from exc
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _column(path: Path, name: str, values: list[object], *, is_text: bool) -> Column:
    if is_text:
        return np.array([_text(path, name, row, value) for row, value in enumerate(values, start=1)])
    numbers = np.empty(len(values), dtype=np.float64)
    for index, value in enumerate(values):
        number = _number(name, value)
        if number is None:
            remedy = "write seconds since the epoch" if name == "t_s" else "write 0.5, or leave it empty"
            raise BadInput(f"{path.name} row {index + 1}: {name} {value!r:.60} is not a number; {remedy}")
        numbers[index] = number
    return _arms(path, numbers) if name == "arm" else numbers


def _text(path: Path, name: str, row: int, value: object) -> str:
    if value is None or value == "" or value != value:
        raise BadInput(f"{path.name} row {row} has no {name}; fill it in")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or "\0" in str(value):
        raise BadInput(f"{path.name} row {row}: {name} {value!r:.60} is not a name; write text or a number")
    return str(value)


def _number(name: str, value: object) -> float | None:
    """The value as a float; NaN: missing, None: not a number."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        word = value.strip().lower()
        if name == "arm" and word in ARMS:
            return ARMS[word]
        if word in WORDS:
            return WORDS[word]
        try:
            return float(word)
        except ValueError:
            return None
    if isinstance(value, datetime) and name == "t_s":
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()
    try:
        return float(value) if isinstance(value, bool | int | float | Decimal) else None
    except OverflowError:
        return None


def _arms(path: Path, arms: NDArray[np.float64]) -> Column:
    bad = np.flatnonzero(~np.isin(arms, (0.0, 1.0)))
    if len(bad):
        raise BadInput(
            f"{path.name} row {bad[0] + 1}: arm {arms[bad[0]]:g} is neither 0 (stable) nor 1 (canary)"
        )
    return arms.astype(np.int64)
