"""Rendering of the gates for people, without I/O: their table, and the lines that the table needs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import IntEnum

from rich.console import RenderableType
from rich.text import Text

from controller.cli.output import NO_ANSWER, gate_title, number, slowest_line, table
from controller.views.models import GateView

BAR_WIDTH, SHORT_BAR = 6, 2
NARROW_COLUMNS = 100
VERDICT_STYLE = {
    "PASS": "green",
    "FAIL": "bold red",
    "UNDECIDED": "yellow",
    "INVALID": "magenta",
}


def gates_table(
    gates: Sequence[GateView],
    *,
    is_wide: bool,
    proven: Mapping[str, str] | None = None,
    is_over: bool = False,
    bar_width: int = BAR_WIDTH,
) -> RenderableType:
    """Evidence by gate: is the canary worse (rolls back), is it proven no worse (promotes)?

    proven: by gate, the weights at which its stages proved it, once they are over. is_over: the rollout has
    ended, so that its arms cannot be compared any more, which is no news.
    """
    proven = proven or {}
    grid = table(
        "gate",
        "worse?",
        "no worse?",
        "stable",
        "canary",
        "requests",
        *(["why"] if is_wide else []),
        drop=("why", "requests"),
    )
    for name in dict.fromkeys(gate.gate for gate in gates):
        sides = {gate.side: gate for gate in gates if gate.gate == name}
        harm, proof = sides.get("rollback") or sides.get("guard"), sides.get("promotion")
        shown = harm or proof
        if shown is None:
            continue
        grid.add_row(
            gate_title(name, shown.statistic, shown.metric),
            Text("-", style="dim")
            if is_over and harm and harm.verdict == "INVALID"
            else _progress(harm, bar_width),
            _proven(proven[name]) if name in proven else _progress(proof, bar_width),
            _figure(shown.stable, shown.n_stable, shown.unanswered_stable),
            _figure(shown.canary, shown.n_canary, shown.unanswered_canary),
            f"{shown.n_stable}/{shown.n_canary}",
            *([_reason(harm, proof)] if is_wide else []),
        )
    return grid


def bar_width(columns: int) -> int:
    """Width of the gates' bars in a terminal of so many columns: short ones let each gate keep its line."""
    return BAR_WIDTH if columns >= NARROW_COLUMNS else SHORT_BAR


class Fold(IntEnum):
    """Which undecided gates share one line in place of a row each."""

    NONE = 0
    WATCHED = 1  # those that the stage does not have to prove
    ALL = 2


def folded(gates: Sequence[GateView], fold: Fold) -> tuple[list[GateView], list[str]]:
    """The gates that keep their row, and a line that names the others, which are undecided."""
    named = []
    for name in dict.fromkeys(gate.gate for gate in gates):
        sides = [gate for gate in gates if gate.gate == name]
        is_open = all(gate.verdict == "UNDECIDED" and gate.source == "arrives" for gate in sides)
        is_needed = any(gate.side == "promotion" for gate in sides)
        if is_open and (fold is Fold.ALL or (fold is Fold.WATCHED and not is_needed)):
            named.append(name)
    shown = [gate for gate in gates if gate.gate not in named]
    return shown, [f"undecided: {', '.join(named)}"] if named else []


def gate_notes(gates: Sequence[GateView]) -> list[str]:
    """What the table alone would make a riddle of: failures as the slowest, harm that was proven harmless."""
    shares: dict[str, tuple[float, float] | None] = {}
    for gate in gates:
        if gate.unanswered_stable is not None and gate.unanswered_canary is not None:
            shares[gate.gate] = (gate.unanswered_stable, gate.unanswered_canary)
    lines = [line] if (line := slowest_line(shares)) is not None else []
    failed = {gate.gate: gate for gate in gates if gate.side == "rollback" and gate.verdict == "FAIL"}
    for gate in gates:
        if gate.side == "promotion" and gate.verdict == "PASS" and (harm := failed.get(gate.gate)):
            lines.append(f"{gate.gate}: worse is {harm.limits}, proven is {gate.limits}: between, both hold")
    return lines


def source_lines(gates: Sequence[GateView]) -> list[Text]:
    """A line for each gate whose metric does not arrive."""
    silent = {gate.gate: gate for gate in gates if gate.source != "arrives"}.values()
    lines = []
    for gate in silent:
        what = "has not arrived" if gate.source == "never" else "has stopped arriving"
        if gate.last_value_s is not None:
            what += time.strftime(" since %H:%M:%S", time.localtime(gate.last_value_s))
        lines.append(Text(f"{gate.gate} NOT JUDGED: {gate.metric} {what}", style="bold magenta"))
    return lines


def _figure(value: float | None, requests: int, unanswered: float | None) -> str:
    """An estimate; null is a percentile among the requests without an answer where some have none."""
    return NO_ANSWER if value is None and requests and unanswered else number(value)


def _proven(weights: str) -> Text:
    """The weights of the stages that proved a gate; none: it was left unproven."""
    return Text(f"PASS at {weights}", style="green") if weights else Text("NOT PROVEN", style="yellow")


def _progress(gate: GateView | None, bar_width: int) -> Text:
    """A gate's progress towards its decision, and its verdict."""
    if gate is None:
        return Text("-", style="dim")
    if gate.source != "arrives":
        return Text("NOT JUDGED", style="bold magenta")
    filled = round(bar_width * gate.progress_ratio)
    style = VERDICT_STYLE.get(gate.verdict, "cyan")
    line = Text("━" * filled, style=style)
    line.append("╌" * (bar_width - filled), style="dim")
    line.append(f" {gate.verdict}", style=style)
    return line


def _reason(harm: GateView | None, proof: GateView | None) -> str:
    """The more important of two reasons: proven harm first, then what is not proven yet."""
    if harm is not None and harm.verdict in ("FAIL", "INVALID"):
        return harm.reason
    shown = proof or harm
    return shown.reason if shown is not None else ""
