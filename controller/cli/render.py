"""Rendering of views for people: each function turns one view into a rich renderable, without I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from controller.cli.output import table
from controller.cli.render_costs import cost_lines
from controller.cli.render_end import end_lines, is_test_ended, ms
from controller.cli.render_gates import (
    BAR_WIDTH,
    Fold,
    bar_width,
    folded,
    gate_notes,
    gates_table,
    source_lines,
)
from controller.cli.render_proofs import proof_lines, proven_at, summary
from controller.quantities import FULL_BP, NEVER_CANARY, duration, gib, percent
from controller.spec.label import Label, title
from controller.views.models import RolloutView, ServiceView

WEIGHT_BAR_WIDTH = 44  # with both labels 70 columns, the frame of `watch` included
# Keyed by the view's text, not by the enumerations: importing those takes longer than drawing the tables.
PHASE_STYLE = {
    "succeeded": "bold green",
    "rolled_back": "bold red",
    "failed": "bold red",
    "rolling_back": "red",
}
WIDE = 200  # columns of a terminal that is not known
CANNOT_DECIDE = "the controller can decide nothing"
STAGE_STYLE = {"done": ("✓", "green"), "now": ("●", "bold cyan"), "ahead": ("○", "dim")}
NOT_REACHED = "–"  # a stage that never comes: the rollout goes back, or is over


def served_line(view: ServiceView) -> Text:
    """What answers at a service's address, after `up`: its stable version only where that is what it is."""
    name, service, url = title(view.stable, view.stable_name), (view.service, "bold"), (view.url, "bold")
    if view.versions is None:
        return Text.assemble(service, " is at ", url, "; what serves there cannot be read now")
    if view.routed is not None:
        after = f"; {name} takes its place once all of it is ready"
        return Text.assemble(service, f" serves {view.routed} at ", url, after)
    is_ready = any(one.version == view.stable and one.phase == "ready" for one in view.versions)
    if not is_ready:
        return Text.assemble(service, f" does not serve {name} yet; it will at ", url)
    return Text.assemble(service, f" serves {name} at ", url)


def phase_text(view: RolloutView) -> Text:
    """The phase in its colour; a stage with its number."""
    text = view.phase.replace("_", " ")
    if view.stage is not None:
        text = f"stage {view.stage} of {len(view.stages)}"
    if is_test_ended(view):
        return Text("A/B test ended", style="cyan")
    return Text(text, style=PHASE_STYLE.get(view.phase, "cyan"))


def services_table(views: Sequence[ServiceView], *, is_wide: bool, empty: str = "") -> RenderableType:
    """Table of services."""
    grid = table(
        "service",
        "serving",
        "ready",
        "canary",
        "weight",
        "rollout",
        *(["url"] if is_wide else []),
        drop=("url", "ready", "weight"),
    )
    for view in views:
        running = view.rollout if view.rollout and not view.rollout.is_final else None
        cells: list[RenderableType] = [
            view.service,
            title(view.stable, view.stable_name),
            _ready(view, view.stable),
            title(running.canary, running.canary_name) if running else "-",
            percent(view.weight_bp) if view.weight_bp is not None else "unknown",
            phase_text(view.rollout) if view.rollout else "unreadable" if view.unreadable else "-",
        ]
        grid.add_row(*cells, *([view.url] if is_wide else []))
    problems = [
        Text(f"{view.service}: {text}", style="bold red")
        for view in views
        for text in (view.outage, f"{CANNOT_DECIDE}: {view.problem}" if view.problem is not None else None)
        if text is not None
    ]
    return Group(grid, *problems) if views else Text(empty)


def service_detail(
    view: ServiceView, *, is_wide: bool, columns: int = WIDE, detail: Detail | None = None
) -> RenderableType:
    """A service: its URL, its versions and its newest rollout. columns: of the terminal. detail: how much of
    the rollout; None: all."""
    parts: list[RenderableType] = [
        Text.assemble(
            (view.service, "bold"),
            "  serving ",
            (title(view.stable, view.stable_name), "bold"),
            *_to_canary(view),
            f"  {view.url}",
        ),
        *unanswered(view),
        versions_table(view, is_wide=is_wide),
        *(Text(missing.text, style="bold red") for missing in view.missing_keys),
        *([Text(view.unreadable, style="bold red")] if view.unreadable is not None else []),
        *([Text(f"{CANNOT_DECIDE}: {view.problem}", style="bold red")] if view.problem is not None else []),
    ]
    if view.rollout is not None:
        detail = detail or Detail(bar_width=bar_width(columns))
        if view.rollout.is_final and not is_wide:  # what was still open says nothing of now
            detail = replace(detail, fold=Fold.ALL)
        parts += [Text(), *rollout_parts(view.rollout, is_wide=is_wide, detail=detail)]
    return Group(*parts)


def _to_canary(view: ServiceView) -> list[str | tuple[str, str]]:
    """The canary's part of the requests, which is all of them while an undo or a promotion is watched."""
    rollout = view.rollout
    if not view.weight_bp or rollout is None or rollout.is_final or rollout.canary == view.stable:
        return []
    return [
        f", {percent(view.weight_bp)} of requests to ",
        (title(rollout.canary, rollout.canary_name), "bold"),
    ]


def unanswered(view: ServiceView) -> list[Text]:
    """Who answers for a version that has requests and no ready replica, and what users do not get; empty:
    each answers its own."""
    outage = [Text(view.outage, style="bold red")] if view.outage is not None else []
    if view.versions is None or view.weight_bp is None:
        return outage
    ready = {one.version for one in view.versions if one.ready_replicas > 0}
    canary = view.rollout.canary if view.rollout is not None and _to_canary(view) else None
    has_stable = view.stable in ready
    is_stable_asked = canary is None or view.weight_bp < FULL_BP
    if canary is not None and canary not in ready:
        text = (
            f"no replica of {canary} is ready: {view.stable} answers its requests"
            if has_stable
            else "no replica is ready: no request is answered"
        )
    elif is_stable_asked and not has_stable and view.routed in ready:
        text = f"{view.routed} answers until {view.stable} is ready"
    elif is_stable_asked and not has_stable:
        text = f"no replica of {view.stable} is ready: its requests are not answered"
    else:
        return outage
    return [Text(text, style="bold red"), *outage]


def versions_table(view: ServiceView, *, is_wide: bool) -> RenderableType:
    """Table of the versions in the fleet."""
    if view.versions is None:
        return Text("the fleet does not answer now, as while engines start; try again", style="yellow")
    grid = table(
        "version",
        "name",
        "role",
        "state",
        "replicas",
        "in flight",
        "memory",
        *(["by", "message", "source", "error"] if is_wide else []),
        drop=("by", "message", "source", "memory", "in flight", "replicas"),
    )
    for version in view.versions:
        role = "stable" if version.version == view.stable else "canary"
        state = Text(version.phase, style="green" if version.phase == "ready" else "yellow")
        if version.phase == "failed":
            state = Text(f"failed: {version.last_error or 'no error reported'}", style="red")
        elif version.phase == "loading" and version.last_error:
            state = Text(f"loading: {version.last_error}", style="yellow")
        memory = gib(version.memory_bytes) if version.memory_bytes is not None else "-"
        cells: list[RenderableType] = [
            version.version, version.name or "-", role, state, str(version.ready_replicas),
            str(version.in_flight), memory,
        ]  # fmt: skip
        more = (version.actor, version.message, version.source, version.last_error) if is_wide else ()
        grid.add_row(*cells, *(text or "-" for text in more))
    return grid


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of a rollout is drawn."""

    log_lines: int = 8
    bar_width: int = BAR_WIDTH
    fold: Fold = Fold.NONE
    has_ornaments: bool = True  # who deployed it, the bar of the weights, blank lines
    has_remarks: bool = True  # proofs of earlier stages, alarms that decide nothing, what explains the table
    crops_log: bool = False  # each event on one line


FULL_DETAIL = Detail()


def rollout_parts(view: RolloutView, *, is_wide: bool, detail: Detail = FULL_DETAIL) -> list[RenderableType]:
    """A rollout: its phase, stages, weight, gates, notes and the end of its log."""
    blank = [Text()] if detail.has_ornaments else []
    head = Text.assemble(
        (view.rollout, "bold"), "  ", arms(view), "  ", phase_text(view),
        *([f"  risk {view.risk}"] if is_wide else []),
    )  # fmt: skip
    parts: list[RenderableType] = [head, *(byline(view) if detail.has_ornaments else []), stages_line(view)]
    if detail.has_ornaments:
        parts.append(weight_bar(view))
    parts += end_lines(view)
    if view.waiting_for:
        parts.append(Text("waiting for " + "; ".join(view.waiting_for), style="dim"))
    parts += [*_deadline(view)]
    parts += [Text(f"on hold: {hold.reason} ({hold.actor})", style="yellow") for hold in view.holds]
    if detail.has_remarks:
        parts += proof_lines(view)
    if view.gates:
        parts += [*blank, *_gate_parts(view, is_wide=is_wide, detail=detail)]
    parts += source_lines(view.gates)
    if detail.has_remarks:
        parts += [Text(f"alarm, not deciding: {alarm.text}", style="yellow") for alarm in view.alarms]
    parts += [Text(line, style="dim") for line in cost_lines(view.costs)]
    if view.judge is not None:
        is_fine = view.judge.state in ("admitted", "being examined")
        parts.append(Text(view.judge.text, style="dim" if is_fine else "yellow"))
    parts += [Text(note, style="yellow") for note in view.notes]
    parts += blank
    events = [log_line(line.at_s, line.actor, line.text) for line in view.log[-detail.log_lines :]]
    if detail.crops_log:
        for event in events:
            event.no_wrap, event.overflow = True, "ellipsis"
    return [*parts, *events]


def _gate_parts(view: RolloutView, *, is_wide: bool, detail: Detail) -> list[RenderableType]:
    """The gates' table with the lines that it needs."""
    is_over = view.is_final or view.steps is not None  # a version is leaving: its arm cannot be compared
    shown, lines = folded(view.gates, detail.fold)
    parts: list[RenderableType] = []
    if shown:
        parts.append(
            gates_table(
                shown,
                is_wide=is_wide,
                proven=proven_at(view),
                is_over=is_over,
                bar_width=detail.bar_width,
            )
        )
    parts += [Text(line, style="dim") for line in lines]
    invalid = () if is_wide or is_over else [gate for gate in view.gates if gate.verdict == "INVALID"]
    parts += [Text(f"{gate.gate}: {gate.reason}", style="magenta") for gate in invalid]
    if detail.has_remarks:
        parts += [Text(line, style="dim") for line in gate_notes(view.gates)]
    return parts


def _deadline(view: RolloutView) -> list[Text]:
    """When the stage that runs ends, if its evidence decides nothing before."""
    if view.stage is None or view.deadline_at_s is None:
        return []
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(view.deadline_at_s))
    return [Text(f"deadline of the stage: {at}", style="dim")]


def rollout_detail(view: RolloutView, *, is_wide: bool, columns: int = WIDE) -> RenderableType:
    """One rollout with its whole log. columns: of the terminal."""
    detail = Detail(len(view.log), bar_width(columns))
    return Group(*rollout_parts(view, is_wide=is_wide, detail=detail))


def arms(view: RolloutView) -> str:
    """Both versions, with their names; the canary's name alone where the rollout could not be read."""
    if view.phase == "unreadable":
        return view.canary_name
    return f"{title(view.stable, view.stable_name)} -> {title(view.canary, view.canary_name)}"


def byline(view: RolloutView) -> list[Text]:
    """Who deployed the canary and why, if that is known."""
    text = Label(actor=view.actor, message=view.message).byline
    return [Text(f"deployed {text}" if view.actor else text, style="dim")] if text else []


def stages_line(view: RolloutView) -> Text:
    """The stages: done, current, ahead, or never to come."""
    line = Text()
    is_over = view.cause is not None or (view.is_final and view.phase != "succeeded")
    for stage in view.stages:
        symbol, style = STAGE_STYLE.get(stage.status, STAGE_STYLE["ahead"])
        if is_over and stage.status == "ahead":
            symbol = NOT_REACHED
        minimum = f"/{stage.min_canary}" if stage.min_canary < NEVER_CANARY else ""
        requests = f" {view.canary_requests}{minimum}" if stage.status == "now" else ""
        line.append(f"{symbol} {percent(stage.weight_bp)}{requests}   ", style=style)
    if view.twin:
        return line.append("○ nothing to promote", style="dim")
    if view.ab_test:  # it ends with B leaving, so that 100 % never comes
        return line.append(f"{NOT_REACHED if is_over else '○'} ends with B removed", style="dim")
    symbol, style = ("✓", "green") if view.phase == "succeeded" else ("○", "dim")
    return line.append(f"{NOT_REACHED if is_over else symbol} 100 %", style=style)


def weight_bar(view: RolloutView) -> Text:
    """Bar of the traffic shares of stable and canary."""
    width = WEIGHT_BAR_WIDTH
    canary = round(width * view.weight_bp / FULL_BP)
    if 0 < view.weight_bp < FULL_BP:
        canary = min(max(canary, 1), width - 1)
    line = Text("stable ", style="blue")
    line.append("█" * (width - canary), style="blue")
    line.append("▒" * canary, style="yellow")
    line.append(f" canary {percent(view.weight_bp)}", style="yellow")
    return line


def log_line(at_s: float, actor: str, text: str) -> Text:
    """One line of the log, in local time."""
    line = Text(time.strftime("%H:%M:%S ", time.localtime(at_s)), style="dim")
    if actor != "controller":
        line.append(f"{actor}: ", style="bold")
    line.append(text, style="default")
    return line


def history_list(views: Sequence[RolloutView], *, is_wide: bool) -> RenderableType:
    """Rollouts, newest first: when, how it ended, both versions, who and why, and the cause."""
    parts: list[RenderableType] = []
    for view in views:
        ended_s = view.log[-1].at_s if view.log else view.entered_at_s
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.started_at_s))
        took = duration(round(max(0.0, ended_s - view.started_at_s)))
        took += f", risk {view.risk}" if view.risk != "none" else ""  # an undo changes nothing that has any
        head = Text.assemble((view.rollout, "bold"), f"  {started}, {took}  ", phase_text(view))
        if is_wide and view.steps is not None:
            head.append(f"  rollback {ms(view.steps.total_ms)}")
        lines = [Text(arms(view)), *byline(view), Text(view.reason, style="dim")]
        lines += [Text(proofs, style="dim")] if (proofs := summary(view)) else []
        parts += [head, *(Padding(line, (0, 0, 0, 2)) for line in lines)]
    return Group(*parts) if parts else Text("no rollout yet")


def _ready(view: ServiceView, version: str) -> str:
    if view.versions is None:
        return "unknown"
    found = next((found for found in view.versions if found.version == version), None)
    return f"{found.ready_replicas} {found.phase}" if found is not None else "0"
