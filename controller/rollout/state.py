"""The frozen vocabulary of a rollout: what it is, what was seen, what to do. No decision is taken here.

Every value is immutable and JSON-able through `codec.py`. Times are float seconds since the epoch (`*_s`),
weights integer basis points (`*_bp`, 10,000 = 100 %), memory in bytes. `rollout.py` owns every transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from evaluation.report import EvaluationReport, GateReport, Verdict

FULL_BP = 10_000


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


# Settled canary requests that no stage reaches: an A/B test's stage is never passed.
NEVER_CANARY = 1_000_000_000
FINAL = frozenset({Phase.SUCCEEDED, Phase.ROLLED_BACK, Phase.FAILED})
# The phases in which users may be answered by the canary.
LIVE = frozenset({Phase.STAGE, Phase.PROMOTING, Phase.BAKING})


class VersionPhase(StrEnum):
    """Where the fleet has a version. GONE means that its memory was seen freed."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"
    FAILED = "failed"


# --- the plan, pinned when the rollout starts


@dataclass(frozen=True, slots=True)
class VersionRef:
    """One arm of a rollout. external: an endpoint that we do not load, stop or fence."""

    id: str
    replicas: int = 1
    external: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """One rung of the ladder, below 100 %."""

    weight_bp: int  # share of the canary, 1..9999
    duration_s: float  # at least so long after the weight was acknowledged
    min_canary: int  # at least so many canary units settled in this stage
    deadline_s: float  # after that without PASS: held as not proven, and a page
    replicas: int  # canary replicas that must be ready before this weight is set
    on_missing: Literal["hold", "rollback"] = "hold"  # metrics missing at the deadline
    promote_if_point_ok: bool = (
        False  # at the deadline, unproven: go on where the estimates are within margins
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was decided before the first request; a changed spec is another rollout."""

    risk: str
    reasons: tuple[str, ...]
    stages: tuple[Stage, ...]
    holdback_bp: int  # share kept on stable while the promoted canary bakes
    bake_s: float
    preflight_s: float = 60.0
    load_s: float = 900.0
    warm_s: float = 300.0
    smoke_s: float = 120.0
    promote_s: float = 90.0  # from ready capacity to the last router's acknowledgement
    drain_s: float = 30.0
    count_lag_s: float = 1.0  # counts of requests in flight may be so old (engines report twice a second)
    cancel_s: float = 10.0  # for cancelled requests to be taken over
    unload_s: float = 120.0  # after that the memory that was not freed is somebody's to look at
    unreadable_s: float = 60.0  # of an unreadable data plane before a rollback
    unready_s: float = 30.0  # without one ready canary replica before a rollback
    hold_limit_s: float = 259_200.0  # of not being proven before weight 0
    warmup_tokens: int = 256
    replicas: int | None = None  # of the canary at full traffic; None: an endpoint, not ours to know
    stable_replicas: int | None = None
    twin: bool = False  # stable against itself: goes through all stages, and is never promoted

    @property
    def is_test(self) -> bool:
        """True: an A/B test's, held until someone ends it, and never promoted by itself."""
        return any(stage.min_canary >= NEVER_CANARY for stage in self.stages)


# --- the state


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
    asks_through: int = 0  # the last request of a person that was taken in
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


LOG_KEPT = 200


# --- what was seen (what cannot be read is None, never a guess)


@dataclass(frozen=True, slots=True)
class SplitSight:
    """The route table.

    applied: every live router acknowledged it, or is fenced, or its lease passed (`how` says which).
    """

    epoch: int
    revision: int
    stable: str | None  # None: no version was put into service yet
    canary: str | None  # None: no canary in the table
    weight_bp: int
    applied: bool
    how: str = "acknowledged"


@dataclass(frozen=True, slots=True)
class VersionSight:
    """One version in the fleet; a version that is not listed is gone."""

    version: str
    phase: VersionPhase
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None = None  # None: not measured
    last_error: str | None = None  # None: none
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GuardSight:
    """A guard that fires now. both_arms: stable is as bad, so it is not the canary's doing: hold and page."""

    name: str
    text: str
    both_arms: bool = False


@dataclass(frozen=True, slots=True)
class AlarmSight:
    """Harm shown in one segment of the traffic: it is told once, and decides nothing."""

    gate: str
    segment: str
    text: str
    canary_requests: int  # of the whole rollout, when it was raised
    at_s: float

    @property
    def key(self) -> str:
        """What it is told by, once."""
        return f"{self.gate}/{self.segment}"


@dataclass(frozen=True, slots=True)
class PointSight:
    """Where the point estimates of all that a stage must prove lie. They prove nothing.

    within: each is inside its margin. text: the estimates, or the first that is outside or not to be had.
    """

    within: bool
    text: str


@dataclass(frozen=True, slots=True)
class EvidenceSight:
    """The evaluator's report. `verdict` speaks of promotion out of `stage`, on that stage's own units."""

    stage: int
    verdict: Verdict
    rollback: GateReport | None = None  # not None: a gate fired
    gates: tuple[GateReport, ...] = ()
    missing: tuple[str, ...] = ()  # what cannot be judged, and why; not what is only unproven yet
    canary_requests: int = 0  # settled in this stage
    stable_requests: int = 0
    guards: tuple[GuardSight, ...] = ()
    canary_total: int = 0  # settled since the first stage
    frozen: bool = False  # the split does not look like its weight: statistics decide nothing
    notes: tuple[str, ...] = ()
    alarms: tuple[AlarmSight, ...] = ()  # of segments, all that were raised so far
    points: PointSight | None = None  # None: nobody looked at them

    @classmethod
    def of(
        cls,
        report: EvaluationReport,
        guards: tuple[GuardSight, ...] = (),
        alarms: tuple[AlarmSight, ...] = (),
        points: PointSight | None = None,
    ) -> EvidenceSight:
        """The evaluator's report in the controller's words; guards and alarms are watched beside it."""
        return cls(
            stage=report.stage,
            verdict=report.stage_verdict,
            rollback=report.rollback,
            gates=report.gates,
            missing=tuple(
                f"{gate.gate}: {gate.reason}"
                for gate in report.gates
                if gate.side == "promotion" and gate.verdict is Verdict.INVALID
            ),
            canary_requests=report.stage_canary,
            stable_requests=report.n_stable,
            canary_total=report.n_canary,
            guards=guards,
            frozen=report.frozen,
            notes=report.notes,
            alarms=alarms,
            points=points,
        )


class AskKind(StrEnum):
    """What a person can ask of a running rollout."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"  # to the next stage, without proof
    PROMOTE_FULL = "promote_full"  # past all stages, without proof


@dataclass(frozen=True, slots=True)
class Ask:
    """A person's request, kept by the store in order. Each is taken in once."""

    seq: int
    kind: AskKind
    actor: str
    role: Literal["viewer", "operator", "admin"]
    reason: str
    at_s: float


class ProbeKind(StrEnum):
    PREFLIGHT = "preflight"  # the checkpoint is readable, stable is ready, the second engine fits
    WARM = "warm"  # warmup_tokens, then a short load at stable's rate
    SMOKE = "smoke"  # a few answers, asked of the canary itself


@dataclass(frozen=True, slots=True)
class ProbeSight:
    """How a probe stands. One that the shell does not know (after a restart) is not listed."""

    kind: ProbeKind
    phase: Literal["running", "passed", "failed"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """The world, read once a tick."""

    now_s: float
    split: SplitSight | None = None  # None: the table could not be read
    versions: tuple[VersionSight, ...] | None = None  # None: the fleet could not be read
    evidence: EvidenceSight | None = None  # None: no evidence could be read
    probes: tuple[ProbeSight, ...] = ()
    asks: tuple[Ask, ...] = ()
    delivered: frozenset[str] = frozenset()  # keys of notices that left
    tombstoned: bool = False  # the table holds a tombstone of this rollout
    resumed: bool = False  # the first look since this controller took the lease: time-outs begin anew


# --- what to do: idempotent, complete ("split = 100 bp"), each returns within 50 ms


@dataclass(frozen=True, slots=True)
class EnsureVersion:
    """Have so many replicas of the version, under its pinned name; revives it when it was draining."""

    version: str
    replicas: int
    kind: Literal["ensure"] = "ensure"


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Publish this table. canary None: all traffic, affinity and force included, is stable's."""

    stable: str
    canary: str | None
    weight_bp: int
    stage: int
    kind: Literal["split"] = "split"


@dataclass(frozen=True, slots=True)
class DrainVersion:
    """Take it out of rotation and let its requests end."""

    version: str
    kind: Literal["drain"] = "drain"


@dataclass(frozen=True, slots=True)
class CancelVersion:
    """End its in-flight requests; the router finishes them on the other arm."""

    version: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class StopVersion:
    """Unload it and free its memory."""

    version: str
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Start the probe, or look how it stands."""

    probe: ProbeKind
    version: str
    warmup_tokens: int = 0
    kind: Literal["probe"] = "probe"


@dataclass(frozen=True, slots=True)
class Notify:
    """Deliver the notice; the same key is delivered once."""

    key: str
    severity: Literal["info", "page"]
    text: str
    kind: Literal["notify"] = "notify"


Action = EnsureVersion | SetSplit | DrainVersion | CancelVersion | StopVersion | RunProbe | Notify
