"""Observed ranges: what stable showed between two dates of an evidence file, and a canary against it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from controller.cli.evidence_files import EvidenceFile
from controller.cli.output import note
from controller.errors import BadInput
from controller.quantities import duration_s
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.observed_range import (
    EXACT_FROM,
    ObservedRange,
    PercentileEstimate,
    RangeMonitor,
    observe_range,
)
from evaluation.policy.observed_ranges import RangeGate
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError

BACKTEST_ALPHA = 0.01  # of `backtest --range`, which has no policy's alpha to share


@dataclass(frozen=True, slots=True)
class RangeResult:
    """Stable's observed range, and where each percentile of the canary lies."""

    metric: str
    observed: ObservedRange
    percentiles: tuple[PercentileEstimate, ...]

    def lines(self) -> list[str]:
        """One line for each percentile."""
        unit = CATALOGUE[self.metric].unit
        return [
            f"{self.metric}: {percentile.verdict.value}, {percentile.text(unit)}, "
            f"observed for stable: {percentile.range.low:.4g}..{percentile.range.high:.4g} {unit}"
            for percentile in self.percentiles
        ]

    def as_json(self) -> dict[str, object]:
        """JSON types; null where the canary's percentile has no upper bound."""
        return {
            "metric": self.metric,
            "since_s": self.observed.since_s,
            "until_s": self.observed.until_s,
            "windows": self.observed.windows,
            "percentiles": [
                {
                    "percentile": percentile.range.percentile,
                    "low": percentile.range.low,
                    "high": percentile.range.high,
                    "verdict": percentile.verdict.value,
                    "canary_low": percentile.low,
                    "canary_high": percentile.high if math.isfinite(percentile.high) else None,
                }
                for percentile in self.percentiles
            ],
        }


def range_of_backtest(
    evidence: EvidenceFile, metric: str, *, since: str, until: str | None, window: str
) -> RangeResult:
    """Stable's rows in [since, until) against the canary's units, each counted once. Raises BadInput.

    until: None: the canary's first request.
    """
    since_s, t_s = parse_time("--since", since), _times(evidence)
    is_canary = np.asarray(evidence.columns["arm"]) == 1
    if until is not None:
        until_s = parse_time("--until", until)
    elif is_canary.any():
        until_s = float(t_s[is_canary].min())
    else:
        raise BadInput("--range needs canary rows; this file has none")
    window_s = _window_s(window)
    values = _values(evidence, metric, "--range")
    has_value = ~np.isnan(values)
    stable, canary = has_value & ~is_canary, np.flatnonzero(has_value & is_canary)
    if "unit" in evidence.columns:
        _, first = np.unique(np.asarray(evidence.columns["unit"])[canary], return_index=True)
        canary = canary[np.sort(first)]
    try:
        observed = observe_range(
            t_s[stable],
            values[stable],
            since_s=max(since_s, float(t_s.min())),  # windows are cut from the file's start at the earliest
            until_s=until_s,
            window_s=window_s,
        )
        monitor = RangeMonitor(RangeGate("range", metric, observed.ranges), alpha=BACKTEST_ALPHA)
        monitor.add(values[canary])
    except ValueError as exc:
        raise BadInput(f"--range {metric}: {exc}") from exc
    return RangeResult(metric, observed, monitor.estimates())


def range_gate(
    evidence: EvidenceFile,
    metric: str,
    *,
    since: str | None,
    until: str | None,
    window: str,
    name: str,
    on_outside: str,
    alpha_share: float,
) -> RangeGate:
    """Gate whose range is what stable's rows showed in [since, until). Raises BadInput."""
    values, t_s = _values(evidence, metric, "--metric"), _times(evidence)
    stable = ~np.isnan(values) & (np.asarray(evidence.columns["arm"]) == 0)
    if not stable.any():
        raise BadInput(f"--metric {metric}: stable has no values in this file; give a file of its traffic")
    first_s, last_s = float(t_s[stable].min()), float(t_s[stable].max())
    since_s = parse_time("--since", since) if since is not None else first_s
    until_s = parse_time("--until", until) if until is not None else math.nextafter(last_s, math.inf)
    if not since_s < until_s:
        raise BadInput(
            f"--since {format_time(since_s)} is not before --until {format_time(until_s)}; give an earlier "
            "--since or a later --until"
        )
    if not (stable & (t_s >= since_s) & (t_s < until_s)).any():
        raise BadInput(
            f"stable has no {metric} from {format_time(since_s)} to {format_time(until_s)}; "
            f"the file has it from {format_time(first_s)} to {format_time(last_s)}: give times within"
        )
    begin_s = max(since_s, first_s)  # or the first window would be half empty
    try:
        observed = observe_range(
            t_s[stable], values[stable], since_s=begin_s, until_s=until_s, window_s=_window_s(window)
        )
        if observed.windows < EXACT_FROM:
            note(
                f"{observed.windows} windows say little of how {metric} varies: each end is widened by what "
                f"chance may have left out; from {EXACT_FROM} windows on it is not"
            )
        return RangeGate(
            name,
            metric,
            observed.ranges,
            alpha_share,
            on_outside,
            since=format_time(since_s),
            until=format_time(until_s),
        )
    except PolicyError as exc:
        raise BadInput(str(exc)) from exc
    except ValueError as exc:
        raise BadInput(f"{metric} from {format_time(begin_s)} to {format_time(until_s)}: {exc}") from exc


def rounded_entry(gate: RangeGate) -> dict[str, object]:
    """Policy entry with four digits a value, rounded outward so that the range never gets narrower."""
    entry = gate.to_mapping()
    entry["ranges"] = {found.name: [round_down(found.low), -round_down(-found.high)] for found in gate.ranges}
    return entry


def round_down(value: float) -> float:
    """The value rounded towards minus infinity to four significant digits."""
    if value == 0.0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{math.floor(value / step) * step:.4g}")


def alpha_comment(gate: RangeGate) -> str:
    """YAML that takes the gate's alpha share from another gate, as a preset's shares already sum to 1."""
    error = GatePolicy.default().gate("error").alpha_share
    remaining = error - gate.alpha_share
    if remaining <= 0.0:
        return "# a preset's alpha shares sum to 1: lower those of other gates\n"
    return (
        f"# a preset's alpha shares sum to 1: {gate.alpha_share:g} of the error gate's {error:g} move here\n"
        f"gates:\n  error: {{alpha_share: {remaining:g}}}\n"
    )


def _values(evidence: EvidenceFile, metric: str, option: str) -> NDArray[np.float64]:
    if metric not in VALUES or metric not in evidence.columns:
        available = ", ".join(sorted(VALUES & evidence.columns.keys())) or "none"
        why = (
            "has no range: only times, tokens and costs do" if metric not in VALUES else "is not in the file"
        )
        raise BadInput(f"{option} {metric} {why}; of these the file has {available}")
    values = np.asarray(evidence.columns[metric], dtype=np.float64)
    return np.where(evidence.unanswered, np.nan, values)  # as in a live range: failing fast is not fast


def _times(evidence: EvidenceFile) -> NDArray[np.float64]:
    return np.asarray(evidence.columns["t_s"], dtype=np.float64)


def _window_s(window: str) -> float:
    try:
        return duration_s(window)
    except ValueError as exc:
        raise BadInput(f"--window {exc}") from exc


def format_time(seconds: float) -> str:
    """UTC time as `parse_time` reads it: 2026-05-01, 2026-05-01T14:00:05Z, or seconds where out of range."""
    try:
        time = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return f"{seconds:g}"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ").removesuffix("T00:00:00Z")


def parse_time(option: str, text: str) -> float:
    """Seconds since the epoch of a number or an ISO date (UTC unless it has a zone). Raises BadInput."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
            seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            seconds = math.nan
    if not math.isfinite(seconds):
        raise BadInput(f"{option} {text!r} is not a time; write 2026-05-01, 2026-05-01T14:00 or seconds")
    return seconds
