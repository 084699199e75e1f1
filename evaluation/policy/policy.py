"""What is gated, how strictly, and what a stage must prove: `GatePolicy`, frozen, checked when it is made.

A threshold theta ("p99 +20 %", "errors +50 %", "quality -0.05") reads *must be detected*. What is bet
against is the *tolerance*: theta/2 in `default`, 0 in `strict`, which detects sooner and in the end rolls
back anything slightly worse. Promotion asks another question, "is the harm below the *margin* of this
rung?", and is configured by `Rung`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from evaluation.metrics import CATALOGUE, VALUES, Kind, Metric
from evaluation.policy.observed_ranges import RangeGate, range_gates
from evaluation.policy.parsing import (
    PRESET_KINDS,
    PolicyError,
    check_policy,
    check_stage,
    flag,
    mapping,
    number,
    whole,
)

__all__ = ["Gate", "GatePolicy", "PolicyError", "Rung", "Sampling", "StagePlan"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """P(judged) by arm, fixed before the answer exists: a judged unit's coin is `w s1 / (w s1 + (1-w)
    s0)`."""

    stable: float = 1.0
    canary: float = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    """One question that can roll a canary back, and be asked of it before promotion.

    `threshold`: the harm that must be detected (relative for rate, shape and percentile; absolute for score).
    `tolerance`: the harm that must not roll back, in the same unit, 0 <= tolerance < threshold.
    `alpha_share`: this gate's part of the rollout's alpha; 0 makes it an alarm, shown and never deciding.
    `deadline_s`: how long a score may come after the draw. `percentile`: of a percentile gate, in (0, 1).
    """

    name: str
    metric: str
    kind: Kind
    alpha_share: float
    threshold: float
    tolerance: float
    percentile: float | None = None  # None: not a percentile gate
    deadline_s: float = 60.0
    sampling: Sampling = Sampling()
    presence_gated: bool = False  # whether a value comes at all is itself an outcome (thumbs)
    mirrored: bool = False  # a quarter of its alpha is kept for mirrored pairs

    @property
    def is_alarm(self) -> bool:
        """Whether it never decides."""
        return self.alpha_share == 0.0


@dataclass(frozen=True, slots=True)
class Rung:
    """What a stage of at least `min_canary` canary requests has to prove, by gate name.

    A margin is a ratio for rates (5.0: "fewer than five times stable's"), percentiles (1.2: "below 1.2x")
    and shape (1.0: "not slower throughout" beyond the shape margin), and a loss for scores (0.05). `floor`:
    a rate also passes when it is below stable plus this.
    """

    min_canary: int
    margins: Mapping[str, float]
    floor: float = 0.005


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage as the evaluator needs it: the weight in (0, 1], the floor on its own canary requests, what
    it must prove. Errors: PolicyError when made with values that cannot hold."""

    weight: float
    min_canary: int
    margins: Mapping[str, float] | None = None  # None: the policy's rung for `min_canary`
    floor: float | None = None  # None: the rung's
    warmup_s: float = 0.0  # from the stage's first draw: latency says nothing, of either arm

    def __post_init__(self) -> None:
        check_stage(self)


DEFAULT_RUNGS = (
    Rung(0, {"error": 5.0, "hallucination": 3.0, "quality": 0.05, "latency_shape": 1.2}, floor=0.01),
    Rung(800, {"error": 3.0, "hallucination": 3.0, "quality": 0.05, "latency_shape": 1.2}),
    Rung(
        2700, {"error": 3.0, "hallucination": 1.5, "quality": 0.05, "latency_shape": 1.2, "latency_p99": 1.2}
    ),
    Rung(
        10_000,
        {"error": 1.5, "hallucination": 1.5, "quality": 0.05, "latency_shape": 1.2, "latency_p99": 1.2},
    ),
)


def _gates(tolerance_of: float) -> tuple[Gate, ...]:
    def gate(name: str, metric: str, kind: Kind, share: float, theta: float, **more: float) -> Gate:
        return Gate(name, metric, kind, share, theta, theta * tolerance_of, **more)  # type: ignore[arg-type]

    return (
        gate("error", "error", Kind.RATE, 0.3, 0.5),
        gate("latency_p99", "latency_ms", Kind.PERCENTILE, 0.1, 0.2, percentile=0.99),
        gate("latency_shape", "latency_ms", Kind.SHAPE, 0.1, 0.2),
        gate("ttft_shape", "ttft_ms", Kind.SHAPE, 0.1, 0.2),
        gate("quality", "quality", Kind.SCORE, 0.2, 0.05, deadline_s=600.0),
        gate("hallucination", "hallucinated", Kind.RATE, 0.2, 0.5, deadline_s=600.0),
    )


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Everything that decides, for one whole rollout. Errors: PolicyError when made with values that cannot
    hold."""

    name: str = "default"
    alpha: float = 0.01  # for the whole rollout, over all its gates and stages
    # For each gate of a stage; all must pass, so no correction. The promise is 5 %; a little less is spent,
    # so that what is counted in a few hundred simulated runs stays below the promise, too.
    promotion_alpha: float = 0.045
    proof_canary: int = 100  # canary requests before a proof is looked at
    gates: tuple[Gate, ...] = field(default_factory=lambda: _gates(0.5))
    rungs: tuple[Rung, ...] = DEFAULT_RUNGS
    served_share_alpha: float = 0.001
    served_rate_hold: float = 0.98
    served_rate_rollback: float = 0.90
    units: str = (
        "auto"  # "request", "sticky" or, by the first unit that is bet and what came before it, "auto"
    )
    session_requests: int = 10
    session_s: float = 600.0
    restart_share: float = 0.3  # prior of the processes that start later; 0 turns late-onset restarts off
    max_missing: float = 0.10
    load_ratio: float = 1.25
    observed_ranges: tuple[RangeGate, ...] = ()

    def __post_init__(self) -> None:
        check_policy(self)

    @classmethod
    def default(cls) -> GatePolicy:
        """Tolerates half of each threshold."""
        return cls()

    @classmethod
    def strict(cls) -> GatePolicy:
        """Tolerates nothing: detects sooner, and in the end rolls back anything that is slightly worse."""
        return cls(name="strict", gates=_gates(0.0))

    @classmethod
    def named(cls, name: str) -> GatePolicy:
        """The policy called `name`. Errors: PolicyError when there is none."""
        if name == "default":
            return cls.default()
        if name == "strict":
            return cls.strict()
        raise PolicyError(f"policy {name!r} is unknown; use default or strict, or give a mapping")

    @classmethod
    def of(cls, given: object) -> GatePolicy:
        """The policy that was asked for: a policy, a name, a mapping, or None for `default`. Errors:
        PolicyError."""
        if given is None:
            return cls.default()
        if isinstance(given, GatePolicy):
            return given
        if isinstance(given, str):
            return cls.named(given)
        if isinstance(given, Mapping):
            return cls.from_mapping(given)
        raise PolicyError(
            f"policy {given!r} is {type(given).__name__}; give a name, a mapping or a GatePolicy"
        )

    @classmethod
    def from_mapping(cls, raw: Mapping[str, object]) -> GatePolicy:
        """A policy from plain values, as a file or a spec holds them; `base` names what the rest changes."""
        return _policy_from_mapping(raw)

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `from_mapping` reads back to an equal policy."""
        out = asdict(self)
        out["gates"] = {gate.pop("name"): gate for gate in out["gates"]}
        out["rungs"] = [dict(rung, margins=dict(rung["margins"])) for rung in out["rungs"]]
        out["observed_ranges"] = {gate.name: gate.to_mapping() for gate in self.observed_ranges}
        if not self.observed_ranges:
            del out["observed_ranges"]  # the digests of policies from before there were ranges stay theirs
        return out

    def digest(self) -> str:
        """Sixteen hex digits that change whenever anything that decides changes."""
        text = json.dumps(self.to_mapping(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def gate(self, name: str) -> Gate:
        """The gate called `name`. Errors: PolicyError when there is none."""
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise PolicyError(
            f"gate {name!r} is unknown; this policy has {', '.join(g.name for g in self.gates)}"
        )

    def rung_for(self, min_canary: int) -> Rung:
        """The highest rung that a stage of `min_canary` canary requests reaches."""
        return max((r for r in self.rungs if r.min_canary <= min_canary), key=lambda r: r.min_canary)

    def only(self, *metrics: str) -> GatePolicy:
        """The same policy with the gates of these metrics alone; their alpha shares stay as they are."""
        gates = tuple(g for g in self.gates if g.metric in metrics)
        ranges = tuple(g for g in self.observed_ranges if g.metric in metrics)
        rungs = _without(self.rungs, set(self.gates) - set(gates))
        return replace(self, gates=gates, rungs=rungs, observed_ranges=ranges)

    def with_alarms(self) -> GatePolicy:
        """The same policy, with an alarm for every metric of the catalogue that no gate asks about."""
        gated = {gate.metric for gate in self.gates}
        more = tuple(_alarm(metric) for metric in CATALOGUE.values() if metric.name not in gated)
        return replace(self, gates=(*self.gates, *more))

    def gates_for(self, metric: str) -> tuple[Gate, ...]:
        """The gates that ask about `metric`, in the policy's order."""
        return tuple(g for g in self.gates if g.metric == metric)


def _without(rungs: tuple[Rung, ...], gone: set[Gate]) -> tuple[Rung, ...]:
    """The rungs without the margins of these gates; a preset's gate may be named without being there."""
    names = {gate.name for gate in gone} - PRESET_KINDS.keys()
    if not any(names & rung.margins.keys() for rung in rungs):
        return rungs
    return tuple(
        replace(rung, margins={name: m for name, m in rung.margins.items() if name not in names})
        for rung in rungs
    )


def _alarm(metric: Metric) -> Gate:
    """A gate that has no part of alpha: shown and told, never deciding. It hears scores that come within a
    minute; who waits for later ones gates the metric."""
    kind, threshold = Kind.RATE, 0.5
    if metric.name in VALUES:
        kind, threshold = Kind.SHAPE, 0.2
    elif metric.unit.startswith("score"):
        kind, threshold = Kind.SCORE, 0.05
    name = f"{metric.name}_alarm"  # no margin of a rung has such a name
    return Gate(name, metric.name, kind, 0.0, threshold, threshold / 2)


_PLAIN = (
    "alpha",
    "promotion_alpha",
    "served_share_alpha",
    "served_rate_hold",
    "served_rate_rollback",
    "proof_canary",
    "session_requests",
    "session_s",
    "restart_share",
    "max_missing",
    "load_ratio",
)
_GATE_KEYS = frozenset(
    {
        "metric",
        "kind",
        "alpha_share",
        "threshold",
        "tolerance",
        "percentile",
        "deadline_s",
        "sampling",
        "presence_gated",
        "mirrored",
    }
)


def _policy_from_mapping(raw: Mapping[str, object]) -> GatePolicy:
    known = {*_PLAIN, "base", "name", "units", "gates", "rungs", "observed_ranges"}
    for key in mapping("policy", raw):
        if key not in known:
            raise PolicyError(f"policy key {key!r} is unknown; use one of {', '.join(sorted(known))}")
    base = GatePolicy.named(str(raw.get("base", "strict" if raw.get("name") == "strict" else "default")))
    changes: dict[str, object] = {key: number(key, raw[key]) for key in _PLAIN if key in raw}
    for key in ("session_requests", "proof_canary"):
        if key in changes:
            changes[key] = whole(key, raw[key], least=0)
    for key in ("name", "units"):
        if key in raw:
            changes[key] = raw[key]
    if "gates" in raw:
        changes["gates"] = _gates_from(base, mapping("gates", raw["gates"]))
    if "rungs" in raw:
        changes["rungs"] = _rungs_from(raw["rungs"])
    if "observed_ranges" in raw:
        changes["observed_ranges"] = range_gates(raw["observed_ranges"])
    return replace(base, **changes)  # type: ignore[arg-type]


def _gates_from(base: GatePolicy, raw: Mapping[str, object]) -> tuple[Gate, ...]:
    """The gates named in `raw`, each starting from the base's gate of that name; a gate that is not named
    is left out."""
    gates = []
    known = {gate.name: gate for gate in base.gates}
    for name, value in raw.items():
        at = f"gates.{name}"
        given = dict(mapping(at, value))
        _only_keys(at, given, sorted(_GATE_KEYS))
        gates.append(_gate_from(name, known.get(name), given, half=base.name != "strict"))
    return tuple(gates)


def _gate_from(name: str, start: Gate | None, given: Mapping[str, object], *, half: bool) -> Gate:
    at = f"gates.{name}"
    if start is None:
        for key in ("metric", "kind", "threshold"):
            if key not in given:
                raise PolicyError(f"{at}.{key} is missing; a gate the default has not needs all three")
    kind = start.kind if start and "kind" not in given else _kind(at, given["kind"])
    numbers = {
        key: number(f"{at}.{key}", given[key])
        for key in ("alpha_share", "threshold", "tolerance", "percentile", "deadline_s")
        if given.get(key) is not None
    }
    threshold = numbers.get("threshold", start.threshold if start else 0.0)
    if "tolerance" not in numbers and (start is None or "threshold" in numbers):
        numbers["tolerance"] = threshold / 2 if half else 0.0
    metric = str(given["metric"]) if "metric" in given else (start.metric if start else "")
    first = start or Gate(name, metric, kind, 0.0, threshold, 0.0)
    sampling = first.sampling
    if "sampling" in given:
        shares = mapping(f"{at}.sampling", given["sampling"])
        _only_keys(f"{at}.sampling", shares, ("stable", "canary"))
        sampling = Sampling(
            stable=number(f"{at}.sampling.stable", shares.get("stable", 1.0)),
            canary=number(f"{at}.sampling.canary", shares.get("canary", 1.0)),
        )
    return replace(
        first,
        metric=metric,
        kind=kind,
        sampling=sampling,
        presence_gated=flag(f"{at}.presence_gated", given.get("presence_gated", first.presence_gated)),
        mirrored=flag(f"{at}.mirrored", given.get("mirrored", first.mirrored)),
        **numbers,  # type: ignore[arg-type]
    )


def _rungs_from(raw: object) -> tuple[Rung, ...]:
    if not isinstance(raw, list | tuple):
        raise PolicyError(f"rungs {raw!r} is not a list; give a list of {{min_canary, margins, floor}}")
    rungs = []
    for index, item in enumerate(raw):
        at = f"rungs.{index}"
        entry = mapping(at, item)
        _only_keys(at, entry, ("min_canary", "margins", "floor"))
        margins = mapping(f"{at}.margins", entry.get("margins", {}))
        rungs.append(
            Rung(
                min_canary=whole(f"{at}.min_canary", entry.get("min_canary", 0), least=0),
                margins={name: number(f"{at}.margins.{name}", value) for name, value in margins.items()},
                floor=number(f"{at}.floor", entry.get("floor", 0.005)),
            )
        )
    return tuple(rungs)


def _only_keys(at: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise PolicyError(f"{at}.{key} is unknown; use one of {', '.join(known)}")


def _kind(at: str, value: object) -> Kind:
    try:
        return Kind(str(value))
    except ValueError as exc:
        raise PolicyError(f"{at}.kind {value!r} is unknown; use one of {', '.join(Kind)}") from exc
