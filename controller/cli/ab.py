"""`canaryctl ab`: is B *better*? A test on a running service, a test on a file, and how large one must be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import BaseModel
from rich.console import Group

from controller.ab.results import AbView
from controller.ab.spec import parse_ab, question_of
from controller.cli.ab_show import file_table, next_step, size_table, view_table
from controller.cli.actions import change_body, read_policy
from controller.cli.client import HASH_TIMEOUT_S, Client
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.options import ServiceArgument, ServiceOption
from controller.cli.output import Output, OutputOption, emit, say
from controller.errors import BadInput
from controller.quantities import FULL_BP, weight_bp
from controller.settings import load_settings
from evaluation.ab.comparison import (
    MIN_PER_SIDE,
    AbQuestion,
    AbResult,
    AbVerdict,
    CategoryResult,
    correct_categories,
    fixed_horizon,
    sequential,
)
from evaluation.ab.sample_size import SampleSize, effect_table, required_sample_size
from evaluation.ab.validity import AbValidity
from evaluation.metrics import CATALOGUE
from evaluation.records import EvidenceError
from evaluation.units.units import HELD, LEFT_OUT, kind_of

ab = typer.Typer(
    name="ab",
    help="Is B better? A/B tests: on a running service, on a file, and how large one must be.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AlphaOption = Annotated[float, typer.Option(help="Chance of naming a winner where there is none.")]
MetricOption = Annotated[str, typer.Option(help="What is compared: quality, latency_ms, error, ...")]


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
    service_: ServiceOption = None,
    model: Annotated[Path | None, typer.Option(help="B's checkpoint directory.", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="B's endpoint instead.", show_default=False)] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="KEY=VALUE",
            help="Engine argument of B; may be repeated.",
            show_default=False,
        ),
    ] = None,
    metric: MetricOption = "quality",
    split: Annotated[str, typer.Option(help="B's share of the traffic.")] = "50%",
    fixed: Annotated[
        int | None,
        typer.Option(
            "--fixed",
            metavar="N",
            help="Judge once, at N units a side (see ab size), not at every look.",
            show_default=False,
        ),
    ] = None,
    alpha: AlphaOption = 0.05,
    score_wait: Annotated[
        str, typer.Option(help="How long a grade is waited for before its answer counts as ungraded.")
    ] = "10m",
    duration: Annotated[str, typer.Option("--for", help="Take B away after this at the latest.")] = "7d",
    retry: Annotated[
        bool, typer.Option("--retry", help="Also a version that was rolled back before.")
    ] = False,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Whose gates watch B: a policy file, or a preset's name; its stages do not count. "
            "Default: the service's own.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Give B a share of the traffic and compare it with what serves (A). Nothing is promoted by it.

    Guards and the gates of a policy still watch B and may end the test. One test or rollout a service at a
    time.
    """
    change = change_body(model=model, url=url, engine=engine, policy=None)
    body = {
        "version": change["version"],
        "metric": metric,
        "mode": "sequential" if fixed is None else "fixed",
        "split": split,
        "alpha": alpha,
        "sample_size": fixed,
        "score_wait": score_wait,
        "duration": duration,
        "retry": retry,
        "policy": read_policy(policy) if policy is not None else None,
    }
    parse_ab(body)  # what is wrong with it needs no controller to say so
    client = AbClient(load_settings())
    show(client.create_ab(client.the_service(service or service_), body), output)


@ab.command()
def status(
    service: ServiceArgument = None, service_: ServiceOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show what the service's newest A/B test says now."""
    client = AbClient(load_settings())
    show(client.ab(client.the_service(service or service_)), output)


@ab.command()
def stop(service: ServiceArgument = None, service_: ServiceOption = None) -> None:
    """End the test and take B away; the result stays readable. Exit 0 also when it has ended already."""
    client = AbClient(load_settings())
    say(client.stop_ab(client.the_service(service or service_)))


def show(view: AbView, output: Output) -> None:
    """Print the test; for people also what to do next, on standard error."""
    emit(view, output, lambda wide: view_table(view))
    if output in (Output.TABLE, Output.WIDE):
        say(next_step(view))


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
    """Judge a recorded A/B test, each unit once, as assigned.

    With --by also each category; their p-values and verdicts are corrected for their number (Holm).
    """
    question = _question(metric, alpha)
    evidence = read_evidence(file, extra=("unit", by) if by else ("unit",))
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
    sd: Annotated[
        float,
        typer.Option(help="Assumed standard deviation of one unit's outcome; of a rate p: sqrt(p (1 - p))."),
    ] = 0.2,
    alpha: AlphaOption = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding it.")] = 0.8,
    split: Annotated[str, typer.Option(help="B's share of the units.")] = "50%",
    output: OutputOption = Output.TABLE,
) -> None:
    """How many units a fixed test needs, and what that assumes."""
    try:
        if (effect is None) == (baseline is None):
            raise ValueError("needs exactly one of --effect (absolute) and --baseline (for the table)")
        share = weight_bp(split) / FULL_BP
        if effect is not None:
            sizes: tuple[SampleSize, ...] = (
                required_sample_size(effect, sd=sd, alpha=alpha, power=power, split=share),
            )
        else:
            sizes = effect_table(baseline or 0.0, sd=sd, alpha=alpha, power=power, split=share)
    except ValueError as exc:
        raise BadInput(f"ab size: {exc}") from exc
    rows = [SizeRow.of(one, baseline) for one in sizes]
    shown = [(one, row.relative) for one, row in zip(sizes, rows, strict=True)]
    emit(rows, output, lambda wide: size_table(shown))


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


class FileReport(BaseModel):
    """What a file says: the whole, then each category with its corrected p-value."""

    metric: str
    method: str
    rows: list[dict[str, object]]
    notes: list[str]

    def as_table(self) -> Group:
        """A row for the whole and for each category, then what there is to say of them."""
        return Group(file_table(self.rows), *self.notes)


def judge_file(
    evidence: EvidenceFile, question: AbQuestion, *, metric: str, by: str | None, is_fixed: bool
) -> FileReport:
    """The whole file, then each category. Raises BadInput for what cannot be compared."""
    columns = evidence.columns
    if metric not in columns:
        raise BadInput(f"the file has no column {metric}; it has {', '.join(sorted(columns))}")
    y = np.asarray(columns[metric], dtype=np.float64)
    w = np.asarray(columns["w"], dtype=np.float64)
    try:
        drawn = np.array([kind_of(str(word)) not in (LEFT_OUT, HELD) for word in columns["assigned_by"]])
    except EvidenceError as exc:
        raise BadInput(f"assigned_by: {exc}") from exc
    order = np.argsort(np.asarray(columns["t_s"], dtype=np.float64), kind="stable")
    _, first = np.unique(np.asarray(columns["unit"])[order], return_index=True)
    once = order[np.sort(first)]
    once = once[drawn[once] & (w[once] > 0) & (w[once] < 1)]
    is_b = np.asarray(columns["arm"]) == 1
    told = once[~np.isnan(y[once])]
    if len(told) == 0:
        raise BadInput(f"{metric}: no unit has a drawn side and an outcome; nothing can be compared")

    def compare(rows: np.ndarray) -> AbResult:
        if is_fixed:
            return fixed_horizon(y[rows[~is_b[rows]]], y[rows[is_b[rows]]], question)
        return sequential(y[rows], is_b[rows], w[rows], question)

    try:
        validity = AbValidity()
        validity.add(is_b[once], w[once], ~np.isnan(y[once]))
        whole = compare(told)
        names = np.asarray(columns[by])[told] if by is not None else np.empty(0)
        parts = correct_categories({str(name): compare(told[names == name]) for name in np.unique(names)})
    except ValueError as exc:
        raise BadInput(f"{metric}: {exc}") from exc
    reason = validity.reason()
    rows = [_row("(all)", whole, whole.p_value, whole.verdict), *(_part(part) for part in parts)]
    if reason is not None:
        rows = [row | {"verdict": AbVerdict.INVALID.value} for row in rows]
    notes = _notes(whole, [part.result for part in parts], reason)
    return FileReport(metric=metric, method=whole.method, rows=rows, notes=notes)


def _notes(whole: AbResult, parts: list[AbResult], reason: str | None) -> list[str]:
    notes = [f"invalid: {reason}"] if reason is not None else []
    if any(result.verdict is AbVerdict.TOO_FEW for result in (whole, *parts)):
        notes.append(f"too few: a fixed test needs at least {MIN_PER_SIDE} units a side")
    if parts:
        notes.append(f"p and verdict of {len(parts)} categories are corrected for their number (Holm)")
    notes.append(f"{whole.method}, alpha {whole.alpha:g}; the interval is of the {whole.interval_of}")
    return notes


def _part(part: CategoryResult) -> dict[str, object]:
    return _row(part.category, part.result, part.adjusted_p, part.verdict)


def _row(category: str, result: AbResult, p: float, verdict: AbVerdict) -> dict[str, object]:
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
    return {"category": category, "verdict": verdict.value, "p": p} | {n: getattr(result, n) for n in named}


def _question(metric: str, alpha: float) -> AbQuestion:
    if metric not in CATALOGUE:
        raise BadInput(f"metric {metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}")
    try:
        return question_of(metric, alpha)
    except ValueError as exc:
        raise BadInput(f"ab: {exc}") from exc
