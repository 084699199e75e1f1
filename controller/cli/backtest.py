"""`canaryctl backtest FILE`: the decision the gates would have made on a recorded rollout.

The file takes the path of a live rollout (`evaluation.offline.backtest`). Every decision exits with 0; data
that cannot be evidence exits with 2 and one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Group, RenderableType

from controller.cli.options import EvidenceArgument, WindowOption
from controller.cli.output import console, note, number, table
from controller.errors import BadInput

if TYPE_CHECKING:
    from controller.cli.evidence_files import EvidenceFile
    from controller.cli.observed_range import RangeResult
    from evaluation.offline.backtest import BacktestResult
    from evaluation.policy.policy import GatePolicy
    from evaluation.report import GateReport

PLOT_SUFFIXES = frozenset({".png", ".svg"})
QUESTIONS = {"rollback": "is it worse?", "promotion": "is it proven?", "guard": "is the split as assigned?"}


def backtest(
    file: EvidenceArgument,
    policy: Annotated[str, typer.Option(help="Policy file or preset.")] = "default",
    output: Annotated[
        Literal["table", "json"], typer.Option("-o", "--output", help="Output format.")
    ] = "table",
    plot: Annotated[
        Path | None, typer.Option(help="Plot the evidence over time to this .png or .svg file.")
    ] = None,
    range_metric: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="METRIC",
            help="Also check the canary's p50/p90/p95 of METRIC against stable's observed range.",
        ),
    ] = None,
    since: Annotated[str, typer.Option(help="Start of the observed range: a date or seconds.")] = "0",
    until: Annotated[
        str | None, typer.Option(help="End of the observed range. [default: the canary's first request]")
    ] = None,
    window: WindowOption = "1h",
) -> None:
    """Replay a recorded rollout through the gates.

    Shows whether they would have rolled back, promoted or waited.
    """
    from controller.cli.evidence_files import read_evidence
    from controller.cli.evidence_plot import caption, plot_trace
    from controller.cli.observed_range import range_of_backtest
    from controller.cli.request_bodies import read_policy
    from controller.spec.service import parse_policy
    from evaluation.offline.backtest import run
    from evaluation.offline.trace import trace
    from evaluation.policy.values import PolicyError
    from evaluation.records import EvidenceError

    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise BadInput(f"--plot {plot.name} ends in {plot.suffix or 'nothing'}; give a .png or .svg")
    evidence = read_evidence(file)
    if evidence.ignored:
        note(f"columns ignored, no gate uses them: {', '.join(evidence.ignored)}")
    gates = parse_policy(read_policy(policy)).gate_policy()
    try:
        result = run(evidence.columns, gates)
        traced = trace(evidence.columns, gates) if plot is not None else None
    except (EvidenceError, PolicyError) as exc:
        raise BadInput(f"{file.name}: {exc}") from exc
    observed: RangeResult | None = None
    if range_metric is not None:
        observed = range_of_backtest(evidence, range_metric, since=since, until=until, window=window)
    if plot is not None and traced is not None:
        plot_trace(traced, result, plot)
        note(f"plotted: {plot} ({caption(traced, result)})")
    if output == "json":
        more = {"observed_range": observed.as_json()} if observed is not None else {}
        print(json.dumps(_as_json(evidence, gates, result) | more, indent=2))
        return
    console().print(_as_table(evidence, result, {gate.name for gate in gates.observed_ranges}))
    for line in observed.lines() if observed is not None else ():
        console().print(line)


def _as_json(evidence: EvidenceFile, policy: GatePolicy, result: BacktestResult) -> dict[str, object]:
    """The result in JSON types; infinite and NaN values are null."""
    return {
        "decision": result.decision,
        "metric": result.metric,
        "canary_requests": result.canary_requests,
        "t_s": _finite(result.t_s),
        "policy": policy.name,
        "alpha": policy.alpha,
        "rows": evidence.rows,
        "log_e": dict(result.log_e),
        "intervals": {
            name: [_finite(bound) for bound in bounds] for name, bounds in result.intervals.items()
        },
        "proofs": dict(result.proofs),
        "gates": [_gate_as_json(report) for report in result.gates],
        "reasons": list(result.reasons),
        "ignored_columns": list(evidence.ignored),
    }


def _gate_as_json(report: GateReport) -> dict[str, object]:
    return {
        "gate": report.gate,
        "side": report.side,
        "verdict": report.verdict.value,
        "log_e": report.log_e,
        "limit": _finite(report.limit),
        "stable": report.stable,
        "canary": report.canary,
        "n_stable": report.n_stable,
        "n_canary": report.n_canary,
        "effective_units": report.effective_units,
        "decided_canary": report.decided_canary,
        "is_alarm": report.is_alarm,
        "reason": report.reason,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _as_table(evidence: EvidenceFile, result: BacktestResult, ranges: Set[str]) -> RenderableType:
    """The decision in one line, then a row for each gate and side. `ranges`: names of observed ranges."""
    grid = table("gate", "question", "verdict", "evidence", "stable", "canary", "why")
    for report in result.gates:
        question = "alarm: is it worse?" if report.is_alarm else QUESTIONS[report.side]
        count = report.decided_canary
        grid.add_row(
            report.gate,
            "is it within stable's range?" if report.gate in ranges else question,
            report.verdict.value,
            f"{report.log_e:.1f} of {report.limit:.1f}" if math.isfinite(report.limit) else "-",
            number(report.stable),
            number(report.canary),
            report.reason + (f" after {count} canary requests" if count is not None else ""),
        )
    return Group(_headline(result, evidence.rows), "", grid)


def _headline(result: BacktestResult, rows: int) -> str:
    basis = f"policy {result.policy}, {rows} rows"
    match result.decision:
        case "rollback":
            return f"ROLLBACK by {result.metric} after {result.canary_requests} canary requests ({basis})"
        case "promote":
            return f"PROMOTE: all proven after {result.canary_requests} canary requests ({basis})"
        case "invalid":
            return f"INVALID: {'; '.join(result.reasons)} ({basis})"
        case "undecided":
            return f"UNDECIDED after {result.canary_requests} canary requests ({basis})"
