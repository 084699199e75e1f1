"""From evidence to a verdict: what each gate says, and what the whole says."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Side = Literal["rollback", "promotion", "guard"]


class Verdict(StrEnum):
    """PASS: shown. FAIL: harm shown. UNDECIDED: more evidence is needed. INVALID: no evidence can be had as
    things are."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True)
class GateReport:
    """What one gate says at this moment.

    `log_e`: the largest log wealth so far; `limit`: where it decides. `stable` and `canary` are point
    estimates in the metric's unit, `interval` the anytime-valid interval of their ratio (rates, values) or
    difference (scores), for display. None means that there is nothing to show yet. `effective_units`: of
    both arms, each unit once.
    """

    gate: str
    metric: str
    side: Side
    verdict: Verdict
    log_e: float
    limit: float
    reason: str
    n_canary: int
    n_stable: int
    stable: float | None = None
    canary: float | None = None
    interval: tuple[float, float] | None = None
    effective_units: float = 0.0
    decided_at_s: float | None = None  # None: not decided
    decided_canary: int | None = None  # canary requests settled at the decision; None: not decided
    is_alarm: bool = False  # it never decides; `decided_canary` then says when it rang


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What the whole says. `rollback` is sticky: once a gate has shown harm, nothing takes it back.

    `stage_verdict` is about the stage that runs: PASS when all that it must prove is proven on enough
    canary requests, FAIL when `rollback` is set, INVALID when something it needs cannot be had (`missing`
    says what), else UNDECIDED. `frozen`: the split itself does not look like its weight, so statistics
    neither promote nor roll back.
    """

    stage: int
    stage_verdict: Verdict
    rollback: GateReport | None
    gates: tuple[GateReport, ...]
    missing: tuple[str, ...]
    frozen: bool
    n_canary: int
    n_stable: int
    stage_canary: int
    through_s: float
    late_events: int = 0
    notes: tuple[str, ...] = field(default=())
