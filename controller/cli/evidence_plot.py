"""The picture of a backtest: evidence of harm and of proof over time, each as a share of its own limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from controller.errors import BadInput
from evaluation.offline.backtest import BacktestResult
from evaluation.offline.trace import Trace

DECISION = "black"
LIMIT = "0.45"  # grey: neither is a colour of a gate


def what_is_drawn(drawn: Trace, result: BacktestResult) -> str:
    """What is in the picture, and what is not."""
    points = f"{len(drawn.t_s)} point{'' if len(drawn.t_s) == 1 else 's'} of evidence"
    match result.decision:
        case "rollback" | "promote":
            return f"{points}, {result.decision} marked"
        case "invalid":
            return f"{points}, INVALID: there is no decision to mark"
        case "undecided":
            return f"{points}, undecided: there is no decision to mark"


def draw_trace(drawn: Trace, result: BacktestResult, path: Path) -> None:
    """Write the picture: above, log evidence of harm by gate; below, log evidence that the harm is below the
    margin of the stage. Errors: BadInput when it cannot be drawn or written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise BadInput("--plot needs matplotlib; pip install 'canaryctl[plot]', or leave it out") from exc
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    harm, proof = figure.subplots(2, 1, sharex=True)
    hours = (drawn.t_s - drawn.t_s[0]) / 3600 if len(drawn.t_s) else drawn.t_s
    names = dict.fromkeys((*drawn.log_e, *drawn.proofs))
    colours = {name: f"C{at}" for at, name in enumerate(names)}
    harms = {name: log_e / drawn.limit[name] for name, log_e in drawn.log_e.items()}
    proofs = {name: log_e / drawn.proof_limit for name, log_e in drawn.proofs.items()}
    limits = (harm, harms, "limit: roll back"), (proof, proofs, "limit: proven")
    for axes, lines, what in limits:
        _draw_lines(axes, hours, lines, colours)
        axes.axhline(1.0, color=LIMIT, linestyle="--", linewidth=1.0)
        axes.annotate(
            what, (1.0, 1.0), xycoords=("axes fraction", "data"), textcoords="offset points", xytext=(-4, 4),
            ha="right", fontsize=8, color=LIMIT,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip
        # Far below the limit nothing is to be read; beyond it a line may run away.
        axes.set_ylim(-0.6, 2.0)
    harm.set_ylabel("log evidence of harm / limit")
    proof.set_ylabel("log evidence below margin / limit")
    proof.set_xlabel("hours since the first row")
    if not proofs:
        proof.text(0.5, 0.5, "nothing is to be proven", transform=proof.transAxes, ha="center", color=LIMIT)
    harm.set_title(_title(result), fontsize=10, wrap=True)
    if result.decision in ("rollback", "promote") and np.isfinite(result.t_s):
        at = (result.t_s - drawn.t_s[0]) / 3600
        by = f"rollback by {result.metric}" if result.decision == "rollback" else "promote: all proven"
        for axes in (harm, proof):
            axes.axvline(at, color=DECISION, linewidth=1.2)
        deciding = harm if result.decision == "rollback" else proof
        is_late = len(hours) > 0 and at > 0.6 * hours[-1]
        deciding.annotate(
            f"{by}\nafter {result.canary_requests} canary requests", (at, 0.97),
            xycoords=("data", "axes fraction"), textcoords="offset points", xytext=(-5 if is_late else 5, 0),
            ha="right" if is_late else "left", va="top", fontsize=8, color=DECISION,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
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
        mark = "o" if len(values) == 1 else None  # a line of one point is not to be seen
        axes.plot(hours, values, label=name, color=colours[name], linewidth=1.4, marker=mark)
    if lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _title(result: BacktestResult) -> str:
    why = f": {'; '.join(result.reasons)}" if result.decision == "invalid" else ""
    return f"{result.decision.upper()}, policy {result.policy}{why}"[:300]
