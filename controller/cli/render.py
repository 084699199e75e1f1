"""Views as people see them: each function turns one view into what rich can print, and asks nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from controller.cli.output import table
from controller.quantities import FULL_BP, duration, gib, percent
from controller.rollout.plan import NEVER_CANARY
from controller.rollout.state import Phase
from controller.views.models import (
    ForecastView,
    GateView,
    PlanView,
    RolloutView,
    ServiceView,
    StageView,
    StepsView,
)
from evaluation.report import Verdict

BAR = 6
WEIGHT_BAR = 48
PHASE_STYLE = {
    Phase.SUCCEEDED: "bold green",
    Phase.ROLLED_BACK: "bold red",
    Phase.FAILED: "bold red",
    Phase.ROLLING_BACK: "red",
}
VERDICT_STYLE = {
    Verdict.PASS: "green",
    Verdict.FAIL: "bold red",
    Verdict.UNDECIDED: "yellow",
    Verdict.INVALID: "magenta",
}
STAGE_MARK = {"done": ("✓", "green"), "now": ("●", "bold cyan"), "ahead": ("○", "dim")}


def phase_text(view: RolloutView) -> Text:
    """The phase in its colour, a stage with its number."""
    words = view.phase.value.replace("_", " ")
    if view.stage is not None:
        words = f"stage {view.stage} of {len(view.stages)}"
    return Text(words, style=PHASE_STYLE.get(view.phase, "cyan"))


def services_table(views: Sequence[ServiceView], *, wide: bool) -> RenderableType:
    """One line a service."""
    grid = table("service", "serving", "ready", "canary", "weight", "rollout", *(["url"] if wide else []))
    for view in views:
        rollout = view.rollout if view.rollout and not view.rollout.is_final else None
        cells: list[RenderableType] = [
            view.service,
            view.stable,
            _ready(view, view.stable),
            rollout.canary if rollout else "-",
            percent(view.weight_bp) if view.weight_bp is not None else "unknown",
            phase_text(view.rollout) if view.rollout else "-",
        ]
        grid.add_row(*cells, *([view.url] if wide else []))
    return grid if views else Text("no service yet; start one: canaryctl up --service chat --model DIR")


def service_detail(view: ServiceView, *, wide: bool) -> RenderableType:
    """A service: what it serves, on what, and its newest rollout."""
    parts: list[RenderableType] = [
        Text.assemble((view.service, "bold"), "  serving ", (view.stable, "bold"), f"  {view.url}"),
        versions_table(view, wide=wide),
    ]
    if view.rollout is not None:
        parts += [Text(), *rollout_parts(view.rollout, wide=wide)]
    return Group(*parts)


def versions_table(view: ServiceView, *, wide: bool) -> RenderableType:
    """The versions in the fleet."""
    if view.versions is None:
        return Text("the fleet cannot be read now", style="yellow")
    grid = table("version", "role", "state", "replicas", "in flight", "memory", *(["error"] if wide else []))
    for one in view.versions:
        role = "stable" if one.version == view.stable else "canary"
        state = Text(one.phase, style="green" if one.phase == "ready" else "yellow")
        if one.phase == "failed":
            state = Text(f"failed: {one.last_error or 'no error given'}", style="red")
        memory = gib(one.memory_bytes) if one.memory_bytes is not None else "-"
        cells: list[RenderableType] = [
            one.version, role, state, str(one.ready_replicas), str(one.in_flight), memory
        ]  # fmt: skip
        grid.add_row(*cells, *([one.last_error or "-"] if wide else []))
    return grid


def rollout_parts(view: RolloutView, *, wide: bool, log_lines: int = 8) -> list[RenderableType]:
    """A rollout from its head line to its log."""
    head = Text.assemble(
        (view.rollout, "bold"), "  ", view.stable, " -> ", view.canary, "  ", phase_text(view),
        *([f"  risk {view.risk}"] if wide else []),
    )  # fmt: skip
    parts: list[RenderableType] = [head, stages_line(view), weight_bar(view)]
    if view.waiting_for:
        parts.append(Text("waiting for " + "; ".join(view.waiting_for), style="dim"))
    parts += [Text(f"held: {hold.reason} ({hold.actor})", style="yellow") for hold in view.holds]
    if view.gates:
        parts += [Text(), gates_table(view.gates, wide=wide)]
        invalid = () if wide else [gate for gate in view.gates if gate.verdict is Verdict.INVALID]
        parts += [Text(f"{gate.gate}: {gate.reason}", style="magenta") for gate in invalid]
    parts += [Text(f"alarm, not deciding: {alarm.text}", style="yellow") for alarm in view.alarms]
    parts += [Text(note, style="yellow") for note in view.notes]
    if view.cause is not None:
        parts.append(Text(f"rolled back by {view.cause.kind}: {view.cause.text}", style="red"))
    if view.steps is not None:
        parts.append(steps_line(view.steps))
    parts.append(Text())
    parts += [log_line(line.at_s, line.actor, line.text) for line in view.log[-log_lines:]]
    return parts


def stages_line(view: RolloutView) -> Text:
    """The ladder: what is done, what runs, what is ahead."""
    line = Text()
    for stage in view.stages:
        mark, style = STAGE_MARK[stage.status]
        least = f"/{stage.min_canary}" if stage.min_canary < NEVER_CANARY else ""
        done = f" {view.canary_requests}{least}" if stage.status == "now" else ""
        line.append(f"{mark} {percent(stage.weight_bp)}{done}   ", style=style)
    if view.twin:
        return line.append("○ nothing to promote", style="dim")
    final = view.phase is Phase.SUCCEEDED
    line.append("✓ 100 %" if final else "○ 100 %", style="green" if final else "dim")
    return line


def weight_bar(view: RolloutView) -> Text:
    """Who gets how much of the traffic."""
    width = WEIGHT_BAR
    canary = round(width * view.weight_bp / FULL_BP)
    if 0 < view.weight_bp < FULL_BP:
        canary = min(max(canary, 1), width - 1)
    line = Text("stable ", style="blue")
    line.append("█" * (width - canary), style="blue")
    line.append("▒" * canary, style="yellow")
    line.append(f" canary {percent(view.weight_bp)}", style="yellow")
    return line


def gates_table(gates: Sequence[GateView], *, wide: bool) -> RenderableType:
    """The evidence, a line a gate: is the canary worse (rolls back), is it proven no worse (promotes)?"""
    grid = table("gate", "worse?", "no worse?", "stable", "canary", "requests", *(["why"] if wide else []))
    for name in dict.fromkeys(gate.gate for gate in gates):
        sides = {gate.side: gate for gate in gates if gate.gate == name}
        against, proof = sides.get("rollback") or sides.get("guard"), sides.get("promotion")
        shown = against or proof
        if shown is None:
            continue
        grid.add_row(
            name,
            _standing(against),
            _standing(proof),
            _number(shown.stable),
            _number(shown.canary),
            f"{shown.n_stable}/{shown.n_canary}",
            *([_why(against, proof)] if wide else []),
        )
    return grid


def steps_line(steps: StepsView) -> Text:
    """The steps of a departure with their times."""
    named = (
        ("traffic shifted", steps.traffic_shift_ms),
        ("drained", steps.drain_ms),
        ("unloaded", steps.unload_ms),
        ("in all", steps.total_ms),
    )
    done = [f"{name} {_ms(value)}" for name, value in named if value is not None]
    line = Text(f"{steps.leaving} leaves: ", style="bold")
    line.append(", ".join(done) if done else steps.step)
    return line


def log_line(at_s: float, actor: str, text: str) -> Text:
    """One line of the log, in local time."""
    line = Text(time.strftime("%H:%M:%S ", time.localtime(at_s)), style="dim")
    if actor != "controller":
        line.append(f"{actor}: ", style="bold")
    line.append(text, style="default")
    return line


def plan_detail(view: PlanView, *, wide: bool) -> RenderableType:
    """What a deploy would do."""
    parts: list[RenderableType] = [
        Text.assemble(
            (view.service, "bold"), "  ", view.stable, " -> ", (view.canary, "bold"), f"  risk {view.risk}"
        )
    ]
    parts += [Text(f"  {reason}") for reason in view.reasons]
    parts += [Text(f"  {warning}", style="bold red") for warning in view.warnings]
    grid = table("stage", "weight", "at least", "canary requests", "deadline", "replicas")
    for stage in view.stages:
        grid.add_row(*_stage_cells(stage))
    last = percent(FULL_BP - view.holdback_bp)
    if not view.twin:
        grid.add_row("bake", last, duration(view.bake_s), "-", "-", "-")
    points = [str(stage.number) for stage in view.stages if stage.promote_if_point_ok]
    parts += [Text(), grid, *(Text(line) for line in view.latency), Text(f"capacity: {view.capacity}")]
    if view.twin:
        parts.append(Text("a twin run: ends with the twin unloaded; nothing is promoted"))
    if points:
        text = f"unproven at the deadline, goes on on point estimates: stage {', '.join(points)}"
        parts.append(Text(text, style="yellow"))
    parts.append(
        Text(f"at the soonest {duration(round(view.shortest_s))}, when every proof is there in time")
    )
    parts += _forecast(view)
    if wide:
        parts += [Text(), Text(f"gates (alpha {view.alpha:g} for the whole rollout)")]
        parts += [Text(f"  {line}") for line in view.gates]
    return Group(*parts)


def _forecast(view: PlanView) -> list[RenderableType]:
    """How long it will take, and what each stage finds; or why that is not said."""
    if view.forecast is None or view.requests_per_s is None:
        return [Text(f"how long: not known; {view.forecast_note}")] if view.forecast_note else []
    unit = "each its own unit" if view.unit_requests in (None, 1) else f"{view.unit_requests:.3g} a unit"
    users = f", {view.users:,} users who return" if view.users is not None else ""
    parts = [Text(), Text(f"how long, at {view.requests_per_s:.3g} requests/s, {unit}{users}", style="bold")]
    parts += [Text(f"  {line}") for line in view.basis]
    grid = table("stage", "proven after", "nine in ten", "simulated", "last by")
    for one in view.forecast:
        cut = one.simulated_requests
        late = "past its deadline" if cut is None else f"past {cut:.0f} requests"
        grid.add_row(
            str(one.number),
            _time(one.seconds_median, late),
            _time(one.seconds_p90, late),
            f"{one.proven_runs} of {one.runs} runs" if one.slowest_gate else "-",
            one.slowest_gate or "nothing to prove",
        )
    median_s, p90_s = view.decision_s
    grid.add_row("all", _time(median_s, "not known"), _time(p90_s, "not known"), "-", "then the bake")
    return [*parts, Text(), grid, *_findings(view.forecast)]


def _findings(stages: Sequence[ForecastView]) -> list[RenderableType]:
    """The smallest harm that each stage finds, a column a gate."""
    gates = [one.rpartition(" ")[0].rstrip(":") for one in stages[0].finds] if stages else []
    if not gates:
        return []
    grid = table("stage", *gates)
    for stage in stages:
        grid.add_row(str(stage.number), *(one.rpartition(" ")[2] for one in stage.finds))
    return [Text(), Text("the smallest harm found, nine times in ten", style="bold"), grid]


def _time(seconds: float | None, late: str) -> str:
    return late if seconds is None else duration(round(seconds))


def history_table(views: Sequence[RolloutView], *, wide: bool) -> RenderableType:
    """One line a rollout, newest first."""
    more = ("rollback", "reason") if wide else ("reason",)
    grid = table("rollout", "started", "took", "from", "to", "risk", "result", *more)
    for view in views:
        ended_s = view.log[-1].at_s if view.log else view.entered_at_s
        took = duration(round(max(0.0, ended_s - view.started_at_s)))
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.started_at_s))
        steps = _ms(view.steps.total_ms) if view.steps and view.steps.total_ms is not None else "-"
        cells: list[RenderableType] = [
            view.rollout,
            started,
            took,
            view.stable,
            view.canary,
            view.risk,
            phase_text(view),
        ]
        grid.add_row(*cells, *([steps, view.reason] if wide else [view.reason]))
    return grid if views else Text("no rollout yet")


def _stage_cells(stage: StageView) -> tuple[str, ...]:
    return (
        str(stage.number),
        percent(stage.weight_bp),
        duration(stage.duration_s),
        str(stage.min_canary),
        duration(round(stage.deadline_s)),
        str(stage.replicas),
    )


def _ready(view: ServiceView, version: str) -> str:
    if view.versions is None:
        return "unknown"
    one = next((one for one in view.versions if one.version == version), None)
    return f"{one.ready_replicas} {one.phase}" if one is not None else "0"


def _standing(gate: GateView | None) -> Text:
    """A gate's way to its decision, and its verdict."""
    if gate is None:
        return Text("-", style="dim")
    filled = round(BAR * gate.progress_ratio)
    style = VERDICT_STYLE[gate.verdict]
    line = Text("━" * filled, style=style)
    line.append("╌" * (BAR - filled), style="dim")
    line.append(f" {gate.verdict.value}", style=style)
    return line


def _why(against: GateView | None, proof: GateView | None) -> str:
    """The more telling of two reasons: harm first, then what is not proven yet."""
    if against is not None and against.verdict in (Verdict.FAIL, Verdict.INVALID):
        return against.reason
    shown = proof or against
    return shown.reason if shown is not None else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
