"""A policy's observed ranges: where stable's percentiles lay between two dates, and what outside means.

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
from evaluation.policy.parsing import PolicyError, mapping, number

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
    """The canary's percentiles inside what stable showed. Errors: PolicyError when made with what cannot
    hold.

    `alpha_share`: its part of the rollout's alpha. `on_outside`: 'hold' makes the stage INVALID while the
    canary is outside, 'rollback' rolls back once it was shown to be. `sides`: 'above' takes whatever is
    below the range for inside. `since`, `until`: the dates, as text to show; None: not said.
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
        at = f"observed_ranges.{self.name}"
        if self.metric not in VALUES:
            raise PolicyError(
                f"{at}.metric {self.metric!r} has no percentiles; use one of {', '.join(sorted(VALUES))}"
            )
        if not 0.0 < number(f"{at}.alpha_share", self.alpha_share) <= 1.0:
            raise PolicyError(f"{at}.alpha_share {self.alpha_share} is outside (0, 1]; it is a part of alpha")
        for key, value, known in (
            ("on_outside", self.on_outside, ON_OUTSIDE),
            ("sides", self.sides, SIDES),
        ):
            if value not in known:
                raise PolicyError(f"{at}.{key} {value!r} is unknown; use {' or '.join(known)}")
        if not self.ranges:
            raise PolicyError(f"{at}.ranges is empty; give some, as p95: [300, 420]")
        for one in self.ranges:
            _check_range(f"{at}.ranges.{one.name}", one)
        if len({one.percentile for one in self.ranges}) != len(self.ranges):
            raise PolicyError(f"{at}.ranges repeats a percentile; give each once")

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `range_gates` reads back to an equal gate."""
        out: dict[str, object] = {
            "metric": self.metric,
            "ranges": {one.name: [one.low, one.high] for one in self.ranges},
            "alpha_share": self.alpha_share,
            "on_outside": self.on_outside,
            "sides": self.sides,
        }
        return out | {key: getattr(self, key) for key in ("since", "until") if getattr(self, key) is not None}


def range_gates(raw: object) -> tuple[RangeGate, ...]:
    """The observed ranges of a policy from plain values. Errors: PolicyError."""
    gates = []
    for name, value in mapping("observed_ranges", raw).items():
        at = f"observed_ranges.{name}"
        given = mapping(at, value)
        for key in given:
            if key not in _KEYS:
                raise PolicyError(f"{at}.{key} is unknown; use one of {', '.join(_KEYS)}")
        for key in ("metric", "ranges"):
            if key not in given:
                raise PolicyError(f"{at}.{key} is missing; `canaryctl observed` writes a whole entry")
        gates.append(
            RangeGate(
                name=name,
                metric=str(given["metric"]),
                ranges=_ranges(f"{at}.ranges", given["ranges"]),
                alpha_share=number(f"{at}.alpha_share", given.get("alpha_share", ALPHA_SHARE)),
                on_outside=str(given.get("on_outside", "hold")),
                sides=str(given.get("sides", "both")),
                since=_text(given, "since"),
                until=_text(given, "until"),
            )
        )
    return tuple(gates)


def _text(given: Mapping[str, object], key: str) -> str | None:
    return None if given.get(key) is None else str(given[key])


def _ranges(at: str, raw: object) -> tuple[PercentileRange, ...]:
    found = []
    for name, ends in mapping(at, raw).items():
        match = _PERCENTILE.fullmatch(str(name))
        if match is None:
            raise PolicyError(f"{at}.{name} is no percentile; write p50, p90, p95 or p99.9")
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise PolicyError(f"{at}.{name} {ends!r} is not two values; write [300, 420]")
        low, high = (number(f"{at}.{name}", end) for end in ends)
        # Rounded, so that the name is read back to the same number.
        found.append(PercentileRange(round(float(match[1]) / 100, 6), low, high))
    return tuple(found)


def _check_range(at: str, one: PercentileRange) -> None:
    if not 0.0 < number(at, one.percentile) < 1.0:
        raise PolicyError(f"{at}: percentile {one.percentile} is outside (0, 1); use 0.95")
    if not 0.0 <= number(at, one.low) <= number(at, one.high) or one.high == 0.0:
        raise PolicyError(
            f"{at} [{one.low:g}, {one.high:g}] spans no values; give 0 <= low <= high, as [300, 420]"
        )
