"""`canaryctl backtest FILE`: what would this gate have done?

The file takes the route of a live rollout (`evaluation.offline.backtest`). The decision is the answer, so any
decision ends with 0; what cannot be evidence ends with 2 and one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Set
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Group, RenderableType

from controller.cli.actions import read_policy
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.evidence_plot import draw_trace, what_is_drawn
from controller.cli.observed import RangeAnswer, judge_range, moment_s
from controller.cli.output import console, say, table
from controller.errors import BadInput
from controller.quantities import duration_s
from controller.spec.service import parse_policy
from evaluation.offline.backtest import BacktestResult, run
from evaluation.offline.trace import trace
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.records import EvidenceError
from evaluation.report import GateReport

PLOTS = frozenset({".png", ".svg"})
ASKS = {"rollback": "is it worse?", "promotion": "is it proven?", "guard": "is the split as drawn?"}


class Shape(StrEnum):
    """What `-o` takes here."""

    TABLE = "table"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Mount `backtest` on the command line."""
    app.command()(backtest)


def backtest(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Requests in order of assignment: .jsonl, .csv or .parquet."),
    ],
    policy: Annotated[str, typer.Option(help="Policy file, or a preset's name.")] = "default",
    output: Annotated[Shape, typer.Option("-o", "--output", help="How to print the answer.")] = Shape.TABLE,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the evidence over time into this .png or .svg.", show_default=False),
    ] = None,
    observed: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="METRIC",
            help="Also: is the canary's p50/p90/p95 inside what stable showed from --since to --until?",
            show_default=False,
        ),
    ] = None,
    since: Annotated[str, typer.Option(help="Begin of what stable showed: a date or seconds.")] = "0",
    until: Annotated[
        str | None,
        typer.Option(help="Its end. [default: the canary's first request]", show_default=False),
    ] = None,
    window: Annotated[str, typer.Option(help="Length of the windows that span the range.")] = "1h",
) -> None:
    """Judge a recorded rollout: would the gate have rolled back, promoted, or waited?"""
    if plot is not None and plot.suffix.lower() not in PLOTS:
        raise BadInput(f"--plot {plot.name} ends in {plot.suffix or 'nothing'}; give a .png or .svg")
    evidence = read_evidence(file)
    if evidence.ignored:
        say(f"not read, no gate knows them: {', '.join(evidence.ignored)}")
    gates = parse_policy(read_policy(policy)).gate_policy()
    try:
        result = run(evidence.columns, gates)
        drawn = trace(evidence.columns, gates) if plot is not None else None
    except (EvidenceError, PolicyError) as exc:
        raise BadInput(f"{file.name}: {exc}") from exc
    ranged = _ranged(evidence, observed, since, until, window) if observed is not None else None
    if plot is not None and drawn is not None:
        draw_trace(drawn, result, plot)
        say(f"drawn: {plot} ({what_is_drawn(drawn, result)})")
    if output is Shape.JSON:
        ranges = {"observed_range": ranged.as_plain()} if ranged is not None else {}
        print(json.dumps(as_plain(evidence, gates, result) | ranges, indent=2))
        return
    console().print(as_table(evidence, result, {one.name for one in gates.observed_ranges}))
    for line in ranged.lines() if ranged is not None else ():
        console().print(line)


def _ranged(evidence: EvidenceFile, metric: str, since: str, until: str | None, window: str) -> RangeAnswer:
    begin_s = moment_s("--since", since)
    if until is not None:
        end_s = moment_s("--until", until)
    else:
        canary = np.asarray(evidence.columns["arm"]) == 1
        if not canary.any():
            raise BadInput("--range needs canary rows, or there is nothing to judge")
        end_s = float(np.asarray(evidence.columns["t_s"], dtype=np.float64)[canary].min())
    # A range that begins before the file does is cut into windows of the file alone.
    begin_s = max(begin_s, float(np.asarray(evidence.columns["t_s"], dtype=np.float64).min()))
    try:
        window_s = duration_s(window)
    except ValueError as exc:
        raise BadInput(f"--window {exc}") from exc
    return judge_range(evidence, metric, since_s=begin_s, until_s=end_s, window_s=window_s)


def as_plain(evidence: EvidenceFile, policy: GatePolicy, result: BacktestResult) -> dict[str, object]:
    """The result in plain values; what is not known is null."""
    return {
        "decision": result.decision,
        "metric": result.metric,
        "canary_requests": result.canary_requests,
        "t_s": _known(result.t_s),
        "policy": policy.name,
        "alpha": policy.alpha,
        "rows": evidence.rows,
        "log_e": dict(result.log_e),
        "intervals": {name: [_known(end) for end in ends] for name, ends in result.intervals.items()},
        "proofs": dict(result.proofs),
        "gates": [_gate(report) for report in result.gates],
        "reasons": list(result.reasons),
        "ignored_columns": list(evidence.ignored),
    }


def _gate(report: GateReport) -> dict[str, object]:
    return {
        "gate": report.gate,
        "side": report.side,
        "verdict": report.verdict.value,
        "log_e": report.log_e,
        "limit": _known(report.limit),
        "stable": report.stable,
        "canary": report.canary,
        "n_stable": report.n_stable,
        "n_canary": report.n_canary,
        "effective_units": report.effective_units,
        "decided_canary": report.decided_canary,
        "is_alarm": report.is_alarm,
        "reason": report.reason,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_table(
    evidence: EvidenceFile, result: BacktestResult, ranges: Set[str] = frozenset()
) -> RenderableType:
    """The decision in one line, then a row for each gate and side. `ranges`: names of observed ranges."""
    grid = table("gate", "asks", "verdict", "evidence", "stable", "canary", "why")
    for report in result.gates:
        commands = "an alarm: is it worse?" if report.is_alarm else ASKS[report.side]
        commands = "is it as stable was?" if report.gate in ranges else commands
        at = f" after {report.decided_canary} canary requests" if report.decided_canary is not None else ""
        grid.add_row(
            report.gate,
            commands,
            report.verdict.value,
            f"{report.log_e:.1f} of {report.limit:.1f}" if math.isfinite(report.limit) else "-",
            _figure(report.stable),
            _figure(report.canary),
            f"{report.reason}{at}",
        )
    return Group(_headline(result, evidence.rows), "", grid)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _headline(result: BacktestResult, rows: int) -> str:
    seen = f"policy {result.policy}, {rows} rows"
    match result.decision:
        case "rollback":
            return f"ROLLBACK by {result.metric} after {result.canary_requests} canary requests ({seen})"
        case "promote":
            return f"PROMOTE: all proven after {result.canary_requests} canary requests ({seen})"
        case "invalid":
            return f"INVALID: {'; '.join(result.reasons)} ({seen})"
        case "undecided":
            return f"UNDECIDED after {result.canary_requests} canary requests ({seen})"
