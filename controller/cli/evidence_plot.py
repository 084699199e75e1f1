"""Plot of a backtest: evidence of harm and evidence of no harm over time, each relative to its limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from controller.errors import BadInput
from evaluation.offline.backtest import BacktestResult
from evaluation.offline.trace import Trace

# Neither is a colour of a gate.
DECISION_COLOUR = "black"
LIMIT_COLOUR = "0.45"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}


def caption(trace: Trace, result: BacktestResult) -> str:
    """Number of points and the decision shown in the plot."""
    points = f"{len(trace.t_s)} point{'' if len(trace.t_s) == 1 else 's'} of evidence"
    match result.decision:
        case "rollback" | "promote":
            return f"{points}, {result.decision} marked"
        case "invalid" | "undecided":
            return f"{points}, {result.decision}: no decision to mark"


def plot_trace(trace: Trace, result: BacktestResult, path: Path) -> None:
    """Write the plot: log evidence of harm by gate above, log evidence that harm is below the margin below.

    Raises BadInput when matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise BadInput("--plot needs matplotlib; pip install 'canaryctl[plot]', or omit --plot") from exc
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    harm, proof = figure.subplots(2, 1, sharex=True)
    hours = (trace.t_s - trace.t_s[0]) / 3600 if len(trace.t_s) else trace.t_s
    names = dict.fromkeys((*trace.log_e, *trace.proofs))
    colours = {name: f"C{index}" for index, name in enumerate(names)}
    harms = {name: log_e / trace.limit[name] for name, log_e in trace.log_e.items()}
    proofs = {name: log_e / trace.proof_limit for name, log_e in trace.proofs.items()}
    for axes, lines, label in (harm, harms, "limit: roll back"), (proof, proofs, "limit: proven"):
        _draw_lines(axes, hours, lines, colours)
        axes.axhline(1.0, color=LIMIT_COLOUR, linestyle="--", linewidth=1.0)
        axes.annotate(
            label, (1.0, 1.0), xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(-4, 4),
            ha="right", fontsize=8, color=LIMIT_COLOUR, bbox=LABEL_BOX,
        )  # fmt: skip
        # Values far below the limit carry no information; values above it may grow without bound.
        axes.set_ylim(-0.6, 2.0)
    harm.set_ylabel("log evidence of harm / limit")
    proof.set_ylabel("log evidence below margin / limit")
    proof.set_xlabel("hours since the first row")
    if not proofs:
        proof.text(0.5, 0.5, "nothing to prove", transform=proof.transAxes, ha="center", color=LIMIT_COLOUR)
    harm.set_title(_title(result), fontsize=10, wrap=True)
    if result.decision in ("rollback", "promote") and np.isfinite(result.t_s):
        decided_h = (result.t_s - trace.t_s[0]) / 3600
        reason = f"rollback by {result.metric}" if result.decision == "rollback" else "promote: all proven"
        for axes in (harm, proof):
            axes.axvline(decided_h, color=DECISION_COLOUR, linewidth=1.2)
        deciding = harm if result.decision == "rollback" else proof
        is_late = len(hours) > 0 and decided_h > 0.6 * hours[-1]
        deciding.annotate(
            f"{reason}\nafter {result.canary_requests} canary requests", (decided_h, 0.97),
            xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(-5 if is_late else 5, 0),
            ha="right" if is_late else "left", va="top", fontsize=8, color=DECISION_COLOUR, bbox=LABEL_BOX,
        )  # fmt: skip
    try:
        figure.savefig(path, dpi=150)
    except OSError as exc:
        raise BadInput(f"{path} cannot be written: {exc.strerror or exc}; check the folder") from exc


def _draw_lines(
    axes: object, hours: np.ndarray, lines: Mapping[str, np.ndarray], colours: Mapping[str, str]
) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for name, values in lines.items():
        marker = "o" if len(values) == 1 else None  # a line of one point would be invisible
        axes.plot(hours, values, label=name, color=colours[name], linewidth=1.4, marker=marker)
    if lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _title(result: BacktestResult) -> str:
    why = f": {'; '.join(result.reasons)}" if result.decision == "invalid" else ""
    return f"{result.decision.upper()}, policy {result.policy}{why}"[:300]
