"""Judging a recorded A/B test: the whole file, then each category with a corrected p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from controller.ab.spec import question_of
from controller.cli.evidence_columns import Column
from controller.cli.evidence_files import read_evidence
from controller.errors import BadInput
from evaluation.ab.comparison import (
    MIN_PER_SIDE,
    AbQuestion,
    AbResult,
    AbVerdict,
    correct_categories,
    fixed_horizon,
    sequential,
)
from evaluation.ab.validity import AbValidity
from evaluation.metrics import CATALOGUE
from evaluation.records import EvidenceError
from evaluation.units.units import HELD, LEFT_OUT, kind_of

RESULT_KEYS = (
    "n_a", "n_b", "mean_a", "mean_b", "difference", "win_rate", "cohens_d", "interval", "interval_of"
)  # fmt: skip
NOTHING = "no unit has a randomised side and an outcome; nothing to compare"


class FileReport(BaseModel):
    """Result of the whole file, then of each category."""

    metric: str
    method: str
    rows: list[dict[str, object]]
    notes: list[str]


def judge_file(path: Path, metric: str, *, alpha: float, by: str | None, is_fixed: bool) -> FileReport:
    """Result of the file and of each category in the column `by`. Raises BadInput."""
    question = _question(metric, alpha)
    evidence = read_evidence(path, extra=("unit", by) if by else ("unit",))
    columns = evidence.columns
    if metric in evidence.empty:
        raise BadInput(f"{metric}: {NOTHING}")
    if metric not in columns:
        raise BadInput(f"the file has no column {metric}; it has {', '.join(sorted(columns))}")
    y = np.asarray(columns[metric], dtype=np.float64)
    w = np.asarray(columns["w"], dtype=np.float64)
    is_b = np.asarray(columns["arm"]) == 1
    units = _randomised_units(columns)
    units = units[(w[units] > 0) & (w[units] < 1)]
    scored = units[~np.isnan(y[units])]
    if len(scored) == 0:
        raise BadInput(f"{metric}: {NOTHING}")

    def compare(rows: NDArray[np.intp]) -> AbResult:
        if is_fixed:
            return fixed_horizon(y[rows[~is_b[rows]]], y[rows[is_b[rows]]], question)
        return sequential(y[rows], is_b[rows], w[rows], question)

    try:
        validity = AbValidity()
        validity.add(is_b[units], w[units], ~np.isnan(y[units]))
        whole = compare(scored)
        names = np.asarray(columns[by])[scored] if by is not None else np.empty(0)
        parts = correct_categories({str(name): compare(scored[names == name]) for name in np.unique(names)})
    except ValueError as exc:
        raise BadInput(f"{metric}: {exc}") from exc
    invalid = validity.reason()
    rows = [_row("(all)", whole, whole.p_value, whole.verdict)]
    rows += [_row(part.category, part.result, part.adjusted_p, part.verdict) for part in parts]
    if invalid is not None:
        rows = [row | {"verdict": AbVerdict.INVALID.value} for row in rows]
    notes = _notes(whole, [part.result for part in parts], invalid)
    return FileReport(metric=metric, method=whole.method, rows=rows, notes=notes)


def _question(metric: str, alpha: float) -> AbQuestion:
    if metric not in CATALOGUE:
        raise BadInput(f"metric {metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}")
    try:
        return question_of(metric, alpha)
    except ValueError as exc:
        raise BadInput(f"ab: {exc}") from exc


def _randomised_units(columns: Mapping[str, Column]) -> NDArray[np.intp]:
    """Row of each unit's first request, in order of time, where its side was drawn at random."""
    try:
        drawn = np.array([kind_of(str(word)) not in (LEFT_OUT, HELD) for word in columns["assigned_by"]])
    except EvidenceError as exc:
        raise BadInput(f"assigned_by: {exc}") from exc
    order: NDArray[np.intp] = np.argsort(np.asarray(columns["t_s"], dtype=np.float64), kind="stable")
    _, first = np.unique(columns["unit"][order], return_index=True)
    rows = order[np.sort(first)]
    return np.asarray(rows[drawn[rows]], dtype=np.intp)


def _notes(whole: AbResult, parts: Sequence[AbResult], invalid: str | None) -> list[str]:
    notes = [f"invalid: {invalid}"] if invalid is not None else []
    if any(result.verdict is AbVerdict.TOO_FEW for result in (whole, *parts)):
        notes.append(f"too few: a fixed test needs at least {MIN_PER_SIDE} units per side")
    if parts:
        notes.append(f"p and verdict of {len(parts)} categories are corrected for their number (Holm)")
    notes.append(f"{whole.method}, alpha {whole.alpha:g}; the interval is of the {whole.interval_of}")
    return notes


def _row(category: str, result: AbResult, p: float, verdict: AbVerdict) -> dict[str, object]:
    figures = {key: getattr(result, key) for key in RESULT_KEYS}
    return {"category": category, "verdict": verdict.value, "p": p} | figures
