"""In-memory data plane on a fake clock: engines, route tables, fronts, records, probes, evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import ExamineJudge, ProbeKind, RunProbe, SetSplit
from controller.rollout.judge_plan import JudgeFound
from controller.rollout.observation import (
    EvidenceStatus,
    ProbePhase,
    ProbeStatus,
    SplitStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.state import RolloutState
from evaluation.report import GateReport, Verdict
from serving.messages import DatabaseMark, Event, LostSpan, RecordPage
from serving.messages import SplitStatus as TableStatus


@dataclass(slots=True)
class FakeClock:
    """Clock that advances only by `advance`; `set_wall` changes its wall time alone."""

    at_s: float = 1_800_000_000.0
    booted_s: float = 5_000.0

    def now_s(self) -> float:
        return self.at_s

    def boot_s(self) -> float:
        return self.booted_s

    def advance(self, seconds: float) -> None:
        self.at_s += seconds
        self.booted_s += seconds

    def set_wall(self, by_s: float) -> None:
        """Set the wall time forward, or back."""
        self.at_s += by_s


@dataclass(slots=True)
class _Fence:
    """Refuses a token older than the newest one."""

    token: int = 0

    def check(self, token: int) -> None:
        if token < self.token:
            text = f"token {token} is older than {self.token}; another controller acts"
            raise StaleToken(text, newest=self.token)
        self.token = token


@dataclass(slots=True)
class _Engine:
    phase: VersionPhase
    replicas: int
    since_s: float
    in_flight: int = 0
    error: str | None = None


@dataclass(slots=True)
class FakeFleet:
    """Engines that load in `load_s` and unload in `unload_s`. broken: versions that fail to load, and why."""

    clock: FakeClock
    load_s: float = 1.0
    unload_s: float = 0.5
    memory_bytes: int = 1_000_000
    blind: bool = False
    broken: dict[str, str] = field(default_factory=dict)
    engines: dict[tuple[str, str], _Engine] = field(default_factory=dict)
    fence: _Fence = field(default_factory=_Fence)
    loads: int = 0

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None:
        self._check(token)
        engine = self.engines.get((service, version))
        if engine is None or engine.phase in (VersionPhase.FAILED, VersionPhase.STOPPING):
            self.loads += 1
            engine = _Engine(VersionPhase.LOADING, replicas, self.clock.boot_s())
            self.engines[service, version] = engine
        elif engine.phase is VersionPhase.DRAINING:
            engine.phase = VersionPhase.READY
        engine.replicas = replicas

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        if self.blind:
            return None
        self._pass_time()
        return tuple(
            self._status(version, engine)
            for (owner, version), engine in self.engines.items()
            if owner == service
        )

    def drain(self, service: str, version: str, *, token: int) -> None:
        self._enter(service, version, token, VersionPhase.DRAINING)

    def cancel(self, service: str, version: str, *, token: int) -> None:
        self._check(token)
        if (engine := self.engines.get((service, version))) is not None:
            engine.in_flight = 0

    def stop(self, service: str, version: str, *, token: int) -> None:
        self._enter(service, version, token, VersionPhase.STOPPING)

    def _check(self, token: int) -> None:
        if self.blind:
            raise Unreachable("the fleet does not answer; is Ray running?")
        self.fence.check(token)

    def _enter(self, service: str, version: str, token: int, phase: VersionPhase) -> None:
        self._check(token)
        engine = self.engines.get((service, version))
        if engine is not None and engine.phase not in (phase, VersionPhase.STOPPING):
            engine.phase, engine.since_s = phase, self.clock.boot_s()

    def _pass_time(self) -> None:
        for key, engine in list(self.engines.items()):
            waited_s = self.clock.boot_s() - engine.since_s
            if engine.phase is VersionPhase.LOADING and waited_s >= self.load_s:
                engine.error = self.broken.get(key[1])
                engine.phase = VersionPhase.FAILED if engine.error else VersionPhase.READY
            elif engine.phase is VersionPhase.STOPPING and waited_s >= self.unload_s:
                del self.engines[key]

    def _status(self, version: str, engine: _Engine) -> VersionStatus:
        ready = engine.replicas if engine.phase is VersionPhase.READY else 0
        return VersionStatus(
            version, engine.phase, ready, engine.in_flight, self.memory_bytes, engine.error, engine.since_s
        )


@dataclass(slots=True)
class FakeTraffic:
    """Route tables that every router acknowledges `ack_s` after they are set."""

    clock: FakeClock
    ack_s: float = 0.005
    blind: bool = False
    tables: dict[str, SplitStatus] = field(default_factory=dict)
    set_at_s: dict[str, float] = field(default_factory=dict)
    tombstones: set[str] = field(default_factory=set)
    weights: list[int] = field(default_factory=list)  # every weight published, in order
    judges: list[str] = field(default_factory=list)  # the revision of the judge of each; '': none
    heartbeat_at_s: dict[str, float] = field(default_factory=dict)
    marks: dict[str, DatabaseMark] = field(default_factory=dict)
    fence: _Fence = field(default_factory=_Fence)

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None:
        self._check(token)
        weight_bp = 0 if rollout in self.tombstones else split.weight_bp
        mirror_bp = 0 if rollout in self.tombstones else split.mirror_bp
        canary = split.canary if weight_bp or mirror_bp else None
        before = self.tables.get(service)
        judge = split.judge.revision if split.judge is not None and canary is not None else ""
        wanted = SplitStatus(
            *(1, 0, split.stable, canary, weight_bp), applied=False, mirror_bp=mirror_bp, judge=judge
        )
        if before is None or replace(before, revision=0) != wanted:
            self.tables[service] = replace(wanted, revision=before.revision + 1 if before else 1)
            self.set_at_s[service] = self.clock.boot_s()
            self.weights.append(weight_bp)
            self.judges.append(judge)
        return self.observe(service)

    def start(self, service: str) -> None:
        """Start an empty table where there is none, as the start of a table actor does."""
        if service not in self.tables:
            self.tables[service] = SplitStatus(1, 0, None, None, 0, applied=False)
            self.set_at_s[service] = self.clock.boot_s()

    def observe(self, service: str) -> SplitStatus | None:
        table = self.tables.get(service)
        if self.blind or table is None:
            return None
        applied = self.clock.boot_s() - self.set_at_s[service] >= self.ack_s
        return replace(table, applied=applied, tombstoned=tuple(sorted(self.tombstones)))

    def heartbeat(self, service: str, *, token: int) -> None:
        self._check(token)
        self.heartbeat_at_s[service] = self.clock.boot_s()

    def withdraw(self, service: str) -> None:
        """Return all traffic to stable, as the routers do when the controller is silent."""
        table = self.tables[service]
        self.tables[service] = replace(table, canary=None, weight_bp=0, revision=table.revision + 1)

    def tombstone(self, rollout: str) -> None:
        """As `rollback --direct` does without a controller."""
        self.tombstones.add(rollout)

    def _check(self, token: int) -> None:
        if self.blind:
            raise Unreachable("the route table does not answer; is Ray running?")
        self.fence.check(token)


@dataclass(slots=True)
class FakeMarks:
    """The marks of the databases in the route tables, as the table actors hold them."""

    traffic: FakeTraffic

    def observe(self, service: str) -> TableStatus | None:
        table = self.traffic.observe(service)
        if table is None:
            return None
        shares = (table.stable, table.canary, table.weight_bp, table.applied, "acknowledged")
        return TableStatus(table.revision, table.epoch, "", *shares, mark=self.traffic.marks.get(service))  # type: ignore[arg-type]

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        if self.traffic.blind or self.traffic.marks.get(service) != instead_of:
            return False
        self.traffic.marks[service] = mark
        return True

    def names(self) -> tuple[str, ...]:
        return tuple(self.traffic.tables)


@dataclass(slots=True)
class FakeIngress:
    """Fronts that open and close at once."""

    traffic: FakeTraffic
    opened: dict[str, str] = field(default_factory=dict)

    def open(self, service: str, secret: str, *, token: int) -> None:
        self.opened[service] = secret
        self.traffic.start(service)

    def close(self, service: str, *, token: int) -> None:
        self.opened.pop(service, None)
        self.traffic.tables.pop(service, None)
        self.traffic.marks.pop(service, None)


@dataclass(slots=True)
class FakeProbes:
    """Probes that end at once, passed unless `results` says otherwise."""

    results: dict[ProbeKind, tuple[ProbePhase, str]] = field(default_factory=dict)

    def start_or_check(self, rollout: RolloutState, probe: RunProbe) -> ProbeStatus:
        phase, detail = self.results.get(probe.probe, ("passed", ""))
        return ProbeStatus(probe.probe, phase, detail)


@dataclass(slots=True)
class FakeJudges:
    """Examinations that end at once with what `results` holds for each attempt; without one they run on."""

    results: dict[int, JudgeFound] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)  # attempts, in order

    def start_or_check(self, rollout: str, examination: ExamineJudge) -> JudgeFound | None:
        self.asked.append(examination.attempt)
        return self.results.get(examination.attempt)


@dataclass(slots=True)
class FakeEvidence:
    """The same `verdict` for every stage. harm: a rollback gate that fired."""

    verdict: Verdict = Verdict.PASS
    harm: GateReport | None = None
    readable: bool = True
    gates: tuple[GateReport, ...] = ()

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None:
        if not self.readable:
            return None
        return EvidenceStatus(
            rollout.stage, self.verdict, rollback=self.harm, gates=self.gates, canary_requests=1_000_000
        )

    def snapshot(self, rollout: str) -> bytes | None:
        return b"{}"

    def conclusion(self, rollout: str) -> bytes | None:
        return b"{}"


@dataclass(slots=True)
class FakeNotifier:
    """Records each key once."""

    sent: dict[str, str] = field(default_factory=dict)

    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        self.sent.setdefault(key, text)
        return True


@dataclass(slots=True)
class FakeLog:
    """In-memory records log of one service."""

    events: list[Event] = field(default_factory=list)
    lost: tuple[LostSpan, ...] = ()
    watermark_s: float = 0.0
    blind: bool = False
    reads: list[int] = field(default_factory=list)

    def append(self, event: Event) -> None:
        self.events.append(replace(event, seq=len(self.events) + 1))

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        self.reads.append(after_seq)
        if self.blind:
            return None
        events = tuple(self.events[after_seq : after_seq + limit])
        is_whole = after_seq + len(events) >= len(self.events)
        return RecordPage(events, after_seq + len(events), self.lost, self.watermark_s if is_whole else 0.0)
