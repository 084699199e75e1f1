"""`canaryctl ab`: is B *better*? A test on a running service, a test on a file, and how large one must be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.table import Table

from controller.ab import AbView
from controller.cli.actions import change_body
from controller.cli.client import HASH_TIMEOUT_S, Client
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.output import Output, OutputOption, emit, say, table
from controller.errors import BadInput
from controller.settings import load_settings
from evaluation.ab_test import (
    AbQuestion,
    AbResult,
    CategoryResult,
    Scale,
    correct_categories,
    fixed_horizon,
    sequential,
)
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.power import SampleSize, effect_table, required_sample_size
from evaluation.units import HELD, LEFT_OUT, kind_of

ab = typer.Typer(name="ab", help="Is B better? A/B tests.", no_args_is_help=True, rich_markup_mode=None)

ServiceArgument = Annotated[
    str | None,
    typer.Argument(metavar="[SERVICE]", help="Default: the only one there is.", show_default=False),
]
AlphaOption = Annotated[float, typer.Option(help="Chance of a wrong verdict.")]
MetricOption = Annotated[str, typer.Option(help="What is compared.")]


def register(app: typer.Typer) -> None:
    """Mount the `ab` commands on the command line."""
    app.add_typer(ab)


class AbClient(Client):
    """The API's A/B routes."""

    def create_ab(self, service: str, body: Mapping[str, object]) -> AbView:
        """Begin a test."""
        found = self._ask("POST", f"/v1/services/{service}/ab", body, timeout_s=HASH_TIMEOUT_S)
        return AbView.model_validate(found)

    def ab(self, service: str) -> AbView:
        """The newest test."""
        return AbView.model_validate(self._ask("GET", f"/v1/services/{service}/ab"))

    def stop_ab(self, service: str) -> str:
        """End the test; one line of what happened."""
        return str(self._ask("DELETE", f"/v1/services/{service}/ab")["text"])


@ab.command()
def create(
    service: ServiceArgument = None,
    model: Annotated[Path | None, typer.Option(help="B's checkpoint directory.", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="B's endpoint instead.", show_default=False)] = None,
    engine: Annotated[
        list[str] | None, typer.Option("--engine", metavar="KEY=VALUE", show_default=False)
    ] = None,
    metric: MetricOption = "quality",
    split: Annotated[str, typer.Option(help="B's share of the traffic.")] = "50%",
    fixed: Annotated[
        int | None,
        typer.Option("--fixed", metavar="N", help="Judge once, at N units a side.", show_default=False),
    ] = None,
    alpha: AlphaOption = 0.05,
    duration: Annotated[str, typer.Option("--for", help="How long B keeps its share at most.")] = "7d",
    output: OutputOption = Output.TABLE,
) -> None:
    """Give B a share of the traffic and compare it with what serves. Nothing is promoted by it."""
    change = change_body(model=model, url=url, engine=engine, policy=None)
    body = {
        "version": change["version"],
        "metric": metric,
        "mode": "sequential" if fixed is None else "fixed",
        "split": split,
        "alpha": alpha,
        "sample_size": fixed,
        "duration": duration,
    }
    client = AbClient(load_settings())
    view = client.create_ab(client.the_service(service), body)
    emit(view, output, lambda wide: view_table(view))


@ab.command()
def status(service: ServiceArgument = None, output: OutputOption = Output.TABLE) -> None:
    """Show what the service's A/B test says now."""
    client = AbClient(load_settings())
    view = client.ab(client.the_service(service))
    emit(view, output, lambda wide: view_table(view))


@ab.command()
def stop(service: ServiceArgument = None) -> None:
    """End the test and take B away; the result stays readable."""
    client = AbClient(load_settings())
    say(client.stop_ab(client.the_service(service)))


@ab.command()
def judge(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Requests as `backtest` takes them; arm 1 is B.")
    ],
    metric: MetricOption = "quality",
    by: Annotated[
        str | None, typer.Option(help="Column of categories, corrected for their number.", show_default=False)
    ] = None,
    fixed: Annotated[bool, typer.Option("--fixed", help="One Mann-Whitney test of all units.")] = False,
    alpha: AlphaOption = 0.05,
    output: OutputOption = Output.TABLE,
) -> None:
    """Judge a recorded A/B test, each unit once, in the order of assignment."""
    question = _question(metric, alpha)
    evidence = read_evidence(file, extra=(by,) if by else ())
    report = judge_file(evidence, question, metric=metric, by=by, is_fixed=fixed)
    emit(report, output, lambda wide: report.as_table())


@ab.command()
def size(
    effect: Annotated[
        float | None, typer.Option(help="Smallest difference worth finding.", show_default=False)
    ] = None,
    baseline: Annotated[
        float | None, typer.Option(help="A's mean, for a table over 1-20 %.", show_default=False)
    ] = None,
    sd: Annotated[float, typer.Option(help="Assumed standard deviation of one unit's outcome.")] = 0.2,
    alpha: AlphaOption = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding it.")] = 0.8,
    split: Annotated[float, typer.Option(help="B's share of the units.")] = 0.5,
    output: OutputOption = Output.TABLE,
) -> None:
    """How many units a fixed test needs, and what that assumes."""
    try:
        if (effect is None) == (baseline is None):
            raise ValueError("needs exactly one of --effect (absolute) and --baseline (for the table)")
        if effect is not None:
            sizes: tuple[SampleSize, ...] = (
                required_sample_size(effect, sd=sd, alpha=alpha, power=power, split=split),
            )
        else:
            sizes = effect_table(baseline or 0.0, sd=sd, alpha=alpha, power=power, split=split)
    except ValueError as exc:
        raise BadInput(f"ab size: {exc}") from exc
    rows = [SizeRow.of(one, baseline) for one in sizes]
    emit(rows, output, lambda wide: size_table(rows, sizes[0]))


class SizeRow(BaseModel):
    """One sample size, and everything it assumes."""

    effect: float
    relative: float | None
    n_a: int
    n_b: int
    sd: float
    alpha: float
    power: float
    split: float

    @classmethod
    def of(cls, found: SampleSize, baseline: float | None) -> SizeRow:
        relative = found.effect / baseline if baseline else None
        return cls(
            effect=found.effect,
            relative=relative,
            n_a=found.n_a,
            n_b=found.n_b,
            sd=found.sd,
            alpha=found.alpha,
            power=found.power,
            split=found.split,
        )


def size_table(rows: list[SizeRow], first: SampleSize) -> RenderableType:
    """The sizes, and one line of assumptions."""
    grid = table("difference", "relative", "units of A", "units of B")
    for row in rows:
        relative = "-" if row.relative is None else f"{row.relative:.1%}"
        grid.add_row(f"{row.effect:.4g}", relative, str(row.n_a), str(row.n_b))
    sd, alpha, power = f"sd {first.sd:g}", f"alpha {first.alpha:g} two-sided", f"power {first.power:g}"
    return Group(grid, f"assumed: {sd}, {alpha}, {power}, B gets {first.split:.0%}")


class FileReport(BaseModel):
    """What a file says: the whole, then each category with its corrected p-value."""

    metric: str
    method: str
    rows: list[dict[str, object]]

    def as_table(self) -> Table:
        """A row for the whole and for each category."""
        grid = table(
            "category", "verdict", "units A", "units B", "mean A", "mean B", "win rate", "interval", "p"
        )
        for row in self.rows:
            grid.add_row(*(_cell(row[name]) for name in _CELLS))
        return grid


_CELLS = ("category", "verdict", "n_a", "n_b", "mean_a", "mean_b", "win_rate", "interval", "p")


def _cell(value: object) -> str:
    if isinstance(value, tuple | list):
        return " to ".join(f"{end:.4g}" for end in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def judge_file(
    evidence: EvidenceFile, question: AbQuestion, *, metric: str, by: str | None, is_fixed: bool
) -> FileReport:
    """The whole file, then each category. Raises BadInput for what cannot be compared."""
    columns = evidence.columns
    if metric not in columns:
        raise BadInput(f"the file has no column {metric}; it has {', '.join(sorted(columns))}")
    y = np.asarray(columns[metric], dtype=np.float64)
    w = np.asarray(columns["w"], dtype=np.float64)
    drawn = np.array([kind_of(str(word)) not in (LEFT_OUT, HELD) for word in columns["assigned_by"]])
    order = np.argsort(np.asarray(columns["t_s"], dtype=np.float64), kind="stable")
    _, first = np.unique(np.asarray(columns["unit"])[order], return_index=True)
    once = order[np.sort(first)]
    once = once[drawn[once] & (w[once] > 0) & (w[once] < 1) & ~np.isnan(y[once])]
    is_b = np.asarray(columns["arm"]) == 1

    def compare(rows: np.ndarray) -> AbResult:
        if is_fixed:
            return fixed_horizon(y[rows[~is_b[rows]]], y[rows[is_b[rows]]], question)
        return sequential(y[rows], is_b[rows], w[rows], question)

    try:
        whole = compare(once)
        names = np.asarray(columns[by])[once] if by is not None else np.empty(0)
        parts = correct_categories({str(name): compare(once[names == name]) for name in np.unique(names)})
    except ValueError as exc:
        raise BadInput(f"{metric}: {exc}") from exc
    rows = [_row("(all)", whole, whole.p_value, whole.verdict.value), *(_part(part) for part in parts)]
    return FileReport(metric=metric, method=whole.method, rows=rows)


def _part(part: CategoryResult) -> dict[str, object]:
    return _row(part.category, part.result, part.adjusted_p, part.verdict.value)


def _row(category: str, result: AbResult, p: float, verdict: str) -> dict[str, object]:
    named = (
        "n_a",
        "n_b",
        "mean_a",
        "mean_b",
        "difference",
        "win_rate",
        "cohens_d",
        "interval",
        "interval_of",
    )
    return {"category": category, "verdict": verdict, "p": p} | {n: getattr(result, n) for n in named}


def _question(metric: str, alpha: float) -> AbQuestion:
    if metric not in CATALOGUE:
        raise BadInput(f"metric {metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}")
    known = CATALOGUE[metric]
    scale = Scale.VALUE if metric in VALUES else Scale.SCORE if known.unit.startswith("score") else Scale.RATE
    try:
        return AbQuestion(scale, higher_is_better=not known.lower_is_better, alpha=alpha)
    except ValueError as exc:
        raise BadInput(f"ab: {exc}") from exc


def view_table(view: AbView) -> RenderableType:
    """The verdict in one line, then the figures of both sides."""
    grid = table("side", "units", "mean", "without an outcome")
    grid.add_row("A", str(view.n_a), _cell(view.mean_a), str(view.missing_a))
    grid.add_row("B", str(view.n_b), _cell(view.mean_b), str(view.missing_b))
    size = f" of {view.sample_size} a side" if view.sample_size else ""
    state = "ended" if view.ended_at_s is not None else "running"
    asked = f"{view.metric}, {view.mode}{size}, B gets {view.split_percent:g} %"
    figures = (
        f"difference {_cell(view.difference)}, {view.interval_of} {_cell(view.interval)}, "
        f"win rate {_cell(view.win_rate)}, d {_cell(view.cohens_d)}, "
        f"p {view.p_value:.3g} (alpha {view.alpha:g})"
    )
    return Group(f"{view.verdict.upper()}: {asked} ({state})", "", grid, "", figures)
