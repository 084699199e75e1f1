"""Judging a recorded A/B test: the whole file, then each category with a corrected p-value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from controller.ab.spec import question_of
from controller.cli.evidence_columns import Column, ReadOptions
from controller.cli.evidence_files import AS_IS, EvidenceFile, read_evidence
from controller.errors import BadInput
from evaluation.ab.comparison import (
    MAX_CATEGORIES,
    MIN_PER_SIDE,
    AbQuestion,
    AbResult,
    AbVerdict,
    Scale,
    correct_categories,
)
from evaluation.ab.fixed import fixed_by_split
from evaluation.ab.sequential import sequential
from evaluation.ab.units import AbUnits, units_of_rows
from evaluation.ab.validity import AbValidity
from evaluation.metrics import CATALOGUE, UNANSWERED
from evaluation.offline.columns import copy_error
from evaluation.offline.duplicates import renamed_copies
from evaluation.records import SETTLE_S, EvidenceError
from evaluation.units.ties import tie_order
from evaluation.units.units import REQUEST, STICKY, kind_of, unit_hash

RESULT_KEYS = (
    "n_a", "n_b", "mean_a", "mean_b", "difference", "win_rate", "cohens_d", "interval", "interval_of"
)  # fmt: skip
TIMES = frozenset(name for name in CATALOGUE if name.endswith("_ms"))
SLOWEST_S = SETTLE_S  # a request without an answer waited at least so long, whenever it failed
OTHER = "(other)"
NOTHING = "no unit has a randomised side and an outcome; nothing to compare"


class FileReport(BaseModel):
    """Result of the whole file, then of each category."""

    metric: str
    method: str
    rows: list[dict[str, object]]
    notes: list[str]


def judge_file(
    path: Path, metric: str, *, alpha: float, by: str | None, is_fixed: bool, options: ReadOptions = AS_IS
) -> FileReport:
    """Result of the file and of each category in the column `by`. Raises BadInput."""
    question = _question(metric, alpha)
    evidence = read_evidence(path, extra=(by,) if by else (), options=options)
    if metric in evidence.empty:
        raise BadInput(f"{metric}: {NOTHING}")
    if metric not in evidence.columns:
        raise BadInput(
            f"the file has no column {metric}; it has {', '.join(sorted(evidence.columns))}: name one by "
            f"--metric, or give --map {metric}=COLUMN"
        )
    _refuse_copies(path, evidence)
    unanswered = 0 if metric in UNANSWERED else int(_lacking(evidence, metric).sum())
    causes = "error, rejected, cancelled" if evidence.waits_ended(metric).any() else "error, rejected"
    evidence = _with_slowest(evidence, metric)
    columns = _in_blind_order(evidence)
    units = _units(columns, metric, question)
    if question.scale is Scale.RATE and units.has_means:
        question = replace(question, scale=Scale.SCORE)  # the mean of several events
    scored = np.flatnonzero(units.answers > 0)
    if len(scored) == 0:
        raise BadInput(f"{metric}: {NOTHING}")

    def compare(chosen: NDArray[np.intp]) -> AbResult:
        test = fixed_by_split if is_fixed else sequential
        return test(units.y[chosen], units.is_b[chosen], units.w[chosen], question)

    try:
        validity = AbValidity()
        validity.add(units.is_b, units.w, units.answers > 0)
        whole = compare(scored)
        names, rare = _largest(np.asarray(columns[by])[units.row[scored]] if by is not None else np.empty(0))
        parts = correct_categories({str(name): compare(scored[names == name]) for name in np.unique(names)})
        selected = _selected(units, scored, names)
    except ValueError as exc:
        raise BadInput(f"{metric}: {exc}") from exc
    invalid = units.crossing() if units.is_broken else units.graded_unlike() or validity.reason()
    rows = [_row("(all)", whole, whole.p_value, whole.verdict)]
    rows += [_row(part.category, part.result, part.adjusted_p, part.verdict) for part in parts]
    broken = set(selected) if invalid is None else {row["category"] for row in rows}
    rows = [row | {"verdict": AbVerdict.INVALID.value} if row["category"] in broken else row for row in rows]
    notes = _notes(whole, [part.result for part in parts], invalid, units)
    notes += [f"invalid: {name}: {why}; was {by} known before the draw?" for name, why in selected.items()]
    if rare:
        notes.append(f"{OTHER}: the {rare} smallest categories as one")
    if unanswered:
        counted = f"at {SLOWEST_S:g} s or the slowest" if metric in TIMES else "for nothing"
        notes.append(f"{unanswered} requests without an answer ({causes}) count {counted}")
    return FileReport(metric=metric, method=whole.method, rows=rows, notes=[*evidence.notes, *notes])


def _selected(units: AbUnits, scored: NDArray[np.intp], names: NDArray[Any]) -> dict[str, str]:
    """Why units do not fit the split, by category: one that was known only after the draw selects units by
    their answers. names: of the scored units."""
    found: dict[str, str] = {}
    known = np.unique(names)
    for name in known:
        chosen = scored[names == name]
        validity = AbValidity(among=len(known))
        validity.add(units.is_b[chosen], units.w[chosen], np.ones(len(chosen)))
        if (why := validity.split_reason()) is not None:
            found[str(name)] = why
    return found


def _largest(names: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The categories of units, the smallest as `OTHER` where there are more than can be compared, and how
    many those are."""
    known, which, sizes = np.unique(names, return_inverse=True, return_counts=True)
    if len(known) <= MAX_CATEGORIES:
        return names, 0
    kept = np.argsort(-sizes, kind="stable")[: MAX_CATEGORIES - 1]
    return np.where(np.isin(which, kept), names, OTHER), len(known) - len(kept)


def _question(metric: str, alpha: float) -> AbQuestion:
    if metric not in CATALOGUE:
        raise BadInput(f"metric {metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}")
    try:
        return question_of(metric, alpha)
    except ValueError as exc:
        raise BadInput(f"ab: {exc}") from exc


def _kinds(columns: Mapping[str, Column]) -> NDArray[np.int64]:
    """How each row was drawn; without `assigned_by`, a unit's rows are sticky."""
    if "assigned_by" not in columns:
        kind = STICKY if "unit" in columns else REQUEST
        return np.full(len(columns["arm"]), kind, dtype=np.int64)
    words, which = np.unique(columns["assigned_by"], return_inverse=True)
    try:
        kinds = np.array([kind_of(str(word)) for word in words], dtype=np.int64)
    except EvidenceError as exc:
        raise BadInput(f"assigned_by: {exc}") from exc
    # A row of `request` whose unit repeats would count twice: the unit is taken at its word.
    return np.where((kinds[which] == REQUEST) & ("unit" in columns), STICKY, kinds[which])


def _refuse_copies(path: Path, evidence: EvidenceFile) -> None:
    """Raise BadInput where requests stand in the file twice, under two ids."""
    names = evidence.columns.get("request_id")
    values = [np.asarray(v, dtype=np.float64) for n, v in evidence.columns.items() if n in CATALOGUE]
    arm, w = (np.asarray(evidence.columns[name], dtype=np.float64) for name in ("arm", "w"))
    copies = renamed_copies(np.asarray(evidence.columns["t_s"], dtype=np.float64), (arm, w, *values))
    if names is not None and copies.any():
        found = copy_error(names, copies)
        raise BadInput(f"{path.name}: {found.at(evidence.place(found.row))}")


def _lacking(evidence: EvidenceFile, metric: str) -> NDArray[np.bool_]:
    """Which rows have no answer to be compared: failed, or a wait that the client ended by leaving."""
    lacking: NDArray[np.bool_] = evidence.unanswered | evidence.waits_ended(metric)
    return lacking


def _with_slowest(evidence: EvidenceFile, metric: str) -> EvidenceFile:
    """The rule of the gates: without an answer a time is the slowest on both arms, as failing fast is not
    fast, and any other value is missing."""
    unanswered = _lacking(evidence, metric)
    if metric in UNANSWERED or not unanswered.any():
        return evidence
    values = np.asarray(evidence.columns[metric], dtype=np.float64)
    answered = values[~unanswered & ~np.isnan(values)]
    slowest = max(SLOWEST_S * 1000.0, float(answered.max(initial=0.0))) if metric in TIMES else np.nan
    columns = {**evidence.columns, metric: np.where(unanswered, slowest, values)}
    return replace(evidence, columns=columns)


def _in_blind_order(evidence: EvidenceFile) -> dict[str, Column]:
    """The columns in an order of assignment in which ties do not depend on the arm."""
    columns = dict(evidence.columns)
    key = np.zeros(evidence.rows, dtype=np.int64)
    if "unit" in columns:
        names, which = np.unique(columns["unit"], return_inverse=True)
        key = np.array([unit_hash(str(name)) for name in names], dtype=np.int64)[which]
    at_s = np.asarray(columns["t_s"], dtype=np.float64)
    order = tie_order(at_s, lambda rows: [(int(key[row]), unit_hash(str(row))) for row in rows.tolist()])
    return columns if order is None else {name: column[order] for name, column in columns.items()}


def _units(columns: Mapping[str, Column], metric: str, question: AbQuestion) -> AbUnits:
    y = np.asarray(columns[metric], dtype=np.float64)
    try:
        for value in np.unique(y[~np.isnan(y)]):
            question.check(float(value))
    except ValueError as exc:
        raise BadInput(f"{metric}: {exc}") from exc
    w = np.asarray(columns["w"], dtype=np.float64)
    return units_of_rows(columns.get("unit"), np.asarray(columns["arm"]) == 1, w, _kinds(columns), y)


def _notes(whole: AbResult, parts: Sequence[AbResult], invalid: str | None, units: AbUnits) -> list[str]:
    notes = [f"invalid: {invalid}"] if invalid is not None else []
    if not units.is_broken and (crossing := units.crossing()) is not None:
        notes.append(f"{crossing}; each counts on its first side")
    if (counted := units.how_counted()) is not None:
        notes.append(counted)
    if units.rows_left_out:
        notes.append(f"{units.rows_left_out} rows without a coin of their own are left out")
    if any(result.verdict is AbVerdict.TOO_FEW for result in (whole, *parts)):
        notes.append(f"too few: a fixed test needs at least {MIN_PER_SIDE} units per side")
    if parts:
        notes.append(f"p and verdict of {len(parts)} categories are corrected for their number (Holm)")
    notes.append(f"{whole.method}, alpha {whole.alpha:g}; the interval is of the {whole.interval_of}")
    return notes


def _row(category: str, result: AbResult, p: float, verdict: AbVerdict) -> dict[str, object]:
    figures = {key: getattr(result, key) for key in RESULT_KEYS}
    return {"category": category, "verdict": verdict.value, "p": p} | figures
