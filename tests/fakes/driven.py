"""A rollout driven through its phases on an obedient data plane whose ready replicas a test sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from controller.rollout.actions import Action
from controller.rollout.machine import begin, step
from controller.rollout.observation import CommandKind, EvidenceStatus, VersionPhase
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import Phase, RolloutState
from evaluation.report import Verdict
from tests.fakes.obedient import ObedientPlane

OLD, NEW = "v-old", "v-new"
STAGES = (Stage(5000, 60.0, 50, 300.0, 1),)
PLAN = Plan("medium", (), STAGES, holdback_bp=500, bake_s=120.0)


def evidence(verdict: Verdict = Verdict.PASS, stage: int = 0, **fields: object) -> EvidenceStatus:
    """Evidence of 900 canary requests."""
    return EvidenceStatus(stage, verdict, canary_requests=900, canary_total=900, **fields)  # type: ignore[arg-type]


@dataclass
class Driven:
    """One rollout; every tick performs what the tick before wanted, then observes.

    A state in which more than the time has changed is stored and read again.
    """

    plan: Plan = PLAN
    replicas: int = 1
    seen: EvidenceStatus | None = field(default_factory=lambda: evidence(Verdict.UNDECIDED))
    ready: dict[str, int] = field(default_factory=dict)  # of a version, whatever is done to it
    drained: dict[str, int] = field(default_factory=dict)  # replicas of a version so far
    errors: dict[str, str] = field(default_factory=dict)  # last error of a version, whatever is done to it
    fleet_readable: bool = True
    actions: tuple[Action, ...] = ()
    wanted: list[Action] = field(default_factory=list)  # every action so far

    def __post_init__(self) -> None:
        refs = VersionRef(OLD, self.replicas), VersionRef(NEW, self.replicas)
        self.plane = ObedientPlane(self.replicas)
        self.state: RolloutState = begin(
            "r-1", "chat", stable=refs[0], canary=refs[1], plan=self.plan, now_s=0.0
        )

    def tick(self, after_s: float = 1.0, *, resumed: bool = False, away_s: float = 0.0) -> RolloutState:
        """One observation, `after_s` seconds later."""
        self.plane.perform(self.actions)
        for version, count in self.ready.items():
            known = self.plane.versions.get(version)
            if known is not None and known.phase in (VersionPhase.READY, VersionPhase.LOADING):
                phase = VersionPhase.READY if count else VersionPhase.LOADING
                if (known.phase, known.ready_replicas) != (phase, count):
                    self.plane.versions[version] = replace(known, phase=phase, ready_replicas=count)
        for version, count in self.drained.items():
            known = self.plane.versions[version]
            self.plane.versions[version] = replace(known, drained_replicas=count)
        for version, error in self.errors.items():
            if (status := self.plane.versions.get(version)) is not None:
                self.plane.versions[version] = replace(status, last_error=error)
        self.plane.now_s += after_s - 1.0
        seen = replace(self.plane.observe(self.seen), resumed=resumed, away_s=away_s)
        seen = seen if self.fleet_readable else replace(seen, versions=None)
        after, self.actions = step(self.state, seen)
        self.wanted += self.actions
        is_same = replace(after, ticked_at_s=self.state.ticked_at_s) == self.state
        self.state = after if is_same else state_from_json(state_to_json(after))
        return self.state

    def ticks(self, count: int, after_s: float = 1.0) -> RolloutState:
        """So many ticks."""
        for _ in range(count):
            self.tick(after_s)
        return self.state

    def until(self, phase: Phase, *, limit: int = 400) -> RolloutState:
        """Ticks until this phase; every stage is proven."""
        before = self.seen
        self.seen = evidence()
        for _ in range(limit):
            if self.state.phase is phase:
                break
            self.tick()
        assert self.state.phase is phase, f"{self.state.phase} after {limit} s"
        self.seen = before
        return self.state

    def command(self, kind: CommandKind) -> None:
        """A person's command, seen by the next tick."""
        self.plane.command(kind)

    @property
    def lines(self) -> str:
        """The whole log."""
        return "\n".join(line.text for line in self.state.log)

    @property
    def pages(self) -> list[str]:
        """The texts of all pages in the outbox."""
        return [notice.text for notice in self.state.outbox if notice.severity == "page"]
