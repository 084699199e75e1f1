"""What a tick sees of the world, and questions about it. What could not be read is None, never a guess."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from controller.rollout.actions import ProbeKind, SetSplit
from controller.rollout.state import Phase, RolloutState
from evaluation.report import EvaluationReport, GateReport, Verdict


class VersionPhase(StrEnum):
    """Where the fleet has a version. GONE means that its memory was seen freed."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SplitStatus:
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
    tombstoned: tuple[str, ...] = ()  # rollouts that a direct rollback ended: never again a weight above 0


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version in the fleet; a version that is not listed is gone."""

    version: str
    phase: VersionPhase
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None = None  # None: not measured
    last_error: str | None = None  # None: none
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DataPlaneStatus:
    """Route table and fleet of one service, read together once per tick."""

    read_at_s: float  # the clock before the reads
    split: SplitStatus | None  # None: the table could not be read
    versions: tuple[VersionStatus, ...] | None  # None: the fleet could not be read


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """A guard that fires now. both_arms: stable is as bad, so it is not the canary's doing: hold and page."""

    name: str
    text: str
    both_arms: bool = False


@dataclass(frozen=True, slots=True)
class Alarm:
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
class PointEstimates:
    """Where the point estimates of all that a stage must prove lie. They prove nothing.

    within: each is inside its margin. text: the estimates, or the first that is outside or not to be had.
    """

    within: bool
    text: str


@dataclass(frozen=True, slots=True)
class EvidenceStatus:
    """The evaluator's report. `verdict` speaks of promotion out of `stage`, on that stage's own units."""

    stage: int
    verdict: Verdict
    rollback: GateReport | None = None  # not None: a gate fired
    gates: tuple[GateReport, ...] = ()
    missing: tuple[str, ...] = ()  # what cannot be judged, and why; not what is only unproven yet
    canary_requests: int = 0  # settled in this stage
    stable_requests: int = 0
    guards: tuple[GuardStatus, ...] = ()
    canary_total: int = 0  # settled since the first stage
    frozen: bool = False  # the split does not look like its weight: statistics decide nothing
    notes: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()  # of segments, all that were raised so far
    points: PointEstimates | None = None  # None: nobody looked at them

    @classmethod
    def of(
        cls,
        report: EvaluationReport,
        guards: tuple[GuardStatus, ...] = (),
        alarms: tuple[Alarm, ...] = (),
        points: PointEstimates | None = None,
    ) -> EvidenceStatus:
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


class CommandKind(StrEnum):
    """What a person can ask of a running rollout."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"  # to the next stage, without proof
    PROMOTE_FULL = "promote_full"  # past all stages, without proof


@dataclass(frozen=True, slots=True)
class ManualCommand:
    """A person's request, kept by the store in order. Each is taken in once."""

    seq: int
    kind: CommandKind
    actor: str
    role: Literal["viewer", "operator", "admin"]
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """How a probe stands. One that the shell does not know (after a restart) is not listed."""

    kind: ProbeKind
    phase: Literal["running", "passed", "failed"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """The world, read once a tick."""

    now_s: float
    split: SplitStatus | None = None  # None: the table could not be read
    versions: tuple[VersionStatus, ...] | None = None  # None: the fleet could not be read
    evidence: EvidenceStatus | None = None  # None: no evidence could be read
    probes: tuple[ProbeStatus, ...] = ()
    commands: tuple[ManualCommand, ...] = ()
    delivered: frozenset[str] = frozenset()  # keys of notices that left
    resumed: bool = False  # the first look since this controller took the lease: time-outs begin anew


# --- questions about one observation: what is not there counts as nothing ready


def version_status(seen: Observation, version: str) -> VersionStatus | None:
    return next((sight for sight in seen.versions or () if sight.version == version), None)


def ready_replicas(seen: Observation, version: str) -> int:
    sight = version_status(seen, version)
    return sight.ready_replicas if sight is not None and sight.phase is VersionPhase.READY else 0


def is_unloaded(seen: Observation, version: str) -> bool:
    """True: the fleet was read, and the version holds no memory any more."""
    sight = version_status(seen, version)
    return seen.versions is not None and (sight is None or sight.phase is VersionPhase.GONE)


def is_applied(seen: Observation, table: SetSplit) -> bool:
    split = seen.split
    if split is None or not split.applied:
        return False
    return (split.stable, split.canary, split.weight_bp) == (table.stable, table.canary, table.weight_bp)


def is_idle(sight: VersionStatus | None) -> bool:
    """True: nothing runs on it, and the drain was taken in (or it never got so far)."""
    if sight is None or sight.phase in (VersionPhase.LOADING, VersionPhase.GONE, VersionPhase.FAILED):
        return True
    return sight.phase is not VersionPhase.READY and sight.in_flight <= 0


def probe_status(state: RolloutState, seen: Observation) -> ProbeStatus | None:
    kinds = {
        Phase.PREFLIGHT: ProbeKind.PREFLIGHT,
        Phase.WARMING: ProbeKind.WARM,
        Phase.SMOKE: ProbeKind.SMOKE,
    }
    return next((probe for probe in seen.probes if probe.kind is kinds.get(state.phase)), None)
