"""Evaluation report: the verdict on a stage, with a report for each gate and side."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Side = Literal["rollback", "promotion", "guard"]


class Verdict(StrEnum):
    """PASS: proven. FAIL: harm shown. UNDECIDED: more evidence is needed. INVALID: the evidence is unusable,
    and more of it will not help."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"
    INVALID = "INVALID"


class Source(StrEnum):
    """Whether a metric's values arrive. ARRIVES: they do, or it is too early to say. NEVER: none has arrived,
    so the gate is not judged. STOPPED: they arrived, and no longer do."""

    ARRIVES = "arrives"
    NEVER = "never"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class GateReport:
    """Current state of one gate, on one side.

    `log_e`: the maximum log wealth so far; `limit`: where it decides. `stable` and `canary` are point
    estimates in the metric's unit; infinite: a percentile that lies among the requests without an answer.
    `interval`: the anytime-valid interval of their ratio (rates, values) or difference (scores), for display;
    None: no evidence yet. `effective_units`: of both arms, each unit once.
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
    is_alarm: bool = False  # it never decides; `decided_canary` is then where it was raised
    source: Source = Source.ARRIVES
    last_value_s: float | None = None  # when the request of the last value was assigned; None: no value yet
    statistic: str = "mean"  # that `stable` and `canary` estimate: mean, p50, p99, ...
    # Of values: shares of stable's and the canary's requests without an answer, which count as slowest.
    unanswered: tuple[float, float] | None = None
    limits: str = ""  # what this side asks: `above 1.1x` is worse, `< 1.2x` is proven


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Report on the whole rollout and its current stage.

    `rollback`: the gate that showed harm first; it stays. `stage_verdict`: PASS when all margins of the stage
    are proven on enough canary requests, FAIL when `rollback` is set, INVALID when needed evidence is
    unusable, else UNDECIDED. `missing`: why it is not PASS. `frozen`: sample ratio mismatch, so statistics
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
