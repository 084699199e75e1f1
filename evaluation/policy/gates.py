"""Gates, rungs and stages: what is tested, how strictly, what a stage must prove. With the presets' own.

A threshold ("p99 +20 %", "errors +50 %", "quality -0.05") is the harm that must be detected. The null
hypothesis of a rollback is the *tolerance*: half the threshold in `default`, 0 in `strict`, which detects
sooner and eventually rolls back anything slightly worse. Promotion tests another hypothesis, that the harm is
below the *margin*, which a `Rung` or a `StagePlan` sets.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from evaluation.metrics import CATALOGUE, Kind, Metric
from evaluation.policy.values import PolicyError, check_probability, flag, mapping, number, whole

MAX_RATIO = 1000.0  # of a margin or a threshold
DEFAULT_FLOOR = 0.005
MAX_COVARIATES = 8  # of a gate: their sums stay small
#: Columns of a request, besides metrics, that the assignment decides or that come of it.
AFTER_THE_TOSS = frozenset(
    {"arm", "bucket", "assigned_by", "fell_back", "completion_tokens", "finish_reason"}
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """P(judged) by arm, fixed before the answer exists. P(canary) of a judged unit is
    `w s1 / (w s1 + (1-w) s0)`."""

    stable: float = 1.0
    canary: float = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    """One test that can roll a canary back and that a promotion can require.

    `threshold`: the harm that must be detected (absolute for score, else relative).
    `tolerance`: the harm that must not roll back, in the same unit, 0 <= tolerance < threshold.
    `alpha_share`: this gate's part of the rollout's alpha; 0 makes it an alarm, displayed and never deciding.
    `deadline_s`: how long after the draw a score may arrive. `percentile`: of a percentile gate, in (0, 1).
    `covariates`: columns of numbers known before the toss that explain part of a score (`covariates.py`).
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
    presence_gated: bool = False  # whether a value arrives at all is itself an outcome (thumbs)
    mirrored: bool = False  # a quarter of its alpha is reserved for mirrored pairs
    required: bool = False  # a user asked for it: without values it blocks promotion
    covariates: tuple[str, ...] = ()

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
    Every stage proves on its own units, so that earlier ones cannot hide late harm. `own`: a wider margin for
    a gate whose margin would take longer than the stage: the stage's own units prove `own`, and the units of
    the whole rollout prove `margins`.
    """

    min_canary: int
    margins: Mapping[str, float]
    floor: float = DEFAULT_FLOOR
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """One margin that a stage must prove. `is_whole`: on the units of the whole rollout, not its own."""

    margin: float
    floor: float
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage as the evaluator sees it: weight in (0, 1], minimum canary requests, what it must prove.
    Raises PolicyError for invalid values; whether its gates exist only the policy knows."""

    weight: float
    min_canary: int
    margins: Mapping[str, float] | None = None  # None: those of the policy's rung for `min_canary`
    floor: float | None = None  # None: that of the rung
    warmup_s: float = 0.0  # from the stage's first draw: latency of both arms is ignored

    def __post_init__(self) -> None:
        if not 0.0 < number("weight", self.weight) <= 1.0:
            raise PolicyError(f"weight {self.weight} of a stage is outside (0, 1]; it is P(canary), as 0.05")
        whole("min_canary", self.min_canary, minimum=0)
        if self.floor is not None:
            check_floor("floor", self.floor)
        if number("warmup_s", self.warmup_s) < 0.0:
            raise PolicyError(f"warmup_s {self.warmup_s} of a stage is below 0; use 0 for none")
        if self.margins is not None:
            for name, margin in mapping("margins", self.margins).items():
                number(f"margins.{name}", margin)


def check_margins(path: str, margins: object, kinds: Mapping[str, Kind]) -> None:
    """Raise PolicyError unless each is a margin that its gate can prove. kinds: by gate name."""
    for name, value in mapping(path, margins).items():
        kind = kinds.get(name)
        if kind is None:
            raise PolicyError(f"{path}.{name} names no gate; use one of {', '.join(kinds)}")
        margin = number(f"{path}.{name}", value)
        if kind is Kind.SCORE and not 0.0 < margin < 1.0:
            raise PolicyError(f"{path}.{name} {margin} is outside (0, 1); it is a loss of score, as 0.05")
        if kind is not Kind.SCORE and not 1.0 <= margin <= MAX_RATIO:
            raise PolicyError(f"{path}.{name} {margin} is outside 1..{MAX_RATIO:g}; it is a ratio, as 1.5")


def check_floor(key: str, value: object) -> None:
    """Raise PolicyError unless the value is a share of requests in [0, 1)."""
    if not 0.0 <= number(key, value) < 1.0:
        raise PolicyError(f"{key} {value} is outside [0, 1); it is a share of requests, as 0.005")


def check_gate(gate: Gate) -> None:
    """Raise PolicyError unless the gate can be tested."""
    if not isinstance(gate.name, str) or not gate.name:
        raise PolicyError(f"gate name {gate.name!r} is not a name; use text such as error")
    path = f"gates.{gate.name}"
    if gate.metric not in CATALOGUE:
        raise PolicyError(
            f"{path}.metric {gate.metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}"
        )
    kinds = CATALOGUE[gate.metric].kinds
    if gate.kind not in kinds:
        raise PolicyError(f"{path}.kind {gate.kind} does not fit {gate.metric}; use {' or '.join(kinds)}")
    if not 0.0 <= number(f"{path}.alpha_share", gate.alpha_share) <= 1.0:
        raise PolicyError(f"{path}.alpha_share {gate.alpha_share} is outside 0..1; it is a part of alpha")
    if not number(f"{path}.threshold", gate.threshold) > 0.0:
        raise PolicyError(f"{path}.threshold {gate.threshold} is not above 0; give the harm to detect")
    limit = 1.0 if gate.kind is Kind.SCORE else MAX_RATIO
    if gate.threshold >= limit:
        raise PolicyError(f"{path}.threshold {gate.threshold} is not below {limit:g}; give a possible harm")
    if not 0.0 <= number(f"{path}.tolerance", gate.tolerance) < gate.threshold:
        raise PolicyError(
            f"{path}.tolerance {gate.tolerance} is outside [0, threshold {gate.threshold}); use half of it"
        )
    if (gate.kind is Kind.PERCENTILE) != (gate.percentile is not None):
        raise PolicyError(
            f"{path}.percentile {gate.percentile} does not fit kind {gate.kind}; "
            "only percentile gates have one"
        )
    if gate.percentile is not None:
        check_probability(f"{path}.percentile", gate.percentile, below=1.0)
    for arm, share in (("stable", gate.sampling.stable), ("canary", gate.sampling.canary)):
        if not 0.0 < number(f"{path}.sampling.{arm}", share) <= 1.0:
            raise PolicyError(
                f"{path}.sampling.{arm} {share} is outside (0, 1]; it is the probability of being judged"
            )
    if not number(f"{path}.deadline_s", gate.deadline_s) > 0.0:
        raise PolicyError(f"{path}.deadline_s {gate.deadline_s} is not above 0; give the longest wait")
    for key in ("presence_gated", "mirrored", "required"):
        flag(f"{path}.{key}", getattr(gate, key))
    check_covariates(f"{path}.covariates", gate)


def check_covariates(path: str, gate: Gate) -> None:
    """Raise PolicyError unless these can be columns known before the toss, of a score."""
    names = gate.covariates
    if not names:
        return
    if gate.kind is not Kind.SCORE:
        raise PolicyError(f"{path} does not fit kind {gate.kind}; only scores have covariates; leave it out")
    if len(names) > MAX_COVARIATES:
        raise PolicyError(f"{path} has {len(names)} names, limit {MAX_COVARIATES}; keep what explains most")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise PolicyError(f"{path} {name!r} is not a name; give columns, as [body_bytes]")
        if name in names[:index]:
            raise PolicyError(f"{path} repeats {name}; give each column once")
        if name in CATALOGUE or name in AFTER_THE_TOSS:
            raise PolicyError(
                f"{path} {name} is known only after the toss, so that the arm can change it: harm would be "
                "explained away, or invented; give what is known of the request before, as body_bytes"
            )


# --- the presets


def preset_gates(tolerance_ratio: float) -> tuple[Gate, ...]:
    """The gates of a preset, which tolerate `tolerance_ratio` of each threshold."""

    def gate(name: str, metric: str, kind: Kind, share: float, threshold: float, **more: float) -> Gate:
        return Gate(name, metric, kind, share, threshold, threshold * tolerance_ratio, **more)  # type: ignore[arg-type]

    return (
        gate("error", "error", Kind.RATE, 0.25, 0.5),
        gate("rejected", "rejected", Kind.RATE, 0.05, 0.5),
        gate("latency_p99", "latency_ms", Kind.PERCENTILE, 0.1, 0.2, percentile=0.99),
        gate("latency_shape", "latency_ms", Kind.SHAPE, 0.1, 0.2),
        gate("ttft_shape", "ttft_ms", Kind.SHAPE, 0.1, 0.2),
        gate("quality", "quality", Kind.SCORE, 0.2, 0.05, deadline_s=600.0),
        gate("hallucination", "hallucinated", Kind.RATE, 0.2, 0.5, deadline_s=600.0),
    )


#: Gates that a rung may name although the policy has left them out, and how they are tested.
PRESET_KINDS: Mapping[str, Kind] = {gate.name: gate.kind for gate in preset_gates(0.5)}


def _rung(
    min_canary: int,
    unanswered: float,
    hallucination: float,
    floor: float = DEFAULT_FLOOR,
    own: float | None = None,
    **more: float,
) -> Rung:
    """unanswered, own: margin of errors and of rejections, which are the user's errors or the canary's."""
    margins = {"error": unanswered, "rejected": unanswered, "hallucination": hallucination, "quality": 0.05}
    whole = {} if own is None else {"error": own, "rejected": own}
    return Rung(min_canary, {**margins, "latency_shape": 1.2, **more}, floor, whole)


DEFAULT_RUNGS = (
    _rung(0, 5.0, 3.0, floor=0.01),
    _rung(800, 3.0, 3.0),
    _rung(2700, 3.0, 1.5, latency_p99=1.2),
    _rung(10_000, 1.5, 1.5, own=3.0, latency_p99=1.2),
)


def alarm_gate(metric: Metric) -> Gate:
    """A gate without a share of alpha: displayed and reported, never deciding. It waits one minute for
    scores; a metric whose scores take longer needs a gate of its own."""
    kind = metric.kinds[0]
    threshold = {Kind.RATE: 0.5, Kind.SHAPE: 0.2, Kind.MEAN: 0.2, Kind.SCORE: 0.05}[kind]
    name = f"{metric.name}_alarm"  # no margin of a rung has such a name
    return Gate(name, metric.name, kind, 0.0, threshold, threshold / 2)


def shared_out(shares: Mapping[str, float], absent: Collection[str]) -> dict[str, float] | None:
    """Alpha shares by gate without `absent`, whose shares go to the others in proportion.

    None: nothing is absent, or the others have no share that could grow.
    """
    kept = {name: share for name, share in shares.items() if name not in absent}
    total = math.fsum(kept.values())
    if len(kept) == len(shares) or total == 0.0:
        return None
    factor = 1.0 + math.fsum(shares[name] for name in absent) / total
    return {name: share * factor for name, share in kept.items()}
