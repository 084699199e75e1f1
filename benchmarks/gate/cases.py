"""Cases of `make bench-gate`, with their targets.

`NO_HARM` must not be rolled back, `HARM` must be, `PROMOTION` must be proven. `BOUNDARY` is, for each gate
and unit model, a canary exactly as bad as the stage's margin: at most one in twenty may be promoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.gate.traffic import STABLE, Behaviour, Case, Traffic


def _harm(
    name: str, canary: Behaviour, n: int, strict: float | None, default: float | None, **more: object
) -> Case:
    case = Case(name, "rollback", canary, canary_requests=n, target={"strict": strict, "default": default})
    return replace(case, **more)  # type: ignore[arg-type]


_WORSE = Behaviour(error=0.012, hallucinated=0.035, latency_scale=1.08, quality=0.73)
_TENANTS = Traffic(units="tenants")
_DRIFT = Traffic(drift=0.8)
_HALL = Behaviour(hallucinated=0.14)
_ERR5 = Behaviour(error=0.05)

NO_HARM = (
    Case("independent", "no_harm"),
    Case("daily drift", "no_harm", traffic=_DRIFT),
    Case("sticky users", "no_harm", traffic=Traffic(units="sticky")),
    Case("sticky users, drift", "no_harm", traffic=Traffic(units="sticky", drift=0.8)),
    Case("five tenants hold half", "no_harm", traffic=_TENANTS),
    Case("ramp 2-50 %, drift", "no_harm", traffic=Traffic(ramp=True, drift=0.8, rate_per_s=0.4)),
    Case(
        "ramp, returning users, drift",
        "no_harm",
        traffic=Traffic(units="returning", ramp=True, drift=0.8, rate_per_s=0.4),
    ),
    Case("zero baseline errors", "no_harm", Behaviour(error=0.0), Behaviour(error=0.0)),
    Case("tolerably worse", "no_harm", _WORSE),
    Case("quality -0.02 stays", "no_harm", Behaviour(quality=0.73)),
)

_STEADY = (
    _harm("hallucination 3 -> 14 %", _HALL, 1500, 85, 115),
    _harm("hallucination, sticky 10", _HALL, 3000, 170, 250, traffic=Traffic(units="sticky")),
    _harm("hallucination, w = 1 %", _HALL, 1000, 80, 105, traffic=Traffic(w=0.01)),
    _harm("hallucination, w = 50 %", _HALL, 3000, 185, 250, traffic=Traffic(w=0.5)),
    _harm("errors 1 -> 5 %", _ERR5, 3000, 185, 250),
    _harm("errors 1 -> 2 %", Behaviour(error=0.02), 12_000, 1850, 4000),
    _harm("errors 0 -> 0.5 %", Behaviour(error=0.005), 4000, 560, 560, stable=Behaviour(error=0.0)),
    _harm("latency x1.2", Behaviour(latency_scale=1.2), 4000, 145, 680),
    _harm("latency x1.5", Behaviour(latency_scale=1.5), 600, 45, 70),
    _harm(
        "latency x1.2, 5 % errors",
        Behaviour(latency_scale=1.2, error=0.05),
        4000,
        None,
        None,
        stable=Behaviour(error=0.05),
    ),
    _harm("tail only, p99 +20 %", Behaviour(p99_scale=1.2), 6000, 2300, None),
    _harm("tail only, p99 +50 %", Behaviour(p99_scale=1.5), 4000, 600, 1100),
    _harm("quality -0.05", Behaviour(quality=0.70), 4000, 220, None),
    _harm("quality -0.02", Behaviour(quality=0.73), 4000, 1300, None),
)


def _drifting(name: str) -> Case:
    """The same harm and the same seeds, with a daily wave shared by both arms."""
    plain = next(case for case in _STEADY if case.name == name)
    return replace(plain, name=f"{name}, drift", traffic=_DRIFT, target={}, seeded_as=name)


HARM = (
    *_STEADY,
    *map(_drifting, ("hallucination 3 -> 14 %", "errors 1 -> 5 %", "latency x1.2", "quality -0.05")),
)

UNIT_MODELS: Mapping[str, Traffic] = {
    "per request": Traffic(),
    "sticky 10": Traffic(units="sticky", per_unit=10),
    "sticky 50": Traffic(units="sticky", per_unit=50),
    "tokens 0 %": Traffic(units="held", held_ratio=0.0),
    "tokens 30 %": Traffic(units="held", held_ratio=0.3),
    "tokens 60 %": Traffic(units="held", held_ratio=0.6),
    "fallback of the slowest 5 %": Traffic(units="fallback"),
}


def _proof(name: str, n: int, metrics: tuple[str, ...], proofs: Mapping[str, float], **target: float) -> Case:
    return Case(name, "promotion", canary_requests=n, metrics=metrics, proofs=proofs, target=target)


_FIRST_RUNG = {"error": 5.0, "hallucination": 3.0, "quality": 0.05, "latency_shape": 1.2}

PROMOTION = (
    _proof("proves quality > -0.05", 2000, ("quality",), {"quality": 0.05}, median=130),
    _proof("proves shape", 2000, ("latency",), {"latency_shape": 1.2}, median=130),
    _proof("proves errors < 5x", 2000, ("error",), {"error": 5.0}),
    _proof("proves hallucination < 3x", 2000, ("hallucinated",), {"hallucination": 3.0}),
    _proof(
        "proves all four",
        3000,
        ("error", "latency", "quality", "hallucinated"),
        _FIRST_RUNG,
        median=250,
        p90=400,
    ),
    _proof("proves p99 < 1.2x", 8000, ("latency",), {"latency_p99": 1.2}, median=1100),
)

# A canary exactly as bad as a margin, gate by gate: (name, gate, metric, margin, floor, canary, stable).
_AT_MARGIN: tuple[tuple[str, str, str, float, float, Behaviour, Behaviour], ...] = (
    ("errors = 5x", "error", "error", 5.0, 0.01, Behaviour(error=0.05), STABLE),
    ("errors = stable + 0.01", "error", "error", 5.0, 0.01, Behaviour(error=0.011), Behaviour(error=0.001)),
    ("hallucination = 3x", "hallucination", "hallucinated", 3.0, 0.01, Behaviour(hallucinated=0.09), STABLE),
    ("quality = -0.05", "quality", "quality", 0.05, 0.01, Behaviour(quality=0.70), STABLE),
    ("shape x1.2", "latency_shape", "latency", 1.2, 0.01, Behaviour(latency_scale=1.2), STABLE),
    ("p99 = 1.2x, all slower", "latency_p99", "latency", 1.2, 0.01, Behaviour(latency_scale=1.2), STABLE),
    ("p99 = 1.2x, tail only", "latency_p99", "latency", 1.2, 0.01, Behaviour(p99_scale=1.2), STABLE),
)

BOUNDARY = tuple(
    Case(
        f"{name} | {model}",
        "boundary",
        canary,
        stable,
        traffic,
        canary_requests=3000,
        metrics=(metric,),
        proofs={gate: margin},
        floor=floor,
    )
    for name, gate, metric, margin, floor, canary, stable in _AT_MARGIN
    for model, traffic in UNIT_MODELS.items()
    if model != "fallback of the slowest 5 %" or metric == "latency"
)

#: Medians to reach at the crossing itself, before it is rounded up to a look.
CROSSINGS: Mapping[str, Mapping[str, float]] = {
    "quality -0.05": {"strict_crossing": 205},
    "proves errors < 5x": {"proven_crossing": 150},
}

#: Share by which the median may exceed that of commit 7f28581; else 5 %. Failures now count as slowest.
MORE_THAN_BEFORE: Mapping[str, float] = {
    "latency x1.2": 0.12,
    "latency x1.5": 0.12,
    "latency x1.2, drift": 0.12,
    "tail only, p99 +20 %": 0.12,
    "tail only, p99 +50 %": 0.12,
    "latency x1.2, 5 % errors": 0.20,
}
STICKY_STRICT_MORE = 0.20

CASES: Mapping[str, Case] = {case.name: case for case in (*NO_HARM, *HARM, *PROMOTION, *BOUNDARY)}
