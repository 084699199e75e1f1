"""Observation of one tick: split, versions, evidence, probes, commands. What could not be read is None."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from controller.quantities import figure
from controller.rollout.actions import ProbeKind, SetSplit
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.state import Phase, RolloutState
from evaluation.report import EvaluationReport, GateReport, Verdict

SPLIT_GATE = "served_share"  # the gate of the sample ratio


class VersionPhase(StrEnum):
    """Phase of a version in the fleet. GONE: its memory release is confirmed."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"
    FAILED = "failed"


LOADED = (VersionPhase.LOADING, VersionPhase.READY, VersionPhase.DRAINING)  # there are engines to keep


@dataclass(frozen=True, slots=True)
class SplitStatus:
    """The route table of a service, and whether it is in effect."""

    epoch: int
    revision: int
    stable: str | None  # None: no version is in service yet
    canary: str | None  # None: no canary in the table
    weight_bp: int
    applied: bool  # every live router acknowledged it, is fenced, or its lease expired (`how`)
    how: str = "acknowledged"
    tombstoned: tuple[str, ...] = ()  # rollouts that a direct rollback ended: never again a weight above 0
    mirror_bp: int = 0  # share of stable's requests of which the canary gets a copy
    judge: str | None = None  # revision of the judge that routers ask; '': none is; None: not known


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version in the fleet. A version that is not listed is gone."""

    version: str
    phase: VersionPhase
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None = None  # None: not measured
    last_error: str | None = None  # None: no error
    since_s: float = 0.0
    drained_replicas: int = 0  # ready ones stopped by order so far, since the fleet counts: not lost
    external: bool = False  # an endpoint that canaryctl does not run


@dataclass(frozen=True, slots=True)
class DataPlaneStatus:
    """Route table and fleet of one service, read together once per tick."""

    read_at_s: float  # wall time before the reads
    boot_s: float  # the boot-time clock at that moment; it cannot be set
    split: SplitStatus | None  # None: the table could not be read
    versions: tuple[VersionStatus, ...] | None  # None: the fleet could not be read


@dataclass(frozen=True, slots=True)
class GuardStatus:
    """A guard that fires. both_arms: stable fails too, or chance may explain it: hold and page."""

    name: str
    text: str
    both_arms: bool = False


@dataclass(frozen=True, slots=True)
class Alarm:
    """Harm shown in one segment of the traffic. Published once; it decides nothing."""

    gate: str
    segment: str
    text: str
    canary_requests: int  # of the whole rollout, when it was raised
    at_s: float

    @property
    def key(self) -> str:
        """Key under which it is published once."""
        return f"{self.gate}/{self.segment}"


@dataclass(frozen=True, slots=True)
class PointEstimates:
    """Point estimates of all metrics that a stage must prove. They prove nothing.

    within: each is inside its margin. text: the estimates, or the first that is outside or missing.
    """

    within: bool
    text: str


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """Copies of this rollout that have ended. One that says nothing about the version is not counted."""

    pairs: int = 0  # answered whole by both arms
    failed: int = 0  # not by the canary
    same_text: int = 0  # pairs whose answers say the same
    cause: str | None = None  # of the last failed copy; None: none failed
    judged: int = 0  # pairs of which the judge gave both verdicts
    wrong: tuple[int, int] = (0, 0)  # of these: stable's answers and the canary's
    missing: tuple[int, int] = (0, 0)  # answers of pairs that have no verdict: stable's, the canary's
    void: str | None = None  # why the judge's verdicts count for nothing now; None: they count


@dataclass(frozen=True, slots=True)
class JudgeEvidence:
    """Sampled answers of this rollout, stable's and the canary's, and the judge's verdicts on them."""

    verdicts: tuple[int, int] = (0, 0)
    missing: tuple[int, int] = (0, 0)  # there was an answer, and no verdict came in time
    unanswered: tuple[int, int] = (
        0,
        0,
    )  # sampled, without an answer to judge: other gates count them
    anchors: int = 0  # verdicts on answers with known labels
    anchors_wrong: int = 0
    causes: tuple[tuple[str, int], ...] = ()  # of the missing ones, the most frequent first
    drift: str | None = None  # what changed since the judge was admitted; None: nothing
    too_many: str | None = None  # why too many are missing; None: they are not
    others: int = 0  # scores of the metric that are not the judge's, and no evidence
    metric: str = ""  # of the judge

    @property
    def text(self) -> str:
        """`judged 410 stable, 22 canary; missing 3 stable, 1 canary (timeout 4); anchors 1 of 24 wrong`."""
        stable, canary = self.verdicts
        parts = [f"judged {stable:,} stable, {canary:,} canary"]
        if any(self.missing):
            causes = ", ".join(f"{cause} {count}" for cause, count in self.causes)
            why = f" ({causes})" if causes else ""
            parts.append(f"missing {self.missing[0]:,} stable, {self.missing[1]:,} canary{why}")
        if any(self.unanswered):
            parts.append(f"no answer {self.unanswered[0]:,} stable, {self.unanswered[1]:,} canary")
        if self.anchors:
            parts.append(f"anchors {self.anchors_wrong} of {self.anchors} wrong")
        if self.others:
            parts.append(f"left out {self.others:,} scores of {self.metric} that are not the judge's")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class ArmCosts:
    """Tokens and cost of answers that one version gave itself."""

    answers: int = 0
    counted: int = 0  # of them, those whose tokens are known
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts', from a cache
    completion_tokens: int = 0
    cost: float | None = None  # of the counted ones; None: its tokens have no price


@dataclass(frozen=True, slots=True)
class CostStatus:
    """What the answers of this rollout's requests cost so far; apart from that its judge and its mirror."""

    stable: ArmCosts = ArmCosts()
    canary: ArmCosts = ArmCosts()
    mirror: ArmCosts = ArmCosts()  # copies of stable's requests at the canary, whose answers nobody is shown
    judge_questions: int = 0
    judge_tokens: int = 0
    judge_cost: float | None = None  # None: its tokens have no price
    currency: str | None = None  # None: the service has no prices


@dataclass(frozen=True, slots=True)
class EvidenceStatus:
    """The evaluator's report. verdict: on promotion out of `stage`, from that stage's own units."""

    stage: int
    verdict: Verdict
    rollback: GateReport | None = None  # not None: a gate fired
    gates: tuple[GateReport, ...] = ()
    missing: tuple[str, ...] = ()  # metrics that cannot be judged, and why; not those only unproven yet
    canary_requests: int = 0  # settled in this stage
    stable_requests: int = 0
    guards: tuple[GuardStatus, ...] = ()
    canary_total: int = 0  # settled since the first stage
    frozen: bool = False  # sample ratio mismatch: statistics decide nothing
    only_load: bool = False  # INVALID for nothing but replicas that are loaded unequally
    notes: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()  # of segments, all raised so far
    points: PointEstimates | None = None  # None: not computed
    mirror: MirrorStatus | None = None  # None: it is not counted in this phase
    judge: JudgeEvidence | None = None  # None: the rollout has no judge
    costs: CostStatus | None = None  # None: nothing was counted, or by an older release

    @classmethod
    def of(
        cls,
        report: EvaluationReport,
        guards: tuple[GuardStatus, ...] = (),
        alarms: tuple[Alarm, ...] = (),
        points: PointEstimates | None = None,
        judge: JudgeEvidence | None = None,
        costs: CostStatus | None = None,
    ) -> EvidenceStatus:
        """The evaluator's report, with the guards and alarms that are watched beside it."""
        return cls(
            stage=report.stage,
            verdict=report.stage_verdict,
            rollback=report.rollback,
            gates=tuple(map(_with_share, report.gates)),
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
            only_load=report.only_load,
            notes=report.notes,
            alarms=alarms,
            points=points,
            judge=judge,
            costs=costs,
        )


def _with_share(gate: GateReport) -> GateReport:
    """The report; of a sample ratio mismatch with the shares of the requests that the arms have."""
    total = gate.n_canary + gate.n_stable
    if gate.gate != SPLIT_GATE or gate.verdict is not Verdict.INVALID or not total:
        return gate
    share = gate.n_canary / total
    reason = f"{gate.reason}; the canary has {figure(100 * share, 3)} % of {total:,} requests"
    return replace(gate, canary=share, stable=1.0 - share, reason=reason)


class CommandKind(StrEnum):
    """Kind of a manual command to a running rollout."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"  # to the next stage, without proof
    PROMOTE_FULL = "promote_full"  # past all stages, without proof


@dataclass(frozen=True, slots=True)
class ManualCommand:
    """A person's command. The store keeps them in order; each is applied once."""

    seq: int
    kind: CommandKind
    actor: str
    role: Literal["viewer", "operator", "admin"]
    reason: str
    at_s: float


ProbePhase = Literal["running", "passed", "failed", "not_judged"]


@dataclass(frozen=True, slots=True)
class ProbeStatus:
    """Status of a probe. A probe unknown to this controller (after a restart) is not listed.

    not_judged: what it needs does not answer, `detail` says what; it is tried again until its phase's
    deadline, and never passes so.
    """

    kind: ProbeKind
    phase: ProbePhase
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a tick observed."""

    now_s: float
    split: SplitStatus | None = None  # None: the table could not be read
    versions: tuple[VersionStatus, ...] | None = None  # None: the fleet could not be read
    evidence: EvidenceStatus | None = None  # None: no evidence could be read
    probes: tuple[ProbeStatus, ...] = ()
    commands: tuple[ManualCommand, ...] = ()
    delivered: frozenset[str] = frozenset()  # keys of delivered notices
    resumed: bool = False  # first tick of this controller: deadlines start again
    jump_s: float = 0.0  # by which the wall clock was set forward (negative: back) since the last tick
    away_s: float = 0.0  # since the last tick, beyond what one tick takes: no controller acted, >= 0
    judge: JudgeFound | None = None  # of an examination that has ended; None: none has, or it runs


def applied_words(how: str) -> str:
    """Why a route table is in effect, for people (`SplitStatus.how`)."""
    words = {
        "fenced": "engines refuse late requests",
        "lease": "a silent router's lease has run out",
    }
    return words.get(how, how)


# --- predicates on an observation: a missing version has no ready replicas


def version_status(seen: Observation, version: str) -> VersionStatus | None:
    for status in seen.versions or ():  # a tick asks twenty times
        if status.version == version:
            return status
    return None


def ready_replicas(seen: Observation, version: str) -> int:
    status = version_status(seen, version)
    return status.ready_replicas if status is not None and status.phase is VersionPhase.READY else 0


def answering_replicas(seen: Observation, version: str) -> int:
    """Ready replicas, also of a version that is still loading others."""
    status = version_status(seen, version)
    is_up = status is not None and status.phase in (VersionPhase.LOADING, VersionPhase.READY)
    return max(0, status.ready_replicas) if status is not None and is_up else 0


def is_unloaded(seen: Observation, version: str) -> bool:
    """True: the fleet was read, and the version holds no memory."""
    status = version_status(seen, version)
    return seen.versions is not None and (status is None or status.phase is VersionPhase.GONE)


def is_applied(seen: Observation, table: SetSplit) -> bool:
    split = seen.split
    if split is None or not split.applied:
        return False
    if table.judge is not None and table.judge.revision != split.judge:
        return False  # not known: it is set again, which changes nothing where it is the same
    wanted = (table.stable, table.canary, table.weight_bp, table.mirror_bp)
    return (split.stable, split.canary, split.weight_bp, split.mirror_bp) == wanted


def is_idle(status: VersionStatus | None) -> bool:
    """True: no request is in flight, and the drain is in effect (or the version was never ready)."""
    if status is None or status.phase in (VersionPhase.LOADING, VersionPhase.GONE, VersionPhase.FAILED):
        return True
    return status.phase is not VersionPhase.READY and status.in_flight <= 0


def smoke_text(state: RolloutState, seen: Observation) -> str:
    """What a smoke test that has passed found, for the log."""
    probe = probe_status(state, seen)
    return f"smoke test passed: {probe.detail}" if probe is not None and probe.detail else "smoke test passed"


def probe_status(state: RolloutState, seen: Observation) -> ProbeStatus | None:
    """Status of the probe that this phase waits for; None: unknown, or no probe in this phase."""
    kinds = {
        Phase.PREFLIGHT: ProbeKind.PREFLIGHT,
        Phase.WARMING: ProbeKind.WARM,
        Phase.SMOKE: ProbeKind.SMOKE,
    }
    return next((probe for probe in seen.probes if probe.kind is kinds.get(state.phase)), None)
