"""Data plane for tests of the machine: performs every action at once, acknowledges after a lag."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    ExamineJudge,
    Notify,
    ProbeKind,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    ManualCommand,
    Observation,
    ProbePhase,
    ProbeStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)


@dataclass(slots=True)
class ObedientPlane:
    """Stable `v-old` with all traffic. A new route table is acknowledged `lag` observations later."""

    replicas: int = 2
    lag: int = 0
    now_s: float = 0.0
    split: SplitStatus | None = field(
        default_factory=lambda: SplitStatus(1, 1, "v-old", None, 0, applied=True)
    )
    versions: dict[str, VersionStatus] = field(default_factory=dict)
    probes: tuple[ProbeStatus, ...] = ()
    results: dict[ProbeKind, tuple[ProbePhase, str]] = field(default_factory=dict)  # others pass
    commands: tuple[ManualCommand, ...] = ()
    unacknowledged: int = 0  # observations until the newest table is applied
    judges: dict[int, JudgeFound] = field(default_factory=dict)  # results of examinations, by attempt
    judge: JudgeFound | None = None

    def __post_init__(self) -> None:
        self.versions["v-old"] = VersionStatus("v-old", VersionPhase.READY, self.replicas, 0)

    def perform(self, actions: tuple[Action, ...]) -> None:
        """Perform all actions at once."""
        for action in actions:
            match action:
                case EnsureVersion(version, replicas):
                    self.versions[version] = VersionStatus(version, VersionPhase.READY, replicas, 0)
                case SetSplit(stable, canary, weight_bp, _, mirror_bp, judge=judge):
                    self.table(stable, canary, weight_bp, mirror_bp)
                    if self.split is not None:
                        revision = judge.revision if judge is not None else ""
                        self.split = replace(self.split, judge=revision)
                case ExamineJudge(attempt=attempt):
                    self.judge = self.judges.get(attempt)
                case DrainVersion(version) | CancelVersion(version):
                    self.versions[version] = VersionStatus(version, VersionPhase.DRAINING, 0, 0)
                case StopVersion(version):
                    self.versions.pop(version, None)
                case RunProbe(probe):
                    self.probes = (ProbeStatus(probe, *self.results.get(probe, ("passed", ""))),)
                case Notify():
                    pass

    def table(self, stable: str | None, canary: str | None, weight_bp: int, mirror_bp: int = 0) -> None:
        """Publish a route table; the same table again needs no new acknowledgement."""
        before = self.split
        split = (stable, canary, weight_bp, mirror_bp)
        if before is None or (before.stable, before.canary, before.weight_bp, before.mirror_bp) != split:
            self.unacknowledged = self.lag
        revision = before.revision + 1 if before is not None else 1
        applied = self.unacknowledged == 0
        self.split = SplitStatus(1, revision, stable, canary, weight_bp, applied, mirror_bp=mirror_bp)

    def command(self, kind: CommandKind, actor: str = "ann", role: str = "operator") -> None:
        """Add a manual command."""
        seq = len(self.commands) + 1
        command = ManualCommand(seq, kind, actor, role, "because", self.now_s)  # type: ignore[arg-type]
        self.commands = (*self.commands, command)

    def observe(self, evidence: EvidenceStatus | None) -> Observation:
        """Observation one second later."""
        self.now_s += 1.0
        if self.unacknowledged:
            self.unacknowledged -= 1
        elif self.split is not None:
            self.split = replace(self.split, applied=True)
        return Observation(
            self.now_s, self.split, tuple(self.versions.values()), evidence, self.probes, self.commands,
            judge=self.judge,
        )  # fmt: skip
