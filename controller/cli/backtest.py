"""`canaryctl backtest FILE`: the decision the gates would have made on a recorded rollout.

The file takes the path of a live rollout (`evaluation.offline.backtest`). The exit code is the decision's, as
that of a rollout (`EXIT_CODES`); data that cannot be evidence exits with 2 and one line.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.evidence_options import (
    CanaryOption,
    CanarySinceOption,
    IgnoreOption,
    MapOption,
    PricesOption,
    RolloutOption,
    ScoresOption,
    StableOption,
    WOption,
    read_options,
)
from controller.cli.options import EvidenceArgument, WindowOption
from controller.cli.output import console, note, print_decided
from controller.errors import BadInput, RolledBack, TimedOut

if TYPE_CHECKING:
    from controller.cli.backtest_show import Shown
    from controller.cli.evidence_files import EvidenceFile
    from controller.cli.observed_range import RangeResult
    from controller.spec.policy import PolicySpec

EXIT_CODES = {
    "promote": 0,
    "rollback": RolledBack.exit_code,
    "undecided": TimedOut.exit_code,
    "invalid": TimedOut.exit_code,
}
PLOT_SUFFIXES = frozenset({".png", ".svg"})


def _print_columns(is_asked: bool) -> None:
    if is_asked:
        from controller.cli.backtest_show import columns_table

        console().print(columns_table())
        raise typer.Exit


def backtest(
    file: EvidenceArgument,
    policy: Annotated[
        str, typer.Option(metavar="FILE|PRESET", help="Policy file (YAML), or default, strict, vendor.")
    ] = "default",
    columns: Annotated[
        bool,
        typer.Option(
            "--columns",
            is_eager=True,
            callback=_print_columns,
            help="List the columns that a file may have, and exit.",
        ),
    ] = False,
    maps: MapOption = None,
    w: WOption = None,
    canary_since: CanarySinceOption = None,
    canary: CanaryOption = None,
    stable: StableOption = None,
    ignore: IgnoreOption = None,
    rollout: RolloutOption = None,
    scores: ScoresOption = None,
    prices: PricesOption = None,
    allow_unjudged: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Promote although a preset's gate has no column to judge by. [default: it blocks]",
        ),
    ] = None,
    output: Annotated[
        Literal["table", "json"], typer.Option("-o", "--output", help="Output format.")
    ] = "table",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Plot the evidence over time to this .png or .svg file. [default: none]"
        ),
    ] = None,
    range_metric: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="METRIC",
            help="Also check the canary's p50/p90/p95 of METRIC against stable's observed range. "
            "[default: none]",
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Start of the observed range: 2026-05-01, 2026-05-01T12:00Z, or seconds since 1970.",
        ),
    ] = "0",
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="End of the observed range, as --since. [default: the canary's first request]",
        ),
    ] = None,
    window: WindowOption = "1h",
) -> int:
    """Replay a recorded rollout through the gates.

    Shows whether they would have rolled back, promoted or waited, and which gates had nothing to judge. A
    request needs t_s, arm and w (see --columns). Recognises logs of LiteLLM, Langfuse, nginx and OpenAI.
    Exit 0 when they promote, 5 when they roll back, 6 when undecided or invalid.
    """
    from controller.cli.evidence_files import read_evidence
    from controller.cli.observed_range import range_of_backtest
    from controller.cli.request_bodies import read_policy
    from controller.spec.service import parse_policy
    from evaluation.offline.columns import covariates_of

    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise BadInput(f"--plot {plot.name} ends in {plot.suffix or 'nothing'}; give a .png or .svg")
    if allow_unjudged is not None and not allow_unjudged.strip():
        raise BadInput("--allow-unjudged needs a reason; write why it need not be known")
    spec = parse_policy(read_policy(policy))
    options = read_options(
        maps=maps,
        ignore=ignore,
        w=w,
        canary=canary,
        stable=stable,
        rollout=rollout,
        scores=scores,
        canary_since=canary_since,
        prices=prices,
    )
    options = replace(options, covariates=covariates_of(spec.gate_policy()))
    evidence = read_evidence(file, options=options)
    _print_notes(evidence)
    shown = judged(file, evidence, spec, allow_unjudged, plot)
    observed: RangeResult | None = None
    if range_metric is not None:
        observed = range_of_backtest(evidence, range_metric, since=since, until=until, window=window)
    return print_judged(shown, output, observed)


def print_judged(shown: Shown, output: str, observed: RangeResult | None = None) -> int:
    """Print a result as a table or JSON; its exit code."""
    from rich.console import Group

    from controller.cli.backtest_show import as_json, as_table, headline, next_step

    if output == "json":
        more = {"observed_range": observed.as_json()} if observed is not None else {}
        print(json.dumps(as_json(shown) | more, indent=2))
        return EXIT_CODES[shown.result.decision]
    for line in shown.result.notes:
        if not any(line in reason for reason in shown.result.reasons):
            note(line)
    table = as_table(shown, columns=console().width)
    print_decided(Group(table, *(observed.lines() if observed is not None else ())), headline(shown))
    note(next_step(shown))
    return EXIT_CODES[shown.result.decision]


def _print_notes(evidence: EvidenceFile) -> None:
    """How the file was read, on stderr."""
    for line in evidence.notes:
        note(line)
    for line in _tiny_waits(evidence):
        note(line)
    if evidence.ignored:
        note(f"columns ignored, no gate uses them: {', '.join(evidence.ignored)}")
    if evidence.empty:
        note(f"columns without any value: {', '.join(evidence.empty)}")


def _tiny_waits(evidence: EvidenceFile) -> list[str]:
    """A line for each wait whose median is below a millisecond: no model answers in that, seconds look so."""
    import numpy as np

    from evaluation.metrics import WAITS

    lines = []
    for name in sorted(WAITS & evidence.columns.keys()):
        values = np.asarray(evidence.columns[name], dtype=np.float64)
        values = values[np.isfinite(values) & (values > 0.0)]
        if len(values) and (median := float(np.median(values))) < 1.0:
            lines.append(
                f"{name} has a median of {median:.3g} ms; if it is in seconds: --map {name}=COLUMN:s"
            )
    return lines


def judged(
    file: Path, evidence: EvidenceFile, spec: PolicySpec, allow_unjudged: str | None, plot: Path | None
) -> Shown:
    """The result, plotted where that is asked for. Raises BadInput, with the line of the file."""
    from controller.cli.backtest_plan import needed_gates, ramp_of
    from controller.cli.backtest_show import Shown
    from controller.cli.evidence_plot import caption, plot_trace
    from controller.spec.prices import with_budget
    from evaluation.offline.arrays import RowError
    from evaluation.offline.backtest import run
    from evaluation.offline.trace import trace
    from evaluation.policy.values import PolicyError
    from evaluation.records import EvidenceError

    gates = with_budget(spec.gate_policy(), evidence.prices)
    needed = needed_gates(spec, gates)
    ramp = ramp_of(spec, evidence)
    columns = dict(evidence.columns)
    stages = None
    if ramp is not None:
        stages = ramp.stages
        if ramp.column is not None:
            columns["stage"] = ramp.column
        if ramp.note is not None:
            note(ramp.note)
    required = needed.blocking(is_acknowledged=allow_unjudged is not None)
    try:
        result = run(columns, gates, stages=stages, required=required)
        if plot is not None:
            traced = trace(columns, gates, stages=stages)
            plot_trace(traced, result, plot)
            note(f"plotted: {plot} ({caption(traced, result)})")
    except RowError as exc:
        raise BadInput(f"{file.name}: {exc.at(evidence.place(exc.row))}") from exc
    except (EvidenceError, PolicyError) as exc:
        raise BadInput(f"{file.name}: {exc}") from exc
    return Shown(evidence, gates, result, needed, allow_unjudged)
