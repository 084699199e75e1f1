"""Observed ranges from a file: what stable showed between two dates, and whether a canary is inside it.

`canaryctl observed FILE` writes the policy entry of a range; `canaryctl backtest FILE --range` judges the
file's canary by one beside the decision.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from numpy.typing import NDArray

from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.errors import BadInput
from controller.quantities import duration_s
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.observed_range import ObservedRange, PercentileEstimate, RangeMonitor, observe_range
from evaluation.policy.observed_ranges import ALPHA_SHARE, RangeGate
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError

ALPHA = 0.01  # of `--range`, which stands alone


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """What stable showed, and where each percentile of the canary is."""

    metric: str
    observed: ObservedRange
    reports: tuple[PercentileEstimate, ...]

    def lines(self) -> list[str]:
        """A line for each percentile."""
        unit = CATALOGUE[self.metric].unit
        return [
            f"{self.metric}: {one.verdict.value}, {one.text(unit)}, "
            f"stable showed {one.range.low:.4g}..{one.range.high:.4g} {unit}"
            for one in self.reports
        ]

    def as_plain(self) -> dict[str, object]:
        """Plain values for JSON; null where nothing bounds the canary's percentile."""
        return {
            "metric": self.metric,
            "since_s": self.observed.since_s,
            "until_s": self.observed.until_s,
            "windows": self.observed.windows,
            "percentiles": [
                {
                    "percentile": one.range.percentile,
                    "low": one.range.low,
                    "high": one.range.high,
                    "verdict": one.verdict.value,
                    "canary_low": one.low,
                    "canary_high": one.high if math.isfinite(one.high) else None,
                }
                for one in self.reports
            ],
        }


def judge_range(
    evidence: EvidenceFile, metric: str, *, since_s: float, until_s: float, window_s: float
) -> RangeAnswer:
    """Stable's rows in [since_s, until_s) against the canary's units, each once. Raises BadInput."""
    y, canary = _values(evidence, metric, "--range"), np.asarray(evidence.columns["arm"]) == 1
    known = ~np.isnan(y)
    first = np.flatnonzero(known & canary)
    if "unit" in evidence.columns:
        _, at = np.unique(np.asarray(evidence.columns["unit"])[first], return_index=True)
        first = first[np.sort(at)]
    try:
        observed = observe_range(
            _times(evidence)[known & ~canary],
            y[known & ~canary],
            since_s=since_s,
            until_s=until_s,
            window_s=window_s,
        )
        watch = RangeMonitor(RangeGate("range", metric, observed.ranges), alpha=ALPHA)
        watch.add(y[first])
    except ValueError as exc:
        raise BadInput(f"--range {metric}: {exc}") from exc
    return RangeAnswer(metric, observed, watch.estimates())


class Written(StrEnum):
    """How `canaryctl observed` prints the entry."""

    YAML = "yaml"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Mount `observed` on the command line."""
    app.command()(observed)


def observed(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Requests in order of assignment: .jsonl, .csv or .parquet."),
    ],
    metric: Annotated[str, typer.Option(help="What is measured: latency_ms, ttft_ms, ...")] = "latency_ms",
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin of what stable showed: a date or seconds. [default: the file's]", show_default=False
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="Its end. [default: the file's]", show_default=False)
    ] = None,
    window: Annotated[str, typer.Option(help="Length of the windows that span the range.")] = "1h",
    name: Annotated[
        str | None, typer.Option(help="Name of the gate. [default: METRIC_range]", show_default=False)
    ] = None,
    on_outside: Annotated[str, typer.Option(help="hold or rollback.")] = "hold",
    alpha_share: Annotated[float, typer.Option(help="Its part of the policy's alpha.")] = ALPHA_SHARE,
    output: Annotated[Written, typer.Option("-o", "--output", help="How to print it.")] = Written.YAML,
) -> None:
    """Write the policy entry that holds a canary inside what stable showed between two dates."""
    evidence = read_evidence(file)
    gate = range_of(
        evidence,
        metric,
        since=since,
        until=until,
        window=window,
        name=name or f"{metric}_range",
        on_outside=on_outside,
        alpha_share=alpha_share,
    )
    entry = {"observed_ranges": {gate.name: _rounded(gate)}}
    if output is Written.JSON:
        print(json.dumps(entry, indent=2))
        return
    print(_alpha_hint(gate), end="")
    print(yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=110), end="")


def range_of(
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
    """The gate from stable's rows between the dates. Raises BadInput."""
    y, at_s = _values(evidence, metric, "--metric"), _times(evidence)
    stable = ~np.isnan(y) & (np.asarray(evidence.columns["arm"]) == 0)
    if not stable.any():
        raise BadInput(f"--metric {metric}: stable has no values in this file; give one of stable's traffic")
    first_s, last_s = float(at_s[stable].min()), float(at_s[stable].max())
    since_s = moment_s("--since", since) if since is not None else first_s
    until_s = moment_s("--until", until) if until is not None else math.nextafter(last_s, math.inf)
    if not since_s < until_s:
        raise BadInput(f"--since {date(since_s)} is not before --until {date(until_s)}; swap them")
    if not (stable & (at_s >= since_s) & (at_s < until_s)).any():
        raise BadInput(
            f"stable has no {metric} from {date(since_s)} to {date(until_s)}; "
            f"the file has it from {date(first_s)} to {date(last_s)}"
        )
    # Windows are cut from where the file begins, or the first of them would be half empty.
    begin_s = max(since_s, first_s)
    try:
        found = observe_range(
            at_s[stable], y[stable], since_s=begin_s, until_s=until_s, window_s=_window_s(window)
        )
        gate = RangeGate(
            name, metric, found.ranges, alpha_share, on_outside, since=date(since_s), until=date(until_s)
        )
    except PolicyError as exc:
        raise BadInput(str(exc)) from exc
    except ValueError as exc:
        raise BadInput(f"{metric} from {date(begin_s)} to {date(until_s)}: {exc}") from exc
    return gate


def _rounded(gate: RangeGate) -> dict[str, object]:
    """The entry with four digits a value, rounded outward: a range that is narrower was not shown."""
    entry = gate.to_mapping()
    entry["ranges"] = {one.name: [_down(one.low), -_down(-one.high)] for one in gate.ranges}
    return entry


def _down(value: float) -> float:
    if value == 0.0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    return float(f"{math.floor(value / step) * step:.4g}")


def _alpha_hint(gate: RangeGate) -> str:
    """What the preset must give up, as its shares add up to 1 already."""
    error = GatePolicy.default().gate("error").alpha_share
    left = error - gate.alpha_share
    if left <= 0.0:
        return "# alpha shares add up to 1 in the presets: lower those of other gates\n"
    return (
        f"# alpha shares add up to 1 in the presets: {gate.alpha_share:g} of the errors' {error:g} go here\n"
        f"gates:\n  error: {{alpha_share: {left:g}}}\n"
    )


def _values(evidence: EvidenceFile, metric: str, option: str) -> NDArray[np.float64]:
    if metric not in VALUES or metric not in evidence.columns:
        have = ", ".join(sorted(VALUES & evidence.columns.keys())) or "none"
        raise BadInput(f"{option} {metric} is not a column of values; the file has {have}")
    return np.asarray(evidence.columns[metric], dtype=np.float64)


def _times(evidence: EvidenceFile) -> NDArray[np.float64]:
    return np.asarray(evidence.columns["t_s"], dtype=np.float64)


def _window_s(window: str) -> float:
    try:
        return duration_s(window)
    except ValueError as exc:
        raise BadInput(f"--window {exc}") from exc


def date(seconds: float) -> str:
    """A time as it is shown and read back: 2026-05-01, or 2026-05-01T14:00:05Z; seconds where it is none."""
    try:
        when = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return f"{seconds:g}"
    text = when.strftime("%Y-%m-%dT%H:%M:%SZ")
    return text.removesuffix("T00:00:00Z")


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
