"""Scores of requests in a file of their own (`--scores`), joined to the requests by their ids.

A row has `id` (of the request or of its answer), `score` from 0 to 1 and perhaps `metric` (quality where it
has none), as `POST /v1/feedback` takes them and `canaryctl router --feedback` writes them. The first score of
a request and metric counts, as live.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from controller.cli.evidence_cells import number
from controller.cli.evidence_formats import RawTable, read_table
from controller.errors import BadInput
from controller.planning.baseline import JUDGED

IDS = ("request_id", "answer_id")  # columns of the requests, by which they are found
METRIC = "quality"


def with_scores(table: RawTable, path: Path) -> tuple[RawTable, str]:
    """The requests with a column for each metric of this file, and a line on what was joined.

    Raises BadInput, with the line of the file.
    """
    scores, option = read_table(path), f"--scores {path.name}"
    for name in ("id", "score"):
        if name not in scores.columns:
            raise BadInput(f"{option} has no column {name}; a row is id, score and perhaps metric")
    rows = _rows_by_id(table, option)
    columns: dict[str, list[object]] = {}
    joined = repeated = unknown = 0
    for index, id in enumerate(scores.columns["id"]):
        metric, value = _score(scores, index)
        row = rows.get(str(id))
        if row is None:
            unknown += 1
            continue
        if metric in table.columns:
            raise BadInput(f"{table.name} has a column {metric} already; leave out {option}")
        cells = columns.setdefault(metric, [None] * len(table))
        if cells[row] is not None:
            repeated += 1
        else:
            joined, cells[row] = joined + 1, value
    if not joined:
        raise BadInput(f"none of the {len(scores)} ids of {option} is in {table.name}; give its scores")
    parts = [f"{path.name}: {joined} scores joined"]
    parts += [f"{repeated} repeat one of the same request and metric"] if repeated else []
    parts += [f"{unknown} are of no request here"] if unknown else []
    return replace(table, columns=table.columns | columns), ", ".join(parts)


def _rows_by_id(table: RawTable, option: str) -> dict[str, int]:
    known = [name for name in IDS if name in table.columns]
    if not known:
        raise BadInput(f"{option} needs a column {' or '.join(IDS)} in {table.name}; name the ids so")
    rows: dict[str, int] = {}
    for name in known:
        for row, id in enumerate(table.columns[name]):
            if id is not None:
                rows.setdefault(str(id), row)  # an id stays with the first request that has it
    return rows


def _score(scores: RawTable, row: int) -> tuple[str, float]:
    """Metric and value of one row. Raises BadInput, with its line."""
    place = f"{scores.name}: {scores.place(row)}"
    metric = scores.columns.get("metric", [None] * len(scores))[row] or METRIC
    if metric not in JUDGED:
        known = ", ".join(sorted(JUDGED))
        raise BadInput(f"{place}: metric {str(metric)[:40]!r} is unknown; use one of {known}")
    value = number(scores.columns["score"][row], has_decimal_commas=scores.has_decimal_commas)
    if value is None or math.isnan(value) or not 0 <= value <= 1:
        cell = str(scores.columns["score"][row])[:40]
        raise BadInput(f"{place}: score {cell!r} is not a number from 0 to 1; rescale it")
    return str(metric), value
