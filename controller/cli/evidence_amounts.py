"""Tokens and costs of a recognised log: what stands beside them, and values that stand for none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from controller.cli import evidence_cells as cells
from controller.cli.evidence_columns import Column, Reading
from controller.cli.evidence_logs import COUNTED
from controller.cli.evidence_sources import inner_columns, parsed_source
from evaluation.betting.unit_block import Floats
from evaluation.metrics import UNANSWERED

OUTPUT = ("usageDetails.output", "usage_details.output")  # Langfuse: has other kinds of output beside it


def read_amounts(reading: Reading) -> None:
    """Read the tokens with those that stand beside them, and the cost from where the log has it."""
    _add_other_output(reading)
    for name, column in reading.log.instead.items() if reading.log is not None else ():
        _fill_zeros(reading, name, column)


def without_void(reading: Reading, columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns, without the values that a recognised log writes where there is none."""
    out = dict(columns)
    if reading.log is None:
        return out
    others = {name: np.asarray(values) for name, values in out.items()}
    others[COUNTED] = _counted(reading, reading.log.counted)
    answered = np.ones(len(reading.table), dtype=np.bool_)
    for name in UNANSWERED & out.keys():
        answered &= np.asarray(out[name], dtype=np.float64) != 1.0
    for name, voids in reading.log.void.items():
        if name not in out or reading.sources[name].text not in reading.log.sources[name]:
            continue
        values = np.asarray(out[name], dtype=np.float64)
        for void in voids:
            if void.other not in others:
                continue
            is_void = void.is_void(values, np.asarray(others[void.other], dtype=np.float64))
            if void.of_answers:
                is_void = is_void & answered
            if is_void.any():
                out[name] = np.where(is_void, np.nan, out[name])
                reading.notes.append(f"{int(is_void.sum())} rows have no {name}: {void.why}")
    return out


def _counted(reading: Reading, names: Sequence[str]) -> Floats:
    """The tokens of each row, of whatever kind; NaN where none are known."""
    table = reading.table
    for name in names:
        parsed_source(table, name)  # a name within JSON text becomes a column
    known = [_numbers(table.columns[name]) for name in names if name in table.columns]
    if not known:
        return np.full(len(table), np.nan)
    sums: Floats = np.nansum(known, axis=0)
    return np.where(np.isnan(known).all(axis=0), np.nan, sums)


def _numbers(column: Sequence[object]) -> Floats:
    found = [cells.number(cell) for cell in column]
    return np.array([math.nan if one is None else one for one in found], dtype=np.float64)


def _add_other_output(reading: Reading) -> None:
    """Langfuse has thoughts (`output_reasoning_tokens`) and other kinds of output beside `output`: they are
    tokens of the answer, unless the total says that they are within."""
    source = reading.sources.get("tokens")
    if source is None or not source.is_found or source.text not in OUTPUT:
        return
    table, place = reading.table, source.text.partition(".")[0]
    flat = {name: column for name, column in table.columns.items() if name.startswith(f"{place}.")}
    inner = {**inner_columns(place, table.columns.get(place, ())), **flat}
    kinds = [name for name in inner if name.startswith(f"{place}.output_")]
    more = _sums([inner[name] for name in kinds], len(table))
    if not (more > 0.0).any():
        return
    inputs = [column for name, column in inner.items() if name.startswith(f"{place}.input_")]
    prompt, total = (
        np.nan_to_num(_numbers(inner.get(f"{place}.{kind}", [None] * len(table))))
        for kind in ("input", "total")
    )
    output, all_input = _numbers(table.columns[source.text]), prompt + _sums(inputs, len(table))
    is_within = (total == prompt + output) | (total == all_input + output)
    is_within &= (total > 0.0) & (total != prompt + output + more) & (total != all_input + output + more)
    is_beside = (more > 0.0) & ~is_within
    if not is_beside.any():
        return
    merged = [
        float(one) if is_more else cell
        for cell, one, is_more in zip(table.columns[source.text], output + more, is_beside, strict=True)
    ]
    left = {name: column for name, column in table.columns.items() if name not in kinds}
    reading.table = replace(table, columns={**left, source.text: merged})
    reading.notes.append(
        f"tokens: {source.text} with {', '.join(kinds)}, which stand beside it in {int(is_beside.sum())} rows"
    )


def _sums(columns: Sequence[Sequence[object]], rows: int) -> Floats:
    """Of each row, a missing value as 0."""
    out: Floats = np.zeros(rows)
    for column in columns:
        out = out + np.nan_to_num(_numbers(column))
    return out


def _fill_zeros(reading: Reading, name: str, column: str) -> None:
    """Take the metric's value from the other column where its own says 0."""
    source = reading.sources.get(name)
    if source is None or not source.is_found or len(source.terms) != 1:
        return
    table = reading.table
    parsed_source(table, column)
    if column not in table.columns:
        return
    own = source.columns[0]
    given, other = _numbers(table.columns[own]), _numbers(table.columns[column])
    is_filled = (given == 0.0) & (other > 0.0)
    if not is_filled.any():
        return
    merged = [
        float(value) if fills else cell
        for cell, value, fills in zip(table.columns[own], other, is_filled, strict=True)
    ]
    left = {key: values for key, values in table.columns.items() if key != column}
    reading.table = replace(table, columns={**left, own: merged})
    reading.notes.append(f"{name} is read from {column} in {int(is_filled.sum())} rows whose {own} is 0")
