"""Rendering of a plan and its forecast for people, without I/O."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from controller.cli.output import table
from controller.quantities import FULL_BP, duration, figure, percent
from controller.spec.label import Label, title
from controller.views.models import AttemptView, ForecastView, PlanView


def plan_detail(view: PlanView, *, is_wide: bool) -> RenderableType:
    """Preview of a deploy."""
    parts: list[RenderableType] = [
        Text.assemble(
            (view.service, "bold"), "  ", title(view.stable, view.stable_name), " -> ",
            (title(view.canary, view.canary_name), "bold"), f"  risk {view.risk}",
        )
    ]  # fmt: skip
    parts += [Text(f"  {_attempt(one)}", style="bold red") for one in view.attempts]
    parts += [Text(f"  {reason}") for reason in view.reasons]
    parts += [Text(f"  {warning}", style="bold red") for warning in view.warnings]
    grid = table(
        "stage",
        "weight",
        "min duration",
        "min canary requests",
        "deadline",
        "replicas",
        drop=("replicas", "deadline"),
    )
    for stage in view.stages:
        grid.add_row(
            str(stage.number),
            ", ".join(
                [
                    percent(stage.weight_bp),
                    *(f"{one.name} {percent(one.weight_bp)}" for one in stage.audiences),
                ]
            ),
            duration(stage.duration_s),
            str(stage.min_canary),
            duration(round(stage.deadline_s)),
            str(stage.replicas),
        )
    if not view.twin:
        grid.add_row("bake", percent(FULL_BP - view.holdback_bp), duration(view.bake_s), "-", "-", "-")
    points = [str(stage.number) for stage in view.stages if stage.promote_if_point_ok]
    parts += [Text(), grid, *(Text(line) for line in view.latency), Text(f"capacity: {view.capacity}")]
    if view.preflight:
        parts.append(Text(f"asked before the first user, beside stable: {view.preflight}"))
    if view.mirror:
        parts.append(Text(f"copied to the canary before stage 1: {view.mirror}"))
    if view.judge:
        parts.append(Text(view.judge))
    if view.twin:
        parts.append(Text("twin run: ends by unloading the twin; nothing is promoted"))
    if points:
        text = f"if unproven at the deadline, promoted on point estimates: stage {', '.join(points)}"
        parts.append(Text(text, style="yellow"))
    parts.append(Text(f"minimum duration {_shortest(view)}, if every proof arrives in time"))
    parts += [Text(one.text, style="bold yellow") for one in view.not_judged]
    parts += _forecast(view)
    if is_wide:
        parts += [Text(), Text(f"gates (alpha {view.alpha:g} for the whole rollout)")]
        parts += [Text(f"  {line}") for line in view.gates]
    return Group(*parts)


def decision(view: PlanView) -> str:
    """What a reader decides by, in one line: the risk, how long it takes, what is against it."""
    median_s, _ = view.decision_s
    expected = f", expected {duration(round(median_s))} before the bake" if median_s is not None else ""
    against = [f"{len(view.warnings)} warnings above"] if view.warnings else []
    against += [one.text for one in view.not_judged]
    text = f"{view.service}: risk {view.risk}, {len(view.stages)} stages, minimum {_shortest(view)}{expected}"
    return "; ".join([text, *against])


def _shortest(view: PlanView) -> str:
    return duration(round(view.shortest_s))


def _attempt(one: AttemptView) -> str:
    """How an earlier rollout of this version ended: `was rolled back on DATE in ROLLOUT: why (by whom)`."""
    ended = {"succeeded": "was promoted", "rolled_back": "was rolled back", "failed": "failed"}
    at_s = one.ended_at_s if one.ended_at_s is not None else one.started_at_s
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))
    by = Label(actor=one.actor, message=one.message).byline
    if one.phase in ended:
        what = f"this version {ended[one.phase]} on {date} in {one.rollout}"
    else:
        phase = one.phase.replace("_", " ")
        what = f"this version has been rolled out since {date} in {one.rollout}, now {phase}"
    return f"{what}: {one.reason}{f' ({by})' if by else ''}"


def _forecast(view: PlanView) -> list[RenderableType]:
    """Expected duration and detectable harm of each stage, or why there is no forecast."""
    if view.forecast is None or view.requests_per_s is None:
        return [Text(f"expected duration unknown: {view.forecast_note}")] if view.forecast_note else []
    size = view.unit_requests or 1
    unit = "1 request per unit" if size == 1 else f"{figure(size, 3)} per unit"
    users = f", {view.users:,} returning users" if view.users is not None else ""
    rate = figure(view.requests_per_s, 3)
    parts = [
        Text(),
        Text(f"expected duration at {rate} requests/s, {unit}{users}", style="bold"),
    ]
    parts += [Text(f"  {line}") for line in view.basis]
    grid = table("stage", "proven after (p50)", "p90", "proven runs", "slowest gate", drop=("proven runs",))
    for stage in view.forecast:
        limit = stage.simulated_requests
        late = "after its deadline" if limit is None else f"after {limit:.0f} requests"
        grid.add_row(
            str(stage.number),
            _time(stage.seconds_median, late),
            _time(stage.seconds_p90, late),
            f"{stage.proven_runs} of {stage.runs}" if stage.slowest_gate else "-",
            stage.slowest_gate or "nothing to prove",
        )
    median_s, p90_s = view.decision_s
    grid.add_row("all", _time(median_s, "unknown"), _time(p90_s, "unknown"), "-", "before the bake")
    notes = []
    if len({stage.runs for stage in view.forecast if stage.slowest_gate}) > 1:
        notes = [Text("proven runs: of those simulated; a long stage is simulated less often", style="dim")]
    return [*parts, Text(), grid, *notes, *_detectable_harm(view.forecast)]


def _detectable_harm(stages: Sequence[ForecastView]) -> list[RenderableType]:
    """Minimum detectable effect of each stage, a column for each gate."""
    gates = [effect.rpartition(" ")[0].rstrip(":") for effect in stages[0].finds] if stages else []
    if not gates:
        return []
    grid = table("stage", *gates)
    for stage in stages:
        grid.add_row(str(stage.number), *(effect.rpartition(" ")[2] for effect in stage.finds))
    return [Text(), Text("minimum detectable effect (90 % power)", style="bold"), grid]


def _time(seconds: float | None, late: str) -> str:
    return late if seconds is None else duration(round(seconds))
