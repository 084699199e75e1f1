"""Observed ranges of a policy: where stable's percentiles lay between two dates, and what happens outside.

    observed_ranges:
      latency:
        metric: latency_ms
        since: 2026-05-01
        until: 2026-05-02
        ranges: {p50: [290, 340], p90: [600, 740], p95: [800, 1010]}
        alpha_share: 0.05
        on_outside: hold

Invariant: the range is fixed. What both arms share (load, time of day) does not cancel against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.metrics import VALUES
from evaluation.policy.values import PolicyError, check_keys, mapping, number

ON_OUTSIDE = ("hold", "rollback")
SIDES = ("both", "above")
ALPHA_SHARE = 0.05
_KEYS = ("metric", "ranges", "alpha_share", "on_outside", "sides", "since", "until")
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)")


@dataclass(frozen=True, slots=True)
class PercentileRange:
    """Lowest and highest value that stable's percentile (in (0, 1)) took, in the metric's unit."""

    percentile: float
    low: float
    high: float

    @property
    def name(self) -> str:
        """As in a policy: p95."""
        return f"p{self.percentile * 100:g}"


@dataclass(frozen=True, slots=True)
class RangeGate:
    """Gate: the canary's percentiles lie inside the observed range. Raises PolicyError for invalid values.

    `alpha_share`: its part of the rollout's alpha. `on_outside`: 'hold' makes the stage INVALID while the
    canary is outside, 'rollback' rolls back once it was shown to be. `sides`: with 'above', a value below
    the range counts as inside. `since`, `until`: the dates, as text for display; None: not given.
    """

    name: str
    metric: str
    ranges: tuple[PercentileRange, ...]
    alpha_share: float = ALPHA_SHARE
    on_outside: str = "hold"
    sides: str = "both"
    since: str | None = None
    until: str | None = None

    def __post_init__(self) -> None:
        path = f"observed_ranges.{self.name}"
        if self.metric not in VALUES:
            raise PolicyError(
                f"{path}.metric {self.metric!r} has no percentiles; use one of {', '.join(sorted(VALUES))}"
            )
        if not 0.0 < number(f"{path}.alpha_share", self.alpha_share) <= 1.0:
            raise PolicyError(
                f"{path}.alpha_share {self.alpha_share} is outside (0, 1]; it is a part of alpha"
            )
        for key, value, known in (
            ("on_outside", self.on_outside, ON_OUTSIDE),
            ("sides", self.sides, SIDES),
        ):
            if value not in known:
                raise PolicyError(f"{path}.{key} {value!r} is unknown; use {' or '.join(known)}")
        if not self.ranges:
            raise PolicyError(f"{path}.ranges is empty; give some, as p95: [300, 420]")
        for percentile_range in self.ranges:
            _check_range(f"{path}.ranges.{percentile_range.name}", percentile_range)
        if len({r.percentile for r in self.ranges}) != len(self.ranges):
            raise PolicyError(f"{path}.ranges repeats a percentile; give each once")

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `parse_range_gates` reads back to an equal gate."""
        out: dict[str, object] = {
            "metric": self.metric,
            "ranges": {r.name: [r.low, r.high] for r in self.ranges},
            "alpha_share": self.alpha_share,
            "on_outside": self.on_outside,
            "sides": self.sides,
        }
        return out | {key: getattr(self, key) for key in ("since", "until") if getattr(self, key) is not None}


def parse_range_gates(raw: object) -> tuple[RangeGate, ...]:
    """The observed ranges of a policy from plain values. Errors: PolicyError."""
    gates = []
    for name, value in mapping("observed_ranges", raw).items():
        path = f"observed_ranges.{name}"
        given = mapping(path, value)
        check_keys(path, given, _KEYS)
        for key in ("metric", "ranges"):
            if key not in given:
                raise PolicyError(f"{path}.{key} is missing; `canaryctl observed` writes a whole entry")
        gates.append(
            RangeGate(
                name=name,
                metric=str(given["metric"]),
                ranges=_ranges(f"{path}.ranges", given["ranges"]),
                alpha_share=number(f"{path}.alpha_share", given.get("alpha_share", ALPHA_SHARE)),
                on_outside=str(given.get("on_outside", "hold")),
                sides=str(given.get("sides", "both")),
                since=_text(given, "since"),
                until=_text(given, "until"),
            )
        )
    return tuple(gates)


def _text(given: Mapping[str, object], key: str) -> str | None:
    return None if given.get(key) is None else str(given[key])


def _ranges(path: str, raw: object) -> tuple[PercentileRange, ...]:
    ranges = []
    for name, ends in mapping(path, raw).items():
        match = _PERCENTILE.fullmatch(str(name))
        if match is None:
            raise PolicyError(f"{path}.{name} is not a percentile; write p50, p90, p95 or p99.9")
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise PolicyError(f"{path}.{name} {ends!r} is not two values; write [300, 420]")
        low, high = (number(f"{path}.{name}", end) for end in ends)
        # Rounded, so that the name is read back to the same number.
        ranges.append(PercentileRange(round(float(match[1]) / 100, 6), low, high))
    return tuple(ranges)


def _check_range(path: str, given: PercentileRange) -> None:
    if not 0.0 < number(path, given.percentile) < 1.0:
        raise PolicyError(f"{path}: percentile {given.percentile} is outside (0, 1); use 0.95")
    if not 0.0 <= number(path, given.low) <= number(path, given.high) or given.high == 0.0:
        raise PolicyError(
            f"{path} [{given.low:g}, {given.high:g}] is not a range; give 0 <= low <= high, as [300, 420]"
        )
