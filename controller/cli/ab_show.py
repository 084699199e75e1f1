"""What `canaryctl ab` prints for people: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from controller.ab.results import AbView
from controller.cli.output import table
from evaluation.ab.comparison import MIN_PER_SIDE, AbVerdict
from evaluation.ab.sample_size import SampleSize

_SAID = {
    AbVerdict.B_BETTER: ("B IS BETTER", "bold green"),
    AbVerdict.A_BETTER: ("A IS BETTER", "bold yellow"),
    AbVerdict.NOT_SHOWN: ("NO DIFFERENCE SHOWN", "bold"),
    AbVerdict.TOO_FEW: ("NOT JUDGED YET", "bold"),
    AbVerdict.INVALID: ("INVALID", "bold magenta"),
}


def cell(value: object) -> str:
    """A value of a table; `-` where there is none."""
    if isinstance(value, tuple | list):
        return " to ".join(f"{end:.4g}" for end in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def view_table(view: AbView) -> RenderableType:
    """The verdict in one line, then both sides, then the figures with their names."""
    said, style = _SAID[AbVerdict(view.verdict)]
    direction = "higher" if view.higher_is_better else "lower"
    head = Text.assemble((said, style), f"  {view.metric} ({direction} is better), {view.service}, {view.id}")
    size = f", once, at {view.sample_size} units a side" if view.sample_size else ", at every look"
    lines = [head, Text(f"{view.phase}: {view.why or _share(view)}")]
    if view.note is not None:
        lines.append(Text(f"note: {view.note}", style="magenta"))
    grid = table("side", "version", "units", "mean", "no outcome")
    grid.add_row("A", view.version_a or "-", str(view.n_a), cell(view.mean_a), str(view.missing_a))
    grid.add_row("B", view.version_b or "-", str(view.n_b), cell(view.mean_b), str(view.missing_b))
    p = "-" if view.p_value is None else f"{view.p_value:.3g}"
    figures = table("figure", "value", "")
    figures.add_row("difference", cell(view.difference), "mean of B - mean of A")
    figures.add_row(
        "interval", cell(view.interval), f"of the {view.interval_of}, {(1 - view.alpha) * 100:.4g} % sure"
    )
    figures.add_row("win rate", cell(view.win_rate), "how often an outcome of B beats one of A, ties half")
    figures.add_row("Cohen's d", cell(view.cohens_d), "the difference in standard deviations")
    figures.add_row("p", p, f"alpha {view.alpha:g}, {view.mode}{size}")
    return Group(*lines, Text(), grid, Text(), figures)


def _share(view: AbView) -> str:
    return f"B has {view.split_percent:g} % of the traffic"


def next_step(view: AbView) -> str:
    """What somebody who reads the verdict does now."""
    if view.phase in ("ended", "ending"):
        return f"canaryctl ab create {view.service} begins another; canaryctl deploy takes B to production"
    if AbVerdict(view.verdict) in (AbVerdict.B_BETTER, AbVerdict.A_BETTER, AbVerdict.INVALID):
        return f"canaryctl ab stop {view.service} ends it and takes B away"
    return f"canaryctl ab status {view.service} shows it again, canaryctl ab stop {view.service} ends it"


def size_table(rows: Sequence[tuple[SampleSize, float | None]]) -> RenderableType:
    """The sizes with their relative effects, and the lines that say what they assume."""
    grid = table("difference", "relative", "units of A", "units of B")
    for size, relative in rows:
        share = "-" if relative is None else f"{relative:.1%}"
        grid.add_row(f"{size.effect:.4g}", share, str(size.n_a), str(size.n_b))
    first = rows[0][0]
    sd, alpha, power = f"sd {first.sd:g}", f"alpha {first.alpha:g} two-sided", f"power {first.power:g}"
    lines = [f"assumed: {sd}, {alpha}, {power}, B gets {first.split:.0%}"]
    if any(min(size.n_a, size.n_b) < MIN_PER_SIDE for size, _ in rows):
        lines.append(f"a fixed test takes at least {MIN_PER_SIDE} a side")
    return Group(grid, *lines)


def file_table(rows: Sequence[dict[str, object]]) -> Table:
    """A row for the whole and for each category."""
    names = ("category", "verdict", "n_a", "n_b", "mean_a", "mean_b", "win_rate", "cohens_d", "interval", "p")
    heads = (
        "category",
        "verdict",
        "units A",
        "units B",
        "mean A",
        "mean B",
        "win rate",
        "d",
        "interval",
        "p",
    )
    grid = table(*heads)
    for row in rows:
        grid.add_row(*(cell(row[name]) for name in names))
    return grid
