"""The columns of a recorded rollout, checked: what cannot be evidence is refused, with row and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.betting import Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.policy import GatePolicy, PolicyError
from evaluation.records import EvidenceError
from evaluation.units import HELD, LEFT_OUT, REQUEST, kind_of, unit_hash

Array = NDArray[np.generic]
NEEDED = ("t_s", "arm", "w", "assigned_by")


@dataclass(frozen=True, slots=True)
class Table:
    """Checked columns: what the pipeline takes."""

    at_s: Floats
    arm: NDArray[np.bool_]
    w: Floats
    kind: Ints
    unit: Ints
    stage: Ints
    fell_back: Floats
    failed: NDArray[np.bool_]
    values: Mapping[str, Floats]


def gated(columns: Mapping[str, Array], policy: str | GatePolicy | None) -> GatePolicy:
    """The policy (None: `default`) with the gates whose columns are there. Errors: EvidenceError,
    PolicyError."""
    policy = policy if isinstance(policy, GatePolicy) else GatePolicy.named(policy or "default")
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise EvidenceError(f"columns {', '.join(missing)} are missing; a backtest needs {', '.join(NEEDED)}")
    present = [name for name in CATALOGUE if name in columns]
    chosen = policy.only(*present)
    if not chosen.gates:
        raise PolicyError(f"no column is gated by policy {policy.name}; give one of {_names(policy)}")
    return chosen


def _names(policy: GatePolicy) -> str:
    return ", ".join(dict.fromkeys(gate.metric for gate in policy.gates))


def checked(columns: Mapping[str, Array], policy: GatePolicy) -> Table:
    """The columns as the pipeline takes them. Errors: EvidenceError."""
    at_s = _floats(columns, "t_s")
    for name, column in columns.items():
        if len(column) != len(at_s):
            raise EvidenceError(f"column {name} has {len(column)} rows, t_s has {len(at_s)}; make them equal")
    if not bool(np.isfinite(at_s).all()):
        raise EvidenceError(f"t_s is not finite in row {_first(~np.isfinite(at_s))}; give seconds")
    if len(at_s) > 1 and bool((np.diff(at_s) < 0.0).any()):
        row = _first(np.diff(at_s) < 0.0) + 1
        raise EvidenceError(f"t_s goes back in row {row} ({at_s[row]}); sort by time of assignment")
    arm, w = _floats(columns, "arm"), _floats(columns, "w")
    _refuse("arm", arm, ~np.isin(arm, (0.0, 1.0)), "0 is stable, 1 the canary")
    _refuse("w", w, ~((w >= 0.0) & (w <= 1.0)), "give P(canary) at the draw, 0..1")
    kinds = _kinds(columns["assigned_by"])
    drawn = (kinds != LEFT_OUT) & (kinds != HELD)
    _refuse(
        "w", w, drawn & (((w == 0.0) & (arm == 1.0)) | ((w == 1.0) & (arm == 0.0))), "the arm contradicts it"
    )
    _refuse(
        "request_id", w, _repeats(columns.get("request_id")), "a request is there twice; drop the repeats"
    )
    if "unit" in columns:
        _refuse(
            "t_s",
            at_s,
            _told_twice(columns["unit"], at_s, kinds),
            "the same request is there twice; drop one",
        )
    values = {name: _metric(columns, name) for name in dict.fromkeys(g.metric for g in policy.gates)}
    error = values.get("error", _metric(columns, "error") if "error" in columns else np.zeros(len(at_s)))
    stage = columns["stage"].astype(np.int64) if "stage" in columns else np.zeros(len(at_s), dtype=np.int64)
    fell_back = _floats(columns, "fell_back") if "fell_back" in columns else np.full(len(at_s), np.nan)
    return Table(at_s, arm == 1.0, w, kinds, _units(columns, kinds), stage, fell_back, error == 1.0, values)


def _metric(columns: Mapping[str, Array], name: str) -> Floats:
    values = _floats(columns, name)
    bad = np.isinf(values) | (values < 0.0)
    what = "give a finite number of at least 0, NaN when missing"
    if CATALOGUE[name].unit.startswith(("share", "score")):
        bad |= values > 1.0
        what = "give a number in 0..1, NaN when missing"
    _refuse(name, values, bad, what)
    return values


def _floats(columns: Mapping[str, Array], name: str) -> Floats:
    try:
        return np.ascontiguousarray(columns[name], dtype=np.float64)
    except (TypeError, ValueError) as exc:
        raise EvidenceError(f"column {name} is not numeric; give floats, NaN when missing") from exc


def _refuse(name: str, values: Floats, bad: NDArray[np.bool_], remedy: str) -> None:
    if bool(bad.any()):
        row = _first(bad)
        raise EvidenceError(f"{name} {values[row]} in row {row} cannot be evidence; {remedy}")


def _first(flags: NDArray[np.bool_]) -> int:
    return int(np.argmax(flags))


def _repeats(ids: Array | None) -> NDArray[np.bool_]:
    if ids is None:
        return np.zeros(1, dtype=np.bool_)
    _, first = np.unique(ids, return_index=True)
    again = np.ones(len(ids), dtype=np.bool_)
    again[first] = False
    return again


def _told_twice(unit: Array, at_s: Floats, kinds: Ints) -> NDArray[np.bool_]:
    """Where a per-request unit comes again in the next row at the very same moment."""
    again = np.zeros(len(at_s), dtype=np.bool_)
    again[1:] = (at_s[1:] == at_s[:-1]) & (unit[1:] == unit[:-1]) & (kinds[1:] == REQUEST)
    return again


def _kinds(assigned_by: Array) -> Ints:
    if len(assigned_by) and bool((assigned_by == assigned_by[0]).all()):
        return np.full(len(assigned_by), kind_of(str(assigned_by[0])), dtype=np.int64)
    words, which = np.unique(assigned_by, return_inverse=True)
    return np.array([kind_of(str(word)) for word in words], dtype=np.int64)[which]


def _units(columns: Mapping[str, Array], kinds: Ints) -> Ints:
    out = np.zeros(len(kinds), dtype=np.int64)
    sticky = np.flatnonzero(kinds > REQUEST)
    if len(sticky) == 0:
        return out
    if "unit" not in columns:
        raise EvidenceError("column unit is missing; sticky rows need the name of what was drawn")
    names, which = np.unique(columns["unit"][sticky], return_inverse=True)
    out[sticky] = np.array([unit_hash(str(name)) for name in names], dtype=np.int64)[which]
    return out
