"""Checked columns of a recorded rollout: invalid values are refused with their row and a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.offline.arrays import Array, RowError, arrays_of, first_row, floats_of, names_of, texts_of
from evaluation.offline.cancelled import if_not_cancelled
from evaluation.offline.duplicates import renamed_copies, repeated_names, repeated_rows
from evaluation.offline.names import KNOWN, refuse_near_misses
from evaluation.policy.gates import StagePlan, check_margins
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.records import LEFT_MS, MIN_W, EvidenceError, is_rate, sampled_name
from evaluation.units.ties import tie_order
from evaluation.units.units import HELD, LEFT_OUT, REQUEST, Assignments, kind_of, unit_hash

NEEDED = ("t_s", "arm", "w")
MAX_STAGES = 1000
MAX_T_S = 1e11  # the year 5138; what is beyond is in milliseconds, 1.78e12 for 2026
Names: TypeAlias = tuple[Array, NDArray[np.bool_]]  # names, and which are missing


@dataclass(frozen=True, slots=True)
class Table:
    """Checked columns, as the pipeline reads them. values: by metric, covariates by name, and `LEFT_MS` where
    requests were cancelled; NaN where missing. failed: without an answer, by an error, rejected or cancelled.
    cancelled: 1 where the client left before an answer or a failure, NaN where that is not known."""

    requests: Assignments
    failed: NDArray[np.bool_]
    values: Mapping[str, Floats]
    cancelled: Floats

    def pick(self, rows: slice | Ints) -> Table:
        """The chosen rows."""
        values = {name: column[rows] for name, column in self.values.items()}
        return Table(self.requests.pick(rows), self.failed[rows], values, self.cancelled[rows])


def policy_for_columns(columns: Mapping[str, ArrayLike], policy: object) -> GatePolicy:
    """The policy with only the gates whose columns exist, and alarms for the other metrics with a column.

    policy: as for `gate_policy_of`. Errors: EvidenceError, also for a column under a misspelt name;
    PolicyError.
    """
    policy = gate_policy_of(policy)
    names = names_of(columns)
    covariates = covariates_of(policy)
    refuse_near_misses(names, ignored=covariates)
    for name in covariates:
        if name not in names:
            unused = [str(other) for other in names if other not in KNOWN]
            near = get_close_matches(name, unused, n=1, cutoff=0.6)
            remedy = f"did you mean {near[0]}?" if near else "give the column, or leave it out of the policy"
            raise EvidenceError(f"column {name} is missing, a covariate of policy {policy.name}; {remedy}")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise EvidenceError(f"columns {', '.join(missing)} are missing; a backtest needs {', '.join(NEEDED)}")
    present = [name for name in CATALOGUE if name in names]
    if not policy.only(*present).gates:
        metrics = ", ".join(dict.fromkeys(gate.metric for gate in policy.gates))
        raise PolicyError(f"no column is gated by policy {policy.name}; give one of {metrics}")
    return policy.with_alarms().only(*present)


def covariates_of(policy: GatePolicy) -> tuple[str, ...]:
    """The covariates that the gates of a policy name."""
    return tuple(dict.fromkeys(name for gate in policy.gates for name in gate.covariates))


def gates_without_column(columns: Mapping[str, ArrayLike], policy: GatePolicy) -> tuple[str, ...]:
    """Names of the policy's gates and ranges that decide and whose metric has no column."""
    names = names_of(columns)
    gates = [gate.name for gate in policy.gates if not gate.is_alarm and gate.metric not in names]
    return (*gates, *(gate.name for gate in policy.observed_ranges if gate.metric not in names))


def checked_stages(stages: object, policy: GatePolicy) -> tuple[StagePlan, ...]:
    """The stages, checked; a single one at the policy's first rung for None. Errors: PolicyError."""
    if stages is None:
        return (StagePlan(0.5, 0),)
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, StagePlan) for stage in stages):
        raise PolicyError(f"stages {stages!r} is not a list of StagePlan; leave it out for one stage")
    if not stages:
        raise PolicyError("stages is empty; leave it out for one stage, or give the plan's")
    for index, stage in enumerate(stages):
        check_margins(f"stages.{index}.margins", stage.margins or {}, policy.gate_kinds())
    return tuple(stages)


def stages_for_columns(stages: object, policy: GatePolicy, present: GatePolicy) -> tuple[StagePlan, ...]:
    """The stages, checked by the whole policy, without the margins of gates that `present` lacks, as rungs
    are: a gate without a column is not judged, and no reason to judge nothing. Errors: PolicyError."""
    plan = checked_stages(stages, policy)
    kinds = present.gate_kinds()
    return tuple(
        stage
        if stage.margins is None
        else replace(stage, margins={name: m for name, m in stage.margins.items() if name in kinds})
        for stage in plan
    )


def checked_seeds(given: Mapping[str, ArrayLike] | None) -> dict[str, Floats]:
    """Stable's own values from before the rollout, checked, by metric. Errors: EvidenceError."""
    out = {}
    for name in () if given is None else names_of(given):
        if name not in VALUES:
            raise EvidenceError(f"seed {name!r} is not a metric of values; use {', '.join(sorted(VALUES))}")
        values = floats_of(arrays_of({name: (given or {})[name]}), name)
        _refuse(f"seed of {name}", values, ~(np.isfinite(values) & (values >= 0.0)), "leave it out")
        out[name] = values
    return out


def checked_table(columns: Mapping[str, ArrayLike], policy: GatePolicy) -> Table:
    """The columns as the pipeline reads them. Errors: EvidenceError."""
    arrays = arrays_of(columns)
    at_s = floats_of(arrays, "t_s")
    if not bool(np.isfinite(at_s).all()):
        raise RowError("t_s is not finite in ", first_row(~np.isfinite(at_s)), "; give seconds")
    if bool((at_s > MAX_T_S).any()):
        row = first_row(at_s > MAX_T_S)
        raise RowError(f"t_s {at_s[row]:.0f} in ", row, " is not in seconds; divide milliseconds by 1000")
    if bool((at_s[1:] < at_s[:-1]).any()):
        row = first_row(at_s[1:] < at_s[:-1]) + 1
        raise RowError("t_s goes back in ", row, f" ({at_s[row]}); sort by time of assignment")
    arm, w = floats_of(arrays, "arm"), floats_of(arrays, "w")
    _refuse("arm", arm, ~((arm == 0.0) | (arm == 1.0)), "0 is stable, 1 the canary")
    _refuse("w", w, ~((w >= 0.0) & (w <= 1.0)), "give P(canary) at the draw, 0..1")
    coin = np.minimum(w, 1.0 - w)
    no_coin = (coin > 0.0) & (coin < MIN_W)
    _refuse("w", w, no_coin, f"give 0 before the canary, or at least {MIN_W:g} (and so far from 1)")
    units = texts_of(arrays, "unit") if "unit" in arrays else None
    kinds, own = _kinds(arrays, units)
    drawn = (kinds != LEFT_OUT) & (kinds != HELD)
    _refuse(
        "w", w, drawn & (((w == 0.0) & (arm == 1.0)) | ((w == 1.0) & (arm == 0.0))), "the arm contradicts it"
    )
    if not drawn.any() and bool((kinds == HELD).any()):
        raise EvidenceError("by assigned_by, tokens hold every row; give the draws of the tokens, too")
    values = {name: _metric(arrays, name) for name in dict.fromkeys(g.metric for g in policy.gates)}
    _refuse_repeats(arrays, at_s, units, own, (arm, w, *values.values()))
    for name in [name for name in map(sampled_name, tuple(values)) if name in arrays]:
        values[name] = floats_of(arrays, name)
        _refuse(name, values[name], ~_is_event(values[name]), "give 1 where a score was drawn for, else 0")
    for name in covariates_of(policy):
        values[name] = floats_of(arrays, name)
        _refuse(name, values[name], np.isinf(values[name]), "give a finite number, NaN when missing")
    if "error" in values:
        error = values["error"]
    else:
        error = _metric(arrays, "error") if "error" in arrays else np.zeros(len(at_s))
    rejected = values.get("rejected")
    if rejected is None:
        rejected = _metric(arrays, "rejected") if "rejected" in arrays else np.zeros(len(at_s))
    failed = (error == 1.0) | (rejected == 1.0)
    cancelled = np.full(len(at_s), np.nan)
    if "cancelled" in arrays:
        given = _metric(arrays, "cancelled")
        cancelled = np.where(failed, 0.0, given)
        values[LEFT_MS] = _left_ms(arrays, cancelled == 1.0)
        values = {name: if_not_cancelled(name, column, given == 1.0) for name, column in values.items()}
    fell_back = floats_of(arrays, "fell_back") if "fell_back" in arrays else np.full(len(at_s), np.nan)
    _refuse("fell_back", fell_back, ~_is_event(fell_back), "give 0 or 1, NaN when unknown")
    requests = Assignments(at_s, arm == 1.0, w, kinds, _units(units, kinds), _stage(arrays, at_s), fell_back)
    table = Table(requests, failed | (cancelled == 1.0), values, cancelled)
    order = tie_order(at_s, lambda rows: _tie_keys(arrays, units, rows))
    return table if order is None else table.pick(order)


def _tie_keys(arrays: Mapping[str, Array], units: Names | None, rows: Ints) -> list[tuple[int, int]]:
    """Keys by which rows of one moment are ordered: their unit, then their request, or else their row."""
    names = [""] * len(rows) if units is None else [str(name) for name in units[0][rows].tolist()]
    requests = arrays["request_id"][rows].tolist() if "request_id" in arrays else rows.tolist()
    return [(unit_hash(name), unit_hash(str(request))) for name, request in zip(names, requests, strict=True)]


def _metric(arrays: Mapping[str, Array], name: str) -> Floats:
    values = floats_of(arrays, name)
    if name in VALUES:
        bad = np.isinf(values) | (values < 0.0)
        _refuse(name, values, bad, "give a finite number of at least 0, NaN when missing")
    elif is_rate(name):
        _refuse(name, values, ~_is_event(values), "give 0 or 1 for each request, NaN when missing")
    else:
        bad = (values < 0.0) | (values > 1.0)
        _refuse(name, values, bad, "give a number in 0..1, NaN when missing")
    return values


def _left_ms(arrays: Mapping[str, Array], cancelled: NDArray[np.bool_]) -> Floats:
    """How long the clients waited that left; NaN for others and where not known. A log's latency is that."""
    column = next((name for name in (LEFT_MS, "latency_ms") if name in arrays), None)
    waited = np.full(len(cancelled), np.nan) if column is None else floats_of(arrays, column)
    bad = cancelled & (np.isinf(waited) | (waited < 0.0))
    _refuse(LEFT_MS, waited, bad, "give a finite number of at least 0, NaN when missing")
    return np.where(cancelled, waited, np.nan)


def _is_event(values: Floats) -> NDArray[np.bool_]:
    is_event: NDArray[np.bool_] = (values == 0.0) | (values == 1.0) | np.isnan(values)
    return is_event


def _stage(arrays: Mapping[str, Array], at_s: Floats) -> Ints:
    if "stage" not in arrays:
        return np.zeros(len(at_s), dtype=np.int64)
    stage = floats_of(arrays, "stage")
    bad = ~((stage >= 0.0) & (stage < MAX_STAGES) & (stage == np.floor(stage)))
    _refuse("stage", stage, bad, "give the stage's index, from 0")
    return stage.astype(np.int64)


def _refuse(name: str, values: Floats, bad: NDArray[np.bool_], remedy: str) -> None:
    if bool(bad.any()):
        row = first_row(bad)
        raise RowError(f"{name} {values[row]} in ", row, f" cannot be evidence; {remedy}")


def _refuse_repeats(
    arrays: Mapping[str, Array],
    at_s: Floats,
    units: Names | None,
    own: NDArray[np.bool_],
    others: Sequence[Floats],
) -> None:
    names: Array = at_s if units is None else units[0]
    name, remedy = "t_s" if units is None else "unit", "drop one, or give each a request_id"
    if "request_id" in arrays:
        name, remedy = "request_id", "drop one"
        names, missing = texts_of(arrays, name)
        if missing.any():
            raise RowError("request_id is missing in ", first_row(missing), "; give all, or none")
        repeated = repeated_names(names, ~missing)
        if not repeated.any() and (copies := renamed_copies(at_s, others)).any():
            raise copy_error(names, copies)
    else:
        repeated = repeated_rows(at_s, None if units is None else names, others)
        if units is not None and not repeated.any():
            repeated = repeated_names(names, own & ~units[1])
            remedy += ", or use sticky where a user has many"
    if repeated.any():
        row = first_row(repeated)
        after = f" cannot be evidence; the request is a duplicate; {remedy}"
        raise RowError(f"{name} {names[row]} in ", row, after)


def copy_error(names: Array | None, copies: NDArray[np.bool_]) -> RowError:
    """The refusal of rows that stand in the table twice. names: their ids."""
    row, id = first_row(copies), "" if names is None else f"request_id {names[first_row(copies)]} in "
    after = f" equals another row in all but its id, as do {int(copies.sum()) - 1} more: drop each second one"
    return RowError(id, row, after)


def _kinds(arrays: Mapping[str, Array], units: Names | None) -> tuple[Ints, NDArray[np.bool_]]:
    """How each row was assigned, and which rows are their own unit because `assigned_by` is `request`.

    Without that column, units are sticky keys if any is repeated, and each request is its own unit otherwise.
    """
    rows = len(arrays["t_s"])
    if "assigned_by" not in arrays:
        is_sticky = units is not None and bool(repeated_names(units[0], ~units[1]).any())
        word = "sticky" if is_sticky else "request"
        return np.full(rows, kind_of(word), dtype=np.int64), np.full(rows, not is_sticky)
    words, missing = texts_of(arrays, "assigned_by")
    if missing.any():
        raise RowError("assigned_by is missing in ", first_row(missing), "; use request or sticky")
    if rows and bool((words == words[0]).all()):
        return np.full(rows, _kind(words, words[0]), dtype=np.int64), np.full(rows, words[0] == "request")
    known, which = np.unique(words, return_inverse=True)
    return np.array([_kind(words, word) for word in known], dtype=np.int64)[which], words == "request"


def _kind(words: Array, word: object) -> int:
    try:
        return kind_of(str(word))
    except EvidenceError as exc:
        raise RowError("", first_row(words == word), f": {exc}") from exc


def _units(units: Names | None, kinds: Ints) -> Ints:
    out = np.zeros(len(kinds), dtype=np.int64)
    sticky = np.flatnonzero(kinds > REQUEST)
    if len(sticky) == 0:
        return out
    if units is None:
        raise EvidenceError("column unit is missing; sticky rows need the name of the unit")
    names, missing = units
    if missing[sticky].any():
        row = int(sticky[first_row(missing[sticky])])
        raise RowError("unit is missing in ", row, "; sticky rows need the name of the unit")
    unique, which = np.unique(names[sticky], return_inverse=True)
    out[sticky] = np.array([unit_hash(str(name)) for name in unique], dtype=np.int64)[which]
    return out
