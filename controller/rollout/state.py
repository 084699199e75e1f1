"""The state of a rollout: phase, holds, cause, steps of a departure, log. No decision is taken here.

Every value is immutable and JSON-able through `serialization.py`. Times are float seconds since the epoch
(`*_s`), weights integer basis points (`*_bp`, 10,000 = 100 %). `machine.py` owns every transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from controller.rollout.plan import Plan, VersionRef
from evaluation.report import GateReport


class Phase(StrEnum):
    """Where a rollout stands. The last three absorb."""

    PLANNING = "planning"
    PREFLIGHT = "preflight"
    LOADING = "loading"
    WARMING = "warming"
    SMOKE = "smoke"
    MIRRORING = "mirroring"
    STAGE = "stage"
    PROMOTING = "promoting"
    BAKING = "baking"
    UNLOADING = "unloading"
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


FINAL = frozenset({Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.FAILED})
# The phases in which users may be answered by the canary.
LIVE = frozenset({Phase.STAGE, Phase.PROMOTING, Phase.BAKING})


class HoldKind(StrEnum):
    """Why forward moves are blocked. Backward moves never are."""

    PAUSE = "pause"  # a person said so
    NOT_PROVEN = "not_proven"  # the stage's deadline passed without PASS
    BOTH_ARMS = "both_arms"  # both arms fail: not the canary's doing


@dataclass(frozen=True, slots=True)
class Hold:
    kind: HoldKind
    actor: str
    reason: str
    since_s: float


class CauseKind(StrEnum):
    """What started a rollback."""

    GATE = "gate"
    GUARD = "guard"
    USER = "user"
    DEADLINE = "deadline"
    UNREADABLE = "unreadable"
    NOT_PROVEN = "not_proven"
    MISSING = "missing"
    TOMBSTONE = "tombstone"


@dataclass(frozen=True, slots=True)
class Cause:
    kind: CauseKind
    text: str
    actor: str = "controller"


class DepartureStep(StrEnum):
    """The order in which a version leaves: traffic first, then capacity."""

    RESTORE = "restore"  # the version that stays is brought back first (a rollback out of Unloading)
    SHIFT = "shift"  # the other version has all traffic, acknowledged and fenced
    DRAIN = "drain"  # in-flight requests end by themselves
    CANCEL = "cancel"  # those that did not are taken over
    UNLOAD = "unload"  # stopped, memory seen freed


@dataclass(frozen=True, slots=True)
class Departure:
    """A version on its way out: the canary in RollingBack, the old stable in Unloading.

    Times in ms; None: that step is not done.
    """

    leaving: str
    staying: str
    step: DepartureStep
    started_at_s: float
    step_at_s: float
    traffic_shift_ms: float | None = None
    drain_ms: float | None = None
    unload_ms: float | None = None
    total_ms: float | None = None
    cancelled: bool = False  # the drain ran out and requests were taken over


Passage = Literal["proven", "waived", "point_estimates"]


@dataclass(frozen=True, slots=True)
class StagePass:
    """How a stage was left upwards, and what it took. Counts are of the whole rollout."""

    stage: int
    weight_bp: int
    how: Passage  # point_estimates: not proven
    at_s: float
    held_s: float  # since the weight stood on every router
    canary_requests: int | None  # settled by then; None: no evidence was read
    proven_canary: int | None = None  # ... when the last gate was proven; None: nothing had to be
    proven_after_s: float | None = None  # from the weight to that proof
    last_gate: str | None = None
    nearest_gate: str | None = None  # the rollback gate that came nearest to firing
    nearest_ratio: float | None = None  # its evidence of harm, 1 is where it fires


@dataclass(frozen=True, slots=True)
class LogLine:
    seq: int  # 1, 2, 3 ... within the rollout
    at_s: float
    text: str
    actor: str = "controller"


@dataclass(frozen=True, slots=True)
class Notice:
    """A message that must leave; it stays in the outbox until it was delivered or gave up."""

    key: str  # the same key is delivered once
    severity: Literal["info", "page"]
    text: str
    since_s: float


LOG_KEPT = 200


@dataclass(frozen=True, slots=True)
class RolloutState:
    """All that a rollout knows of itself. The store writes it before anything is done."""

    id: str
    service: str
    stable: VersionRef  # in production when the rollout started
    canary: VersionRef
    plan: Plan
    phase: Phase
    entered_at_s: float
    deadline_at_s: float | None  # None: this phase has none
    reason: str
    started_at_s: float = 0.0
    stage: int = 0  # index into plan.stages; len(plan.stages) from Promoting on
    weight_bp: int = 0  # what the routers were last told
    acked_at_s: float | None = None  # when this phase's weight stood on every live router
    holds: tuple[Hold, ...] = ()
    launched: bool = False  # the canary may hold memory
    exposed: bool = False  # a table with the canary in it may exist
    waived_through: int = -1  # stages up to this index need no proof: a person said so
    blind_since_s: float | None = None  # the data plane cannot be read, or does not do what it was told
    unready_since_s: float | None = None  # no canary replica is ready
    departure: Departure | None = None
    cause: Cause | None = None  # of the rollback or failure
    decisive: GateReport | None = None  # the gate that fired
    decided_canary: int | None = None  # canary requests settled when it was proven or shown harmful
    passed: tuple[StagePass, ...] = ()  # the stages that were left upwards, in order
    commands_through: int = 0  # the last request of a person that was taken in
    alarmed: tuple[str, ...] = ()  # alarms of segments that have been told
    log: tuple[LogLine, ...] = ()  # the newest LOG_KEPT
    log_count: int = 0
    outbox: tuple[Notice, ...] = ()

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL

    @property
    def serving(self) -> str:
        """Id of the version that is the service's stable now: the route table's and the service row's."""
        return self.stable.id if self.departure is None else self.departure.staying

    @property
    def goes_back(self) -> bool:
        """True: the canary is on its way out, and all traffic on its way to stable."""
        return self.departure is not None and self.departure.staying == self.stable.id
