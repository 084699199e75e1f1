"""Tables of `canaryctl ab`: the verdict first, then the figures behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.text import Text

from controller.ab.results import AbView
from controller.cli.output import number, table
from controller.quantities import figure
from evaluation.ab.comparison import MIN_PER_SIDE, AbVerdict
from evaluation.ab.sample_size import SampleSize

VERDICT_TEXT: dict[str, tuple[str, str]] = {
    AbVerdict.B_BETTER: ("B IS BETTER", "bold green"),
    AbVerdict.A_BETTER: ("A IS BETTER", "bold yellow"),
    AbVerdict.NOT_SHOWN: ("NO DIFFERENCE SHOWN", "bold"),
    AbVerdict.TOO_FEW: ("NOT JUDGED YET", "bold"),
    AbVerdict.INVALID: ("INVALID", "bold magenta"),
}


LEAST_P = 1e-4  # what is below decides every test, and its digits say nothing more
ENDED = ("ended", "ending")
FILE_LEGEND = (
    "units: each counts once; win rate: probability that B's outcome beats A's, ties count half; "
    "d: Cohen's d, the difference in standard deviations; interval: of B minus A"
)
COMPARISONS = ("win_rate", "cohens_d", "interval", "p")


class SizeRow(BaseModel):
    """One sample size and its assumptions."""

    effect: float
    relative: float | None  # effect as a share of the baseline; None: no baseline was given
    n_a: int
    n_b: int
    sd: float
    alpha: float
    power: float
    split: float

    @classmethod
    def of(cls, size: SampleSize, baseline: float | None) -> SizeRow:
        relative = size.effect / baseline if baseline else None
        return cls.model_validate({**asdict(size), "relative": relative})


def cell(value: object) -> str:
    """A table cell: an interval, a number or text; `-` for None."""
    if isinstance(value, tuple | list):
        return " to ".join(figure(bound, 4) for bound in value)
    return number(value) if isinstance(value, float) else "-" if value is None else str(value)


def p_text(value: float | None) -> str:
    """A p-value: three digits, below what a decision needs only that; `-` for None."""
    if value is None:
        return "-"
    return f"< {LEAST_P:g}" if value < LEAST_P else figure(value, 3)


def headline(view: AbView) -> Text:
    """The verdict, of what."""
    verdict, style = VERDICT_TEXT.get(view.verdict, (view.verdict, "bold"))
    if _has_no_data(view) and view.verdict != AbVerdict.INVALID:  # "no difference" would read as a result
        verdict, style = ("NO DATA" if view.phase in ENDED else "NO DATA YET"), "bold"
    direction = "higher" if view.higher_is_better else "lower"
    return Text.assemble(
        (verdict, style), f"  {view.metric} ({direction} is better), {view.service}, {view.id}"
    )


def _has_no_data(view: AbView) -> bool:
    return min(view.n_a, view.n_b) == 0


def view_table(view: AbView) -> RenderableType:
    """The verdict in one line, then both sides, then the figures."""
    size = f", once, at {view.sample_size} units per side" if view.sample_size else ", continuously"
    share = f"B has {view.split_percent:g} % of the traffic"
    lines = [headline(view), Text(f"{view.phase}: {view.why or share}")]
    if view.note is not None:
        lines.append(Text(f"note: {view.note}", style="magenta"))
    if view.left_out:
        lines.append(
            Text(f"{view.left_out} later answers are left out: a user counts once, by the first answer")
        )
    grid = table("side", "version", "units", "mean", "no outcome")
    grid.add_row("A", view.version_a or "-", str(view.n_a), cell(view.mean_a), str(view.missing_a))
    grid.add_row("B", view.version_b or "-", str(view.n_b), cell(view.mean_b), str(view.missing_b))
    figures = table("figure", "value", "")
    figures.add_row("difference", cell(view.difference), "mean of B minus mean of A")
    figures.add_row(
        "interval", cell(view.interval), f"{(1 - view.alpha) * 100:.4g} % interval of the {view.interval_of}"
    )
    figures.add_row(
        "win rate", cell(view.win_rate), "probability that B's outcome beats A's, ties count half"
    )
    figures.add_row("Cohen's d", cell(view.cohens_d), "difference in standard deviations")
    figures.add_row(
        "p",
        p_text(None if _has_no_data(view) else view.p_value),
        f"alpha {view.alpha:g}, {view.mode}{size}",
    )
    return Group(*lines, Text(), grid, Text(), figures)


def next_step(view: AbView) -> str:
    """Commands that follow from the phase and the verdict."""
    if view.phase in ENDED:
        again = f"start another: canaryctl ab create {view.service}"
        if _has_no_data(view):
            return again
        return f"{again}; take B to production: canaryctl deploy {view.service} --model DIR (or --url URL)"
    if view.verdict in (AbVerdict.B_BETTER, AbVerdict.A_BETTER, AbVerdict.INVALID):
        return f"end it and remove B: canaryctl ab stop {view.service}"
    return f"check again: canaryctl ab status {view.service}; end it: canaryctl ab stop {view.service}"


def size_table(rows: Sequence[SizeRow]) -> RenderableType:
    """The sample sizes, then their assumptions."""
    grid = table("difference", "relative", "units of A", "units of B")
    for row in rows:
        relative = "-" if row.relative is None else f"{row.relative:.1%}"
        grid.add_row(f"{figure(row.effect, 4)}", relative, str(row.n_a), str(row.n_b))
    first = rows[0]
    lines = [
        f"assumed: sd {first.sd:g}, alpha {first.alpha:g} two-sided, power {first.power:g}, "
        f"B gets {first.split:.0%}"
    ]
    if any(min(row.n_a, row.n_b) < MIN_PER_SIDE for row in rows):
        lines.append(f"a fixed test needs at least {MIN_PER_SIDE} units per side")
    return Group(grid, *lines)


def file_table(rows: Sequence[dict[str, object]], notes: Sequence[str]) -> RenderableType:
    """A row for the whole file and for each category, then the notes."""
    titles = {
        "category": "category", "verdict": "verdict", "n_a": "units A", "n_b": "units B", "mean_a": "mean A",
        "mean_b": "mean B", "win_rate": "win rate", "cohens_d": "d", "interval": "interval", "p": "p",
    }  # fmt: skip
    grid = table(*titles.values())
    for row in rows:
        # What compares the sides says nothing where they cannot be compared.
        void = COMPARISONS if row["verdict"] == AbVerdict.INVALID else ()
        cells = {key: "-" if key in void else cell(row[key]) for key in titles}
        if "p" not in void and isinstance(p := row["p"], float):
            cells["p"] = p_text(p)
        grid.add_row(*cells.values())
    return Group(grid, *notes, Text(FILE_LEGEND, style="dim"))
