"""The observed-range gate on a file: is the canary inside what stable showed between two dates?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from controller.cli.evidence_files import EvidenceFile
from controller.errors import BadInput
from evaluation.metrics import VALUES
from evaluation.observed_range import ObservedRange, ObservedRangeGate, RangeReport, observe_range


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """What stable showed, and each percentile's verdict."""

    metric: str
    observed: ObservedRange
    reports: tuple[RangeReport, ...]

    def as_plain(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "metric": self.metric,
            "since_s": self.observed.since_s,
            "until_s": self.observed.until_s,
            "windows": self.observed.windows,
            "percentiles": [
                {
                    "percentile": r.percentile,
                    "low": r.low,
                    "high": r.high,
                    "verdict": report.verdict.value,
                    "reason": report.reason,
                }
                for r, report in zip(self.observed.ranges, self.reports, strict=True)
            ],
        }


def judge_range(
    evidence: EvidenceFile, metric: str, *, since_s: float, until_s: float, window_s: float
) -> RangeAnswer:
    """Stable's rows in [since_s, until_s) against all of the canary's. Raises BadInput."""
    if metric not in VALUES or metric not in evidence.columns:
        have = ", ".join(sorted(VALUES & evidence.columns.keys())) or "none"
        raise BadInput(f"--range {metric} is not a column of values; the file has {have}")
    y = np.asarray(evidence.columns[metric], dtype=np.float64)
    t_s = np.asarray(evidence.columns["t_s"], dtype=np.float64)
    canary = np.asarray(evidence.columns["arm"]) == 1
    known = ~np.isnan(y)
    stable = known & ~canary
    try:
        observed = observe_range(t_s[stable], y[stable], since_s=since_s, until_s=until_s, window_s=window_s)
        gate = ObservedRangeGate(observed)
        for value in y[known & canary]:
            gate.add(float(value))
    except ValueError as exc:
        raise BadInput(f"--range {metric}: {exc}") from exc
    return RangeAnswer(metric, observed, gate.report())


def moment_s(name: str, text: str) -> float:
    """Seconds since the epoch of a number or of an ISO date (UTC where it names no zone). Raises BadInput."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError as exc:
            raise BadInput(
                f"{name} {text!r} is no time; write 2026-05-01, 2026-05-01T14:00 or seconds"
            ) from exc
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise BadInput(f"{name} {text!r} is no time; write 2026-05-01T14:00 or seconds")
    return seconds
