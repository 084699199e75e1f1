"""What the answers of a recorded rollout cost, by arm: sums and means of the columns `tokens` and `cost`."""

from __future__ import annotations

import numpy as np

from controller.cli.evidence_files import EvidenceFile
from controller.cli.output import number

SIZES = ("cost", "tokens")


def costs_as_json(evidence: EvidenceFile) -> dict[str, object] | None:
    """By arm: answers whose cost (tokens) is known, their mean and their sum; None: the file has neither.

    A request without an answer has no cost. `currency`: of `--prices`; null: the file's own costs.
    """
    known = [name for name in SIZES if name in evidence.columns]
    if not known:
        return None
    arms = {
        arm: {name: _sums(evidence, name, canary) for name in known}
        for arm, canary in (("stable", 0), ("canary", 1))
    }
    return {"currency": None if evidence.prices is None else evidence.prices.currency, **arms}


def _sums(evidence: EvidenceFile, name: str, canary: int) -> dict[str, object]:
    values = np.asarray(evidence.columns[name], dtype=np.float64)
    of_arm = (np.asarray(evidence.columns["arm"]) == canary) & ~evidence.unanswered & np.isfinite(values)
    total = float(values[of_arm].sum())
    count = int(of_arm.sum())
    return {"answers": count, "mean": total / count if count else None, "total": total}


def cost_line(evidence: EvidenceFile) -> str | None:
    """`cost in USD: stable 0.0021 an answer (1203 answers, 2.53 in all), ...`; None: no cost is known."""
    if "cost" not in evidence.columns:
        return None
    parts = []
    for arm, canary in (("stable", 0), ("canary", 1)):
        sums = _sums(evidence, "cost", canary)
        mean, total = sums["mean"], sums["total"]
        assert isinstance(total, float)
        shown = number(mean) if isinstance(mean, float) else "-"
        parts.append(f"{arm} {shown} an answer ({sums['answers']} answers, {number(total)} in all)")
    money = "" if evidence.prices is None else f" in {evidence.prices.currency}"
    return f"cost{money}: {', '.join(parts)}"
