"""Golden transcripts: a `>` line is an observation (what changed), other lines are the machine's output.

A file begins with comments (`#`) and one `plan` line. Words of a `>` line:

    +5s                      time since the last tick (default: one second); each line is one tick
    table=v-old              the route table; v-old+v-new@200; a final `?`: not acknowledged; none: unreadable
    v-new=ready*2            a version's phase and ready replicas; ready/3: in flight; gone: not listed;
                             loading!refused: with this error
    fleet=none               the fleet cannot be read; fleet=read: it can
    probe=smoke:passed       status of a probe; probe=none: no probe is known
    evidence=PASS/0/300      verdict, stage, canary requests; evidence=none: cannot be read; missing=quality
    gate=error               a rollback gate fired; guard=errors (the canary's), guard=errors!both, guard=none
    proof=quality/120@310    a gate was proven after 120 canary requests, at 310 s
    near=error/0.4           a rollback gate has 0.4 of the evidence that it requires
    points=in                the point estimates are within their margins; points=quality: one is outside
    command=rollback/ann     a manual command by an operator; command=pause/vic/viewer: by a viewer
    do                       the actions of the last tick are performed at once
    tombstone  resumed  delivered
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from controller.quantities import duration_s, percent, weight_bp
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
from controller.rollout.machine import begin, step
from controller.rollout.observation import (
    CommandKind,
    EvidenceStatus,
    GuardStatus,
    MirrorStatus,
    Observation,
    PointEstimates,
    ProbeStatus,
    VersionPhase,
    VersionStatus,
)
from controller.rollout.plan import MirrorPlan, Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.rollout.status import exit_code
from evaluation.report import GateReport, Verdict
from tests.fakes.obedient import ObedientPlane


def replay(path: Path, make_player: Callable[[str], Player] | None = None) -> str:
    """The transcript with its inputs kept and its outputs as the machine writes them now."""
    out: list[str] = []
    player: Player | None = None
    for line in path.read_text().splitlines():
        if line.startswith("#") or (not line.strip() and player is None):
            out.append(line)
        elif line.startswith("plan"):
            player = (make_player or Player)(line)
            out += [line, *player.output()]
        elif line.startswith(">"):
            assert player is not None, "a transcript begins with a plan line"
            out += ["", line, *player.play(line[1:].split())]
    return "\n".join(out) + "\n"


@dataclass
class Player:
    """One rollout, driven by the lines of a transcript."""

    plan_line: str
    fleet_readable: bool = True
    evidence: EvidenceStatus | None = None
    guards: tuple[GuardStatus, ...] = ()
    gate: GateReport | None = None
    missing: tuple[str, ...] = ()
    gates: tuple[GateReport, ...] = ()
    points: PointEstimates | None = None
    actions: tuple[Action, ...] = ()
    lines_written: int = 0

    def __post_init__(self) -> None:
        words = dict(word.partition("=")[::2] for word in self.plan_line.split()[1:])
        replicas = int(words.get("replicas", "1"))
        stages = tuple(_stage(text, replicas) for text in words.get("stages", "").split(",") if text)
        times = {name: duration_s(words[name]) for name in words if name.endswith("_s")}
        bake_s, holdback_bp = duration_s(words["bake"]), weight_bp(words.get("holdback", "5%"))
        plan = replace(Plan("medium", (), stages, holdback_bp, bake_s), **times)  # type: ignore[arg-type]
        plan = replace(plan, twin="twin" in words, undo="undo" in words)
        if "mirror" in words:  # 2%:200:60s
            share, pairs, limit = words["mirror"].split(":")
            plan = replace(plan, mirror=MirrorPlan(weight_bp(share), int(pairs), duration_s(limit)))
        canary = "v-old-twin" if plan.twin else "v-new"
        refs = VersionRef("v-old", replicas), VersionRef(canary, replicas, "external" in words)
        self.state: RolloutState = begin("r-1", "chat", stable=refs[0], canary=refs[1], plan=plan, now_s=0.0)
        self.plane = ObedientPlane(replicas)

    def play(self, words: list[str]) -> list[str]:
        """One tick: apply the words, observe, step; the output lines."""
        flags = {word for word in words if word in ("do", "tombstone", "resumed", "delivered")}
        if "do" in flags:
            self.plane.perform(self.actions)
        self.plane.now_s += duration_s(words[0][1:]) if words and words[0].startswith("+") else 1.0
        for word in words:
            if "=" in word:
                self._apply(*word.split("=", 1))
        if "tombstone" in flags:
            assert self.plane.split is not None, "a tombstone needs a table"
            self.plane.split = replace(self.plane.split, tombstoned=(self.state.id,))
        self.tick(flags)
        return self.output()

    def tick(self, flags: set[str]) -> None:
        """Observe and step."""
        notices = {action.key for action in self.actions if isinstance(action, Notify)}
        seen = Observation(
            now_s=self.plane.now_s,
            split=self.plane.split,
            versions=tuple(self.plane.versions.values()) if self.fleet_readable else None,
            evidence=self.seen_evidence(),
            probes=self.plane.probes,
            commands=self.plane.commands,
            delivered=frozenset(notices if "delivered" in flags else ()),
            resumed="resumed" in flags,
            away_s=self.plane.now_s - self.state.ticked_at_s if "resumed" in flags else 0.0,
        )
        self.state, self.actions = step(self.state, seen)

    def output(self) -> list[str]:
        """New log lines, summary of the state, desired actions."""
        new = [line for line in self.state.log if line.seq > self.lines_written]
        self.lines_written = self.state.log_count
        lines = [f"  {line.at_s:g} s  {line.text}" for line in new]
        return [*lines, f"  = {_summary(self.state)}", *(f"  ! {_action(action)}" for action in self.actions)]

    def seen_evidence(self) -> EvidenceStatus | None:
        if self.evidence is None:
            return None
        seen = replace(self.evidence, guards=self.guards, rollback=self.gate, missing=self.missing)
        return replace(seen, gates=self.gates, points=self.points)

    def _apply(self, name: str, value: str) -> None:
        match name:
            case "table":
                self._table(value)
            case "fleet":
                self.fleet_readable = value != "none"
            case "probe":
                kind, _, phase = value.partition(":")
                why = "" if phase == "passed" else "no answer"
                probes = () if value == "none" else (ProbeStatus(ProbeKind(kind), phase, why),)  # type: ignore[arg-type]
                self.plane.probes = probes
            case "evidence":
                self.evidence = None if value == "none" else _evidence(value)
            case "copies":  # pairs/failed
                pairs, failed = (int(one) for one in value.split("/"))
                status = MirrorStatus(pairs, failed, pairs // 2, "status 500" if failed else None)
                self.evidence = EvidenceStatus(0, Verdict.UNDECIDED, mirror=status)
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
            case "command":
                kind, actor, role = (*value.split("/"), "operator")[:3]
                self.plane.command(CommandKind(kind), actor, role)
            case _:
                self._version(name, value)

    def _table(self, value: str) -> None:
        if value == "none":
            self.plane.split = None
            return
        match = re.fullmatch(r"([\w-]+)(?:\+([\w-]+)@(\d+))?(\?)?", value)
        assert match is not None, f"table {value!r} is not a table"
        self.plane.table(match[1], match[2], int(match[3] or 0))
        if match[4] and self.plane.split is not None:
            self.plane.split = replace(self.plane.split, applied=False)

    def _version(self, name: str, value: str) -> None:
        value, _, error = value.partition("!")
        match = re.fullmatch(r"(\w+)(?:\*(\d+))?(?:/(\d+))?", value)
        assert match is not None, f"{name}={value} is not a word of a transcript"
        assert name.startswith("v-"), f"{name}={value} is not a word of a transcript"
        phase = VersionPhase(match[1])
        if phase is VersionPhase.GONE:
            self.plane.versions.pop(name, None)
            return
        ready = int(match[2] or 1) if phase is VersionPhase.READY else 0
        error = "CUDA out of memory" if phase is VersionPhase.FAILED else error
        in_flight = int(match[3] or 0)
        self.plane.versions[name] = VersionStatus(name, phase, ready, in_flight, None, error or None)


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


def _summary(state: RolloutState) -> str:
    phase = f"stage {state.stage + 1}" if state.phase is Phase.STAGE else state.phase.value
    words = [phase, percent(state.weight_bp), f"serving {state.serving}"]
    words += [] if state.acked_at_s is None else ["acknowledged"]
    words += [f"held: {hold.kind.value}" for hold in state.holds]
    words += [] if state.deadline_at_s is None else [f"until {state.deadline_at_s:g} s"]
    if state.departure is not None:
        departure = state.departure
        times = (departure.traffic_shift_ms, departure.drain_ms, departure.unload_ms, departure.total_ms)
        ms = " ".join("-" if time is None else f"{time:.0f}" for time in times)
        words.append(f"{departure.leaving} leaves: {departure.step.value} [{ms}]")
    code = exit_code(state)
    return ", ".join(words if code is None else [*words, f"exit {code}"])


def _action(action: Action) -> str:
    match action:
        case EnsureVersion(version, replicas):
            return f"ensure {version} x {replicas}"
        case ExamineJudge(judge, attempt):
            return f"examine judge {judge.model}, attempt {attempt}"
        case SetSplit(stable, canary, 0, _, copies) if copies:
            return f"split {stable} alone, {percent(copies)} copied to {canary}"
        case SetSplit(stable, canary, points):
            return f"split {stable} + {canary} at {percent(points)}" if canary else f"split {stable} alone"
        case DrainVersion(version) | CancelVersion(version) | StopVersion(version):
            return f"{action.kind} {version}"
        case RunProbe(probe, version):
            return f"probe {probe.value} {version}"
        case Notify(key, severity, text):
            return f"{severity} [{key}] {text}"
