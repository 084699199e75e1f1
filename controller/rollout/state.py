"""State of a rollout: phase, holds, cause, departure, log. `machine.py` decides every transition.

Every value is immutable and converts to JSON through `serialization.py`. Times are float seconds since the
epoch (`*_s`); those that a limit runs from are moved by what does not count (`elapsed.py`). Weights are
integer basis points (`*_bp`, 10,000 = 100 %).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from controller.rollout.judge_plan import JudgeState
from controller.rollout.plan import Plan, VersionRef
from evaluation.report import GateReport


class Phase(StrEnum):
    """Phase of a rollout. The last three are final."""

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
# Phases in which the canary may answer users.
LIVE = frozenset({Phase.STAGE, Phase.PROMOTING, Phase.BAKING})
# Phases in which the route table names the canary.
PUBLISHED = LIVE | {Phase.MIRRORING}
#: Phases that may end with the canary's first weight.
BEFORE_WEIGHT = frozenset({Phase.SMOKE, Phase.MIRRORING})


class HoldKind(StrEnum):
    """Reason that blocks forward moves. Rollbacks are never blocked."""

    PAUSE = "pause"  # by a manual command
    NOT_PROVEN = "not_proven"  # the stage's deadline passed without PASS
    BOTH_ARMS = "both_arms"  # both arms fail, so the canary is not the cause


@dataclass(frozen=True, slots=True)
class Hold:
    kind: HoldKind
    actor: str
    reason: str
    since_s: float
    quiet_since_s: float | None = None  # BOTH_ARMS: since when neither arm fails; None: both do


class CauseKind(StrEnum):
    """Kind of event that started a rollback."""

    GATE = "gate"
    GUARD = "guard"  # on the canary's answers to users
    PROBE = "probe"  # preflight, warm-up, smoke test or all copies failed: before any user was served
    ENGINE = "engine"  # the canary's engines failed or are not ready
    USER = "user"
    DEADLINE = "deadline"
    UNREADABLE = "unreadable"
    NOT_PROVEN = "not_proven"
    MISSING = "missing"
    TOMBSTONE = "tombstone"


def cause_words(kind: CauseKind | str) -> str:
    """The kind of cause for people, in the log and in tables."""
    return "direct rollback" if kind == CauseKind.TOMBSTONE else str(kind)


@dataclass(frozen=True, slots=True)
class Cause:
    kind: CauseKind
    text: str
    actor: str = "controller"


class DepartureStep(StrEnum):
    """Steps of a departure, in order: traffic first, then capacity."""

    RESTORE = "restore"  # the staying version is loaded again, because it was unloaded or does not answer
    SHIFT = "shift"  # all traffic moves to the staying version, acknowledged and fenced
    DRAIN = "drain"  # in-flight requests finish
    CANCEL = "cancel"  # unfinished requests are taken over by the staying version
    UNLOAD = "unload"  # stopped, memory release confirmed


@dataclass(frozen=True, slots=True)
class Departure:
    """A version being removed: the canary in RollingBack, the old stable (or a twin) in Unloading.

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
    cancelled: bool = False  # the drain limit was reached and requests were taken over
    # The leaving version's weight while the other does not answer; 0: none, because its answers do harm, a
    # person took it out, or nobody was served by it.
    kept_bp: int = 0
    kept_since_s: float | None = None  # since when it stays on because the other does not answer
    # The leaving version was stable in a table of its own: a rollback out of Unloading.
    promoted: bool = False


@dataclass(frozen=True, slots=True)
class StageProof:
    """What one gate had shown of its margin when its stage was left, in the metric's unit."""

    gate: str
    metric: str
    is_proven: bool
    reason: str  # the margin and whether it is proven
    stable: float | None
    canary: float | None
    n_stable: int
    n_canary: int
    statistic: str = "mean"  # that `stable` and `canary` estimate
    decided_canary: int | None = None  # canary requests settled at the proof; None: not proven


@dataclass(frozen=True, slots=True)
class Readiness:
    """Ready replicas of one arm, as the ticks saw them."""

    count: int | None = None  # None: not read yet
    changed_at_s: float | None = None  # when the count changed last; None: not since it was first read
    is_falling: bool = False  # the last change was a fall
    rose_at_s: float | None = None  # when the count rose last; None: not since it was first read
    fell_at_s: float | None = None  # of a fall that is no loss yet; None: there is none
    fell_from: int = 0  # the count before that fall
    fell_soon: bool = False  # that fall came soon after a rise
    last_lost_at_s: float | None = None  # None: no replica was lost
    early_losses_at_s: tuple[float, ...] = ()  # losses soon after a rise, the newest last
    drained: int = 0  # replicas that left by order, as the fleet counted them last


@dataclass(frozen=True, slots=True)
class ArmAnswers:
    """Whether one arm has a replica that answers, as the ticks that could read the fleet saw it."""

    is_ready: bool | None = None  # at the last reading; None: never read
    lost_at_s: float | None = None  # when it was lost last; None: never
    back_at_s: float | None = None  # when it came back last; None: never


@dataclass(frozen=True, slots=True)
class Answers:
    """Both arms, and when the fleet was last read."""

    stable: ArmAnswers = ArmAnswers()
    canary: ArmAnswers = ArmAnswers()
    read_at_s: float | None = None  # since when it cannot be read; None: it can


StageExit = Literal["proven", "waived", "point_estimates"]


@dataclass(frozen=True, slots=True)
class PassedStage:
    """A stage that was left forward, and the evidence for it. Counts are of the whole rollout."""

    stage: int
    weight_bp: int
    how: StageExit  # point_estimates: not proven
    at_s: float
    held_s: float  # since the weight was acknowledged by every router
    canary_requests: int | None  # settled by then; None: the evidence could not be read
    proven_canary: int | None = None  # settled when the last gate was proven; None: no gate to prove
    proven_after_s: float | None = None  # from the acknowledgement to that proof
    last_gate: str | None = None
    nearest_gate: str | None = None  # the rollback gate that came closest to firing
    nearest_ratio: float | None = None  # its evidence of harm; it fires at 1
    proofs: tuple[StageProof, ...] = ()  # of each gate that the stage had to prove; older releases kept none


@dataclass(frozen=True, slots=True)
class LogLine:
    seq: int  # 1, 2, 3 ... within the rollout
    at_s: float
    text: str
    actor: str = "controller"


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to people; it stays in the outbox until it is delivered or too old."""

    key: str  # the same key is delivered once
    severity: Literal["info", "page"]
    text: str
    since_s: float


MAX_LOG_LINES = 200


@dataclass(frozen=True, slots=True)
class RolloutState:
    """The complete state of a rollout. It is committed before its actions are performed."""

    id: str
    service: str
    stable: VersionRef  # in production when the rollout started
    canary: VersionRef
    plan: Plan
    phase: Phase
    entered_at_s: float
    deadline_at_s: float | None  # None: this phase has no time limit
    reason: str
    started_at_s: float = 0.0
    stage: int = 0  # index into plan.stages; len(plan.stages) from Promoting on
    weight_bp: int = 0  # weight of the canary that the routers should apply
    acked_at_s: float | None = None  # when every live router had acknowledged this phase's weight
    holds: tuple[Hold, ...] = ()
    launched: bool = False  # the canary may hold memory
    exposed: bool = False  # a route table with the canary may exist
    waived_through: int = -1  # stages up to this index need no proof, by manual command
    pairs_waived: bool = False  # mirrored pairs need no verdict, by manual command
    unreadable_since_s: float | None = None  # the data plane is unreadable, or does not apply the split
    unready_since_s: float | None = None  # no canary replica is ready
    # What this phase waits for, evidence aside in Promoting, is not there; None: it was at the last tick.
    lacking_since_s: float | None = None
    missing_since_s: float | None = None  # the evidence that this phase needs is missing
    canary_ready: Readiness = Readiness()
    stable_ready: Readiness = Readiness()
    answers: Answers = Answers()
    both_arms_paged_at_s: float | None = None  # when a failure of both arms was paged last
    departure: Departure | None = None
    cause: Cause | None = None  # of the rollback or failure
    judge: JudgeState = field(default_factory=JudgeState)
    decisive: GateReport | None = None  # the gate that fired
    decided_canary: int | None = None  # canary requests settled when it was proven good or harmful
    passed: tuple[PassedStage, ...] = ()  # in order
    commands_through: int = 0  # seq of the last manual command applied
    alarmed: tuple[str, ...] = ()  # keys of the segment alarms already published
    log: tuple[LogLine, ...] = ()  # the newest MAX_LOG_LINES
    log_count: int = 0
    outbox: tuple[Notice, ...] = ()
    ticked_at_s: float = 0.0  # of the last tick that was committed; 0.0: not known, by an older release

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL

    @property
    def serving(self) -> str:
        """Id of the current stable version, as in the route table and the service row."""
        return self.stable.id if self.departure is None else self.departure.staying

    def title(self, version: str) -> str:
        """An arm's id and label, for people."""
        return next((arm.title for arm in (self.stable, self.canary) if arm.id == version), version)

    @property
    def is_canary_leaving(self) -> bool:
        """True: the canary is departing, and stable gets all traffic as soon as it can answer."""
        return self.departure is not None and self.departure.staying == self.stable.id

    def is_late(self, now_s: float) -> bool:
        """True: the deadline of this phase or departure step has passed."""
        return self.deadline_at_s is not None and now_s >= self.deadline_at_s
