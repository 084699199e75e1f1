"""A world as the rollout's machine sees it, in which what is wanted comes true when it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    Notify,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    ManualCommand,
    Observation,
    ProbeStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)


@dataclass(slots=True)
class Obedient:
    """Stable `v-old` with all traffic. A new table is acknowledged after `lag` looks more."""

    replicas: int = 2
    lag: int = 0
    now_s: float = 0.0
    split: SplitStatus | None = field(
        default_factory=lambda: SplitStatus(1, 1, "v-old", None, 0, applied=True)
    )
    versions: dict[str, VersionStatus] = field(default_factory=dict)
    probes: tuple[ProbeStatus, ...] = ()
    asked: tuple[ManualCommand, ...] = ()
    unacknowledged: int = 0  # looks until the newest table stands

    def __post_init__(self) -> None:
        self.versions["v-old"] = VersionStatus("v-old", VersionPhase.READY, self.replicas, 0)

    def obey(self, actions: tuple[Action, ...]) -> None:
        """All of it comes true."""
        for action in actions:
            match action:
                case EnsureVersion(version, replicas):
                    self.versions[version] = VersionStatus(version, VersionPhase.READY, replicas, 0)
                case SetSplit(stable, canary, weight_bp):
                    self.table(stable, canary, weight_bp)
                case DrainVersion(version) | CancelVersion(version):
                    self.versions[version] = VersionStatus(version, VersionPhase.DRAINING, 0, 0)
                case StopVersion(version):
                    self.versions.pop(version, None)
                case RunProbe(probe):
                    self.probes = (ProbeStatus(probe, "passed"),)
                case Notify():
                    pass

    def table(self, stable: str | None, canary: str | None, weight_bp: int) -> None:
        """The next revision of the route table; the same table again needs no new acknowledgement."""
        before = self.split
        if before is None or (before.stable, before.canary, before.weight_bp) != (stable, canary, weight_bp):
            self.unacknowledged = self.lag
        revision = before.revision + 1 if before is not None else 1
        self.split = SplitStatus(1, revision, stable, canary, weight_bp, applied=self.unacknowledged == 0)

    def ask(self, kind: CommandKind, actor: str = "ann", role: str = "operator") -> None:
        """A person asks for it now."""
        one = ManualCommand(len(self.asked) + 1, kind, actor, role, "because", self.now_s)  # type: ignore[arg-type]
        self.asked = (*self.asked, one)

    def look(self, evidence: EvidenceStatus | None) -> Observation:
        """What is to be seen a second later."""
        self.now_s += 1.0
        if self.unacknowledged:
            self.unacknowledged -= 1
        elif self.split is not None:
            self.split = replace(self.split, applied=True)
        return Observation(
            self.now_s, self.split, tuple(self.versions.values()), evidence, self.probes, self.asked
        )
