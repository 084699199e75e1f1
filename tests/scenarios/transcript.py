"""Golden transcripts: a line with `>` is what is seen (only what changed), the rest is what the machine did.

A file begins with comments (`#`) and one `plan` line. Words of a `>` line:

    +5s                      time passes (each line is one tick; without it, one second)
    table=v-old              the route table; v-old+v-new@200; trailing `?`: not acknowledged; none
    v-new=ready*2            a version's phase and ready replicas; ready/3: in flight; gone: not listed
    fleet=none               the fleet cannot be read (fleet=read: again)
    probe=smoke:passed       how a probe stands; probe=none: the shell knows of none
    evidence=PASS/0/300      verdict, stage, canary requests; evidence=none: cannot be read; missing=quality
    gate=error               a rollback gate fired; guard=errors, guard=errors!both, guard=none
    proof=quality/120@310    a gate was proven after so many canary requests, at that second
    near=error/0.4           a rollback gate has so much of the evidence that it takes
    points=in                the point estimates are within their margins; points=quality: that one is not
    ask=rollback/ann         a person asks (operator unless `ask=pause/vic/viewer`)
    do                       what was wanted at the last tick comes true at once
    tombstone  resumed  delivered
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from controller.quantities import duration_s, percent, weight_bp
from controller.rollout.actions import (
    Action,
    CancelVersion,
    DrainVersion,
    EnsureVersion,
    Notify,
    ProbeKind,
    RunProbe,
    SetSplit,
    StopVersion,
)
from controller.rollout.machine import begin, step
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    GuardStatus,
    Observation,
    PointEstimates,
    ProbeStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import exit_code
from evaluation.report import GateReport, Verdict
from tests.fakes.obedient import Obedient


def replay(path: Path) -> str:
    """The transcript as the machine writes it now: the inputs kept, the outputs made anew."""
    out: list[str] = []
    player: Player | None = None
    for line in path.read_text().splitlines():
        if line.startswith("#") or (not line.strip() and player is None):
            out.append(line)
        elif line.startswith("plan"):
            player = Player(line)
            out += [line, *player.told()]
        elif line.startswith(">"):
            assert player is not None, "a transcript begins with a plan line"
            out += ["", line, *player.play(line[1:].split())]
    return "\n".join(out) + "\n"


@dataclass
class Player:
    """One rollout and the world as the transcript tells it."""

    plan_line: str
    fleet_readable: bool = True
    evidence: EvidenceStatus | None = None
    guards: tuple[GuardStatus, ...] = ()
    gate: GateReport | None = None
    missing: tuple[str, ...] = ()
    gates: tuple[GateReport, ...] = ()
    points: PointEstimates | None = None
    wanted: tuple[Action, ...] = ()
    lines_told: int = 0

    def __post_init__(self) -> None:
        words = dict(word.split("=", 1) for word in self.plan_line.split()[1:])
        replicas = int(words.get("replicas", "1"))
        stages = tuple(_stage(text, replicas) for text in words["stages"].split(","))
        times = {name: duration_s(words[name]) for name in words if name.endswith("_s")}
        bake_s, holdback_bp = duration_s(words["bake"]), weight_bp(words.get("holdback", "5%"))
        plan = replace(Plan("medium", (), stages, holdback_bp, bake_s), **times)  # type: ignore[arg-type]
        plan = replace(plan, twin="twin" in words)
        canary = "v-old-twin" if plan.twin else "v-new"
        refs = VersionRef("v-old", replicas), VersionRef(canary, replicas)
        self.state: RolloutState = begin("r-1", "chat", stable=refs[0], canary=refs[1], plan=plan, now_s=0.0)
        self.world = Obedient(replicas)

    def play(self, words: list[str]) -> list[str]:
        """One tick: take the words in, look, step, tell."""
        flags = {word for word in words if word in ("do", "tombstone", "resumed", "delivered")}
        if "do" in flags:
            self.world.obey(self.wanted)
        self.world.now_s += duration_s(words[0][1:]) if words and words[0].startswith("+") else 1.0
        for word in words:
            if "=" in word:
                self._take(*word.split("=", 1))
        if "tombstone" in flags:
            assert self.world.split is not None, "a tombstone needs a table"
            self.world.split = replace(self.world.split, tombstoned=(self.state.id,))
        notices = {action.key for action in self.wanted if isinstance(action, Notify)}
        seen = Observation(
            now_s=self.world.now_s,
            split=self.world.split,
            versions=tuple(self.world.versions.values()) if self.fleet_readable else None,
            evidence=self._evidence(),
            probes=self.world.probes,
            commands=self.world.asked,
            delivered=frozenset(notices if "delivered" in flags else ()),
            resumed="resumed" in flags,
        )
        self.state, self.wanted = step(self.state, seen)
        return self.told()

    def told(self) -> list[str]:
        """New log lines, where the rollout stands, what it wants."""
        new = [line for line in self.state.log if line.seq > self.lines_told]
        self.lines_told = self.state.log_count
        lines = [f"  {line.at_s:g} s  {line.text}" for line in new]
        return [*lines, f"  = {_where(self.state)}", *(f"  ! {_action(action)}" for action in self.wanted)]

    def _evidence(self) -> EvidenceStatus | None:
        if self.evidence is None:
            return None
        seen = replace(self.evidence, guards=self.guards, rollback=self.gate, missing=self.missing)
        return replace(seen, gates=self.gates, points=self.points)

    def _take(self, name: str, value: str) -> None:
        match name:
            case "table":
                self._table(value)
            case "fleet":
                self.fleet_readable = value != "none"
            case "probe":
                kind, _, phase = value.partition(":")
                one = () if value == "none" else (ProbeStatus(ProbeKind(kind), phase, "no answer"),)  # type: ignore[arg-type]
                self.world.probes = one
            case "evidence":
                self.evidence = None if value == "none" else _evidence(value)
            case "missing":
                self.missing = () if value == "none" else tuple(value.split(","))
            case "gate":
                self.gate = _gate(value)
            case "proof" | "near":
                self.gates = (*self.gates, _proof(value) if name == "proof" else _near(value))
            case "points":
                within = value == "in"
                text = "quality 0.81 beside 0.82" if within else f"{value} is outside its margin, 0.05"
                self.points = PointEstimates(within, text)
            case "guard":
                guard, _, both = value.partition("!")
                self.guards = () if value == "none" else (GuardStatus(guard, "60 % of 20", both == "both"),)
            case "ask":
                kind, actor, role = (*value.split("/"), "operator")[:3]
                self.world.ask(CommandKind(kind), actor, role)
            case _:
                self._version(name, value)

    def _table(self, value: str) -> None:
        if value == "none":
            self.world.split = None
            return
        match = re.fullmatch(r"([\w-]+)(?:\+([\w-]+)@(\d+))?(\?)?", value)
        assert match is not None, f"table {value!r} is not a table"
        self.world.table(match[1], match[2], int(match[3] or 0))
        if match[4] and self.world.split is not None:
            self.world.split = replace(self.world.split, applied=False)

    def _version(self, name: str, value: str) -> None:
        match = re.fullmatch(r"(\w+)(?:\*(\d+))?(?:/(\d+))?", value)
        assert match is not None, f"{name}={value} is not a word of a transcript"
        assert name.startswith("v-"), f"{name}={value} is not a word of a transcript"
        phase = VersionPhase(match[1])
        if phase is VersionPhase.GONE:
            self.world.versions.pop(name, None)
            return
        ready = int(match[2] or 1) if phase is VersionPhase.READY else 0
        error = "CUDA out of memory" if phase is VersionPhase.FAILED else None
        self.world.versions[name] = VersionStatus(name, phase, ready, int(match[3] or 0), None, error)


def _stage(text: str, replicas: int) -> Stage:
    """`10%:60s:50` or `10%:60s:50:rollback`: weight, duration, canary requests, what missing metrics do.

    `10%:60s:50:hold:points`: promoted on point estimates at its deadline.
    """
    weight, wait, count, *more = text.split(":")
    missing, *rest = more or ["hold"]
    share, needed = weight_bp(weight), -(-replicas * weight_bp(weight) // 10_000)
    wait_s = duration_s(wait)
    return Stage(share, wait_s, int(count), 5 * wait_s, needed, missing, rest == ["points"])  # type: ignore[arg-type]


def _evidence(value: str) -> EvidenceStatus:
    verdict, stage, count = value.split("/")
    seen = EvidenceStatus(int(stage), Verdict(verdict), canary_requests=int(count))
    return replace(seen, canary_total=int(count), stable_requests=9 * int(count))


def _gate(metric: str) -> GateReport | None:
    if metric == "none":
        return None
    return GateReport(metric, metric, "rollback", Verdict.FAIL, 7.0, 5.8, "14 % against 3 %", 80, 1500)


def _proof(value: str) -> GateReport:
    gate, _, rest = value.partition("/")
    count, _, second = rest.partition("@")
    proven = GateReport(gate, gate, "promotion", Verdict.PASS, 4.0, 3.1, "proven", int(count), 9 * int(count))
    return replace(proven, decided_canary=int(count), decided_at_s=float(second))


def _near(value: str) -> GateReport:
    gate, _, share = value.partition("/")
    return GateReport(gate, gate, "rollback", Verdict.UNDECIDED, 5.0 * float(share), 5.0, "no harm", 80, 1500)


def _where(state: RolloutState) -> str:
    phase = f"stage {state.stage + 1}" if state.phase is Phase.STAGE else state.phase.value
    words = [phase, percent(state.weight_bp), f"serving {state.serving}"]
    words += [] if state.acked_at_s is None else ["acknowledged"]
    words += [f"held: {hold.kind.value}" for hold in state.holds]
    words += [] if state.deadline_at_s is None else [f"until {state.deadline_at_s:g} s"]
    if state.departure is not None:
        going = state.departure
        times = (going.traffic_shift_ms, going.drain_ms, going.unload_ms, going.total_ms)
        ms = " ".join("-" if time is None else f"{time:.0f}" for time in times)
        words.append(f"{going.leaving} leaves: {going.step.value} [{ms}]")
    code = exit_code(state)
    return ", ".join(words if code is None else [*words, f"exit {code}"])


def _action(action: Action) -> str:
    match action:
        case EnsureVersion(version, replicas):
            return f"ensure {version} x {replicas}"
        case SetSplit(stable, canary, points):
            return f"split {stable} + {canary} at {percent(points)}" if canary else f"split {stable} alone"
        case DrainVersion(version) | CancelVersion(version) | StopVersion(version):
            return f"{action.kind} {version}"
        case RunProbe(probe, version):
            return f"probe {probe.value} {version}"
        case Notify(key, severity, text):
            return f"{severity} [{key}] {text}"
