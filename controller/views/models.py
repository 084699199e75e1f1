"""The shapes of the one read model: what the API answers, the command line shows and `view.py` makes.

JSON-able (no NaN, no infinity: they become null), with `view` as its version: fields may be added under the
same number, never taken away.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from controller.quantities import duration, percent
from controller.rollout.state import Phase
from evaluation.report import Verdict


def finite(value: float | None) -> float | None:
    """The value; None for one that JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


Real = Annotated[float | None, BeforeValidator(finite)]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GateView(_View):
    """One gate: how far its evidence is from deciding. `progress_ratio` 1 means that it has decided."""

    gate: str
    metric: str
    side: str
    verdict: Verdict
    log_e: Real
    limit: Real
    progress_ratio: float
    reason: str
    n_canary: int
    n_stable: int
    canary: Real
    stable: Real
    low: Real
    high: Real


class StageView(_View):
    number: int  # from 1
    weight_bp: int
    duration_s: float
    min_canary: int
    deadline_s: float
    replicas: int
    status: Literal["done", "now", "ahead"]
    promote_if_point_ok: bool = False  # at its deadline, unproven: goes on where estimates are within margins


class PassView(_View):
    """How a stage was left upwards. Counts are of the whole rollout; null: not known, or nothing to prove."""

    number: int  # from 1
    weight_bp: int
    how: Literal["proven", "waived", "point_estimates"]  # only the first is a proof
    at_s: float
    held_s: float
    canary_requests: int | None
    proven_canary: int | None
    proven_after_s: float | None
    last_gate: str | None
    nearest_gate: str | None  # the rollback gate that came nearest to firing
    nearest_ratio: float | None


class HoldView(_View):
    kind: str
    actor: str
    reason: str
    since_s: float


class AlarmView(_View):
    """Harm shown in one segment of the traffic; it decides nothing."""

    gate: str
    segment: str
    text: str
    canary_requests: int
    at_s: float


class CauseView(_View):
    kind: str
    text: str
    actor: str


class StepsView(_View):
    """A version on its way out; null: that step is not done."""

    leaving: str
    staying: str
    step: str
    cancelled: bool
    traffic_shift_ms: Real
    drain_ms: Real
    unload_ms: Real
    total_ms: Real


class LogView(_View):
    seq: int
    at_s: float
    actor: str
    text: str


class RolloutView(_View):
    """A rollout as people and programs see it."""

    view: Literal[1] = 1
    rollout: str
    service: str
    stable: str
    canary: str
    serving: str
    phase: Phase
    stage: int | None  # from 1; null: in no stage
    stages: tuple[StageView, ...]
    weight_bp: int
    holdback_bp: int
    twin: bool = False  # stable against itself: never promoted
    passed: tuple[PassView, ...] = ()
    risk: str
    risk_reasons: tuple[str, ...]
    reason: str
    waiting_for: tuple[str, ...]
    started_at_s: float
    entered_at_s: float
    acked_at_s: float | None
    deadline_at_s: float | None
    is_final: bool
    exit_code: int | None
    holds: tuple[HoldView, ...]
    verdict: Verdict | None  # null: no evidence was read
    canary_requests: int
    stable_requests: int
    gates: tuple[GateView, ...]
    missing: tuple[str, ...]
    guards: tuple[str, ...]
    notes: tuple[str, ...]
    alarms: tuple[AlarmView, ...] = ()  # of segments: shown, told once, never deciding
    cause: CauseView | None
    decisive: GateView | None
    # Canary requests settled at the newest PASS, or when a gate fired; null: none, or an older controller.
    decided_canary: int | None = None
    steps: StepsView | None
    log: tuple[LogView, ...]


class VersionView(_View):
    version: str
    phase: str
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None
    last_error: str | None


class ServiceView(_View):
    """A service: what it serves, where, on what."""

    view: Literal[1] = 1
    service: str
    url: str
    stable: str
    weight_bp: int | None  # null: the route table cannot be read
    versions: tuple[VersionView, ...] | None  # null: the fleet cannot be read
    rollout: RolloutView | None  # the newest; null: there was none


class ForecastView(_View):
    """One stage with a harmless canary. Seconds from the stage's weight; null: not by its deadline."""

    number: int  # from 1
    weight_bp: int
    proven_ratio: float  # of simulated runs, by the deadline
    requests_median: float | None
    requests_p90: float | None
    seconds_median: float | None
    seconds_p90: float | None
    slowest_gate: str | None
    finds: tuple[str, ...]  # the smallest harm that nine runs in ten find, by gate
    refusal: str | None  # why the stage can prove nothing, and the remedy
    runs: int = 0  # simulated of this stage
    proven_runs: int = 0  # of them, by the deadline
    simulated_requests: float | None = None  # canary requests after which runs were ended; null: none was

    def __str__(self) -> str:
        """The stage as one line."""
        at = f"stage {self.number} at {percent(self.weight_bp)}"
        if self.refusal is not None:
            return f"stage {self.number}: {self.refusal}"
        if self.seconds_median is None:
            far = "its deadline"
            if self.simulated_requests is not None:
                far = f"{self.simulated_requests:.0f} canary requests, no further simulated"
            return f"{at}: proven in {self.proven_runs} of {self.runs} runs by {far}"
        late = "later than its deadline" if self.seconds_p90 is None else duration(round(self.seconds_p90))
        last = f", last by {self.slowest_gate}" if self.slowest_gate else ""
        return f"{at}: proven after {duration(round(self.seconds_median))}, nine in ten {late}{last}"


class PlanView(_View):
    """What a rollout would do."""

    view: Literal[1] = 1
    twin: bool = False  # stable against itself: ends after its last stage, never promoted
    service: str
    stable: str
    canary: str
    risk: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]  # to be shown in red
    stages: tuple[StageView, ...]
    holdback_bp: int
    bake_s: float
    shortest_s: float  # all stages and the bake, if every proof is there in time
    alpha: float
    gates: tuple[str, ...]
    latency: tuple[str, ...] = ()  # where it can be proven, where it cannot, and why
    fits: bool
    capacity: str
    requests_per_s: Real = None  # what the forecast stands on; null: not known
    unit_requests: float | None = None  # mean requests of one randomised unit
    forecast: tuple[ForecastView, ...] | None = None  # null: not made; `forecast_note` says why
    forecast_runs: int | None = None  # most simulated runs of a stage
    forecast_note: str | None = None
    users: int | None = None  # distinct users who return; null: new ones keep coming
    basis: tuple[str, ...] = ()  # what was measured of stable, and what was not and is taken as typical

    @property
    def decision_s(self) -> tuple[float | None, float | None]:
        """All stages, in seconds: at the median, and at the sum of the 90th percentiles. None: not known."""
        found = self.forecast or ()
        median, p90 = [one.seconds_median for one in found], [one.seconds_p90 for one in found]
        return _sum(median), _sum(p90)


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None
