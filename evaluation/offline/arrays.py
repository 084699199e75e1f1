"""Conversion of columns to one-dimensional arrays: lists, masked and object arrays, series.

Done once, on entry. `None` and masked values are missing (NaN); ambiguous input (dates, text instead of
numbers, nested tables) is refused by column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.records import EvidenceError

Array = NDArray[np.generic]


class RowError(EvidenceError):
    """An invalid value in one row. `row`: its index from 0; `at` names the row in the caller's words."""

    def __init__(self, before: str, row: int, after: str) -> None:
        super().__init__(f"{before}row {row}{after}")
        self.row = row
        self._parts = (before, after)

    def at(self, place: str) -> str:
        """The message with `place`, such as `line 18`, for the row."""
        before, after = self._parts
        return f"{before}{place}{after}"


LARGEST_NAME = 2.0**53  # above it, floats skip whole numbers
TEXTS = frozenset({"unit", "request_id", "assigned_by"})


def arrays_of(columns: object) -> dict[str, Array]:
    """The columns as arrays of equal length. Errors: EvidenceError."""
    table: Any = columns
    out = {name: _array(name, table[name]) for name in names_of(columns)}
    lengths = {name: len(column) for name, column in out.items()}
    rows = lengths.get("t_s", next(iter(lengths.values()), 0))
    for name, length in lengths.items():
        if length != rows:
            raise EvidenceError(f"column {name} has {length} rows, t_s has {rows}; make them equal")
    return out


def names_of(columns: object) -> tuple[str, ...]:
    """Names of the columns of a mapping or of a table with `keys()` (pandas). Errors: EvidenceError."""
    keys = columns.keys if isinstance(columns, Mapping) else getattr(columns, "keys", None)
    if keys is None:
        kind = type(columns).__name__
        raise EvidenceError(f"columns are {kind}; give a mapping of names to arrays of equal length")
    return tuple(keys())


def floats_of(columns: Mapping[str, Array], name: str) -> Floats:
    """A column of numbers, NaN where missing. Errors: EvidenceError."""
    column = columns[name]
    if column.dtype.kind in "Mm":
        raise EvidenceError(f"column {name} holds dates; give seconds since the epoch, as floats")
    try:
        if column.dtype.kind not in "biufO":
            raise TypeError(column.dtype)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(column, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise EvidenceError(f"column {name} is not numeric; give floats, NaN when missing") from exc


def texts_of(columns: Mapping[str, Array], name: str) -> tuple[Array, NDArray[np.bool_]]:
    """A column of names (text or whole numbers), and which are missing. Errors: EvidenceError."""
    column = columns[name]
    match column.dtype.kind:
        case "i" | "u":
            return column, np.zeros(len(column), dtype=np.bool_)
        case "U":
            return column, column == ""
        case "f":
            missing = np.isnan(column)
            texts = [
                "" if gone else _text(name, row, value)
                for row, (value, gone) in enumerate(zip(column.tolist(), missing, strict=True))
            ]
            return np.array(texts, dtype=np.str_), missing
        case "O" | "S" | "b" | "T":
            texts = [_text(name, row, value) for row, value in enumerate(column.tolist())]
            return np.array(texts, dtype=np.str_), np.array([text == "" for text in texts], dtype=np.bool_)
        case _:
            raise EvidenceError(f"column {name} holds {column.dtype}; give names as text or whole numbers")


def first_row(flags: NDArray[np.bool_]) -> int:
    """Index of the first true flag."""
    return int(np.argmax(flags))


def _array(name: str, column: object) -> Array:
    if column is None:
        raise EvidenceError(f"column {name} is None; leave it out, or give a value for each row")
    try:
        if isinstance(column, np.ma.MaskedArray):
            array = _unmasked(column)
        elif name in TEXTS and not isinstance(column, np.ndarray):
            array = np.asarray(column, dtype=object)  # else a NaN among texts would become the text "nan"
        else:
            array = np.asarray(column)
    except (TypeError, ValueError, OverflowError) as exc:
        raise EvidenceError(f"column {name} is not an array ({exc}); give one value for each row") from exc
    if array.ndim != 1:
        shape = f"one value, {column!r:.60}" if array.ndim == 0 else f"of shape {array.shape}"
        raise EvidenceError(f"column {name} is {shape}; give one value for each row")
    return array


def _unmasked(column: np.ma.MaskedArray[Any, Any]) -> Array:
    """The array, missing where it is masked: the data under a mask is arbitrary."""
    mask = np.broadcast_to(np.asarray(column.mask), column.shape)  # the mask may be one False for all
    if column.dtype.kind in "biuf":
        return np.where(mask, np.nan, column.data.astype(np.float64))
    out = column.data.astype(object)
    out[mask] = None
    return np.asarray(out)


def _text(name: str, row: int, value: object) -> str:
    """The name as text; empty if it is missing."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if not isinstance(value, str | int | float | np.number | UUID) or "\0" in str(value):
        raise RowError(f"{name} {value!r:.60} in ", row, " is not a name; give text or a whole number")
    try:
        return name_text(value)
    except ValueError as exc:
        raise RowError(f"{name} in ", row, f" {exc}") from exc


def name_text(value: object) -> str:
    """A name as text: a whole number that went through a float, 1000.0, is 1000. Errors: ValueError for one
    that a float cannot hold exactly."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        if abs(float(value)) > LARGEST_NAME:
            raise ValueError(
                f"is {float(value):.0f}, a float beyond 2^53 that may be another's; write it as text"
            )
        return str(int(value))
    return str(value)
