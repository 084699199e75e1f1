"""Policy of a rollout, as users write it: gates, stages, timeouts."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from datetime import date
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from controller.quantities import FULL_BP, duration, percent
from controller.spec.fields import Duration, FieldError, Strict, Weight, is_stored
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.policy.gates import Gate, Sampling, check_margins
from evaluation.policy.observed_ranges import ALPHA_SHARE
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError


class SamplingSpec(Strict):
    """Share of each arm's answers that is judged, decided before the answer exists."""

    stable: float = Field(default=1.0, description="share of stable's answers, 0.2 for one in five")
    canary: float = Field(default=1.0, description="share of the canary's answers")


class GateSpec(Strict):
    """Changes to one gate of the preset, or a gate of its own (that needs metric, kind, threshold)."""

    ALIASES: ClassVar[Mapping[str, str]] = {"deadline_s": "deadline"}

    metric: str | None = Field(default=None, description="name of the metric in the catalogue")
    kind: Literal["rate", "score", "shape", "percentile"] | None = Field(
        default=None, description="how it is tested"
    )
    alpha_share: float | None = Field(
        default=None, description="its share of alpha; 0 makes it an alarm, shown and never deciding"
    )
    threshold: float | None = Field(default=None, description="the harm that must be detected")
    tolerance: float | None = Field(
        default=None,
        description="the harm that must not roll back; default: half of the threshold, strict: 0",
    )
    percentile: float | None = Field(default=None, description="such as 0.99; percentile gates only")
    deadline: Duration | None = Field(default=None, description="maximum delay of a score after its request")
    sampling: SamplingSpec | None = Field(default=None, description="share of the answers that is judged")
    presence_gated: bool | None = Field(
        default=None, description="whether a value arrives is itself an outcome, as with thumbs"
    )
    mirrored: bool | None = Field(
        default=None, description="reserves a quarter of the gate's alpha for mirrored pairs"
    )
    covariates: tuple[str, ...] | None = Field(
        default=None, description="columns known before the toss that explain part of a score: [body_bytes]"
    )
    required: bool | None = Field(
        default=None,
        description="without values it blocks promotion; default: true for gates that a policy names",
    )

    def to_mapping(self) -> dict[str, object]:
        """The keys of `gate_policy_of`."""
        given = self.model_dump(exclude_none=True)
        if "deadline" in given:
            given["deadline_s"] = given.pop("deadline")
        return given


def _date_text(value: object) -> object:
    return value.isoformat() if isinstance(value, date) else value


DateText = Annotated[str, BeforeValidator(_date_text)]  # YAML reads an unquoted date as a date


class ObservedRangeSpec(Strict):
    """Gate against a range that stable's percentiles had between two dates; `canaryctl observed` writes it.

    The range is fixed: effects common to both versions, such as the time of day, do not cancel.
    """

    metric: str = Field(description="the metric: latency_ms, ttft_ms, itl_ms, tokens or cost")
    ranges: dict[str, tuple[float, float]] = Field(
        description="minimum and maximum of stable's percentile, as p95: [300, 420]"
    )
    alpha_share: float = Field(
        default=ALPHA_SHARE, description="its share of alpha, split evenly by percentile and side"
    )
    on_outside: Literal["hold", "rollback"] = Field(
        default="hold", description="hold: the stage is INVALID while the canary is outside"
    )
    sides: Literal["both", "above"] = Field(
        default="both", description="above: values below the range are accepted, too"
    )
    since: DateText | None = Field(default=None, description="start of the observation; shown, never used")
    until: DateText | None = Field(default=None, description="end of the observation; shown, never used")


class StageSpec(Strict):
    """One stage. 100 % is the promotion itself; its duration is the bake's."""

    weight: Weight | None = None
    weight_bp: int | None = Field(default=None, ge=1, le=FULL_BP)
    duration: Duration = 0.0
    min_canary: int = Field(
        default=0, ge=0, description="canary requests that must have settled in this stage"
    )
    deadline: Duration | None = Field(default=None, description="default: three times the planned time")
    on_missing: Literal["hold", "rollback"] = "hold"
    margins: dict[str, float] | None = Field(
        None, description="margins that must be proven, by gate; default: those of the rung for min_canary"
    )
    floor: float | None = Field(
        default=None, ge=0, le=1, description="a rate below stable's plus this passes, too; default: by rung"
    )
    promote_if_point_ok: bool | None = Field(
        default=None,
        description="unproven at the deadline: go on if the point estimates are within the margins",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.weight is None) == (self.weight_bp is None):
            raise ValueError("needs exactly one of weight (2.5%) and weight_bp (250)")
        if self.bp == 0:
            raise FieldError("weight", "0 % gives the canary no traffic; start at 0.01% or above")
        if self.deadline is not None and self.deadline < self.duration:
            raise FieldError(
                "deadline", f"{self.deadline:g} s is before duration {self.duration:g} s; raise it"
            )
        if self.promote_if_point_ok:
            if self.bp == FULL_BP:
                raise FieldError("promote_if_point_ok", "is for stages below 100 %; leave it out")
            if self.margins == {}:
                raise FieldError("promote_if_point_ok", "needs margins to compare estimates with; give some")
        return self

    @property
    def bp(self) -> int:
        """The weight in basis points, whichever key gave it."""
        return (self.weight if self.weight is not None else self.weight_bp) or 0


class RungSpec(Strict):
    """Margins that a stage of at least `min_canary` canary requests must prove, unless it has its own."""

    min_canary: int = Field(default=0, ge=0)
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="by gate: a ratio for rates and latency, a loss for scores"
    )
    floor: float = Field(default=0.005, ge=0, le=1, description="a rate below stable's plus this passes, too")
    own: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="wider margins that the stage's own units prove, where `margins` is of the whole rollout",
    )


_OWN_KEYS = ("metric", "kind", "threshold")
_LIMITS = (
    *("load_timeout", "warm_timeout", "smoke_timeout", "promote_timeout", "drain_timeout", "unload_timeout"),
    *("unreadable_timeout", "unready_timeout", "hold_limit"),
)
# Keys with the same name in the evaluation's policy.
_GATE_POLICY_KEYS = (
    "alpha",
    "promotion_alpha",
    "units",
    "proof_canary",
    "session_requests",
    "restart_share",
    "max_missing",
    "load_ratio",
    "served_share_alpha",
    "served_rate_hold",
    "served_rate_rollback",
)


class PolicySpec(Strict):
    """Policy of a rollout: its gates, stages and timeouts."""

    ALIASES: ClassVar[Mapping[str, str]] = {"base": "preset", "session_s": "session"}

    name: str = "default"
    preset: Literal["default", "strict", "vendor"] = "default"
    ladder: Literal["risk", "full"] = Field(default="risk", description="full: every risk starts at 2 %")
    stages: tuple[StageSpec, ...] | None = Field(
        default=None, description="default: from the risk of the change"
    )
    twin: bool = Field(
        default=False, description="stable against itself: measures the gate, promotes nothing"
    )
    alpha: float | None = Field(
        default=None, description="probability of a false rollback, over the whole rollout; default 0.01"
    )
    promotion_alpha: float | None = Field(
        default=None, description="probability of a false proof, of each gate of a stage; default 0.045"
    )
    gates: dict[str, GateSpec | None] = Field(
        default_factory=dict, description="null removes a gate of the preset"
    )
    observed_ranges: dict[str, ObservedRangeSpec] = Field(
        default_factory=dict, description="gates against fixed ranges observed on stable, by name"
    )
    units: Literal["auto", "request", "sticky"] | None = Field(
        default=None, description="the unit of randomisation; default auto: from the traffic"
    )
    proof_canary: int | None = Field(
        default=None, ge=0, description="canary requests before proofs are tested; default 100"
    )
    rungs: tuple[RungSpec, ...] | None = Field(
        default=None, description="margins that stages must prove, by their min_canary; the first has 0"
    )
    promote_if_point_ok: bool = Field(
        default=False, description="for stages without their own value; recorded as not proven"
    )
    session_requests: int | None = Field(
        default=None, description="requests after which a sticky unit's session closes; default 10"
    )
    session: Duration | None = Field(
        default=None, description="time since its first request after which it closes; default 10m"
    )
    restart_share: float | None = Field(
        default=None, description="share of the wealth reserved for harm that begins late; default 0.3"
    )
    max_missing: float | None = Field(
        default=None, description="a larger share of missing values is INVALID; default 0.1"
    )
    load_ratio: float | None = Field(
        default=None,
        description="maximum ratio of the arms' load per replica at which latency compares; default 1.25",
    )
    served_share_alpha: float | None = Field(
        default=None, description="alpha of the sample ratio mismatch test; default 0.001"
    )
    served_rate_hold: float | None = Field(
        default=None, description="share that the canary must serve of its requests, else hold; default 0.98"
    )
    served_rate_rollback: float | None = Field(default=None, description="... else roll back; default 0.9")
    holdback: Weight = 500
    bake: Duration = 7200.0
    load_timeout: Duration = 900.0
    warm_timeout: Duration = 300.0
    smoke_timeout: Duration = 120.0
    promote_timeout: Duration = 90.0
    drain_timeout: Duration = 30.0
    unload_timeout: Duration = 120.0
    unreadable_timeout: Duration = 60.0
    unready_timeout: Duration = 30.0
    hold_limit: Duration = 259_200.0
    warmup_tokens: int = Field(default=256, ge=0, le=100_000)

    @model_validator(mode="after")
    def _check_times(self, info: ValidationInfo) -> Self:
        """Limits that would be over before they begin, and a ladder that another key replaces."""
        if is_stored(info):
            return self
        for name in _LIMITS:
            if getattr(self, name) <= 0:
                default = duration(type(self).model_fields[name].default).replace(" ", "")
                raise FieldError(name, f"is 0 s, over before it begins; give some, such as {default}")
        for index, stage in enumerate(self.stages or ()):
            if stage.deadline is not None and stage.deadline <= 0:
                raise FieldError(f"stages.{index}.deadline", "is 0 s, over before it begins; raise it")
        if self.ladder == "full" and (self.preset == "vendor" or self.stages is not None):
            other = "stages" if self.stages is not None else "preset vendor"
            raise FieldError("ladder", f"full has no effect: {other} gives the weights; leave one out")
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.holdback > FULL_BP // 2:
            raise FieldError(
                "holdback", f"{percent(self.holdback)} exceeds 50 %; leave most to the promoted version"
            )
        if "" in self.gates:
            raise FieldError("gates", "has an empty name; name each gate, as error")
        self._check_stages()
        self._check_margins()
        points = [self.promote_if_point_ok, *(stage.promote_if_point_ok for stage in self.stages or ())]
        if self.twin and any(points):
            raise FieldError(
                "promote_if_point_ok", "cannot be combined with twin, which times the proofs; leave one out"
            )
        self._check_gate_names()
        try:
            gates = self.gate_policy()
            for index, stage in enumerate(self.stages or ()):
                check_margins(f"stages.{index}.margins", stage.margins or {}, gates.gate_kinds())
        except PolicyError as exc:
            raise FieldError(*str(exc).split(" ", 1)) from exc  # its message begins with the path
        _check_gates(gates)
        return self

    def _check_gate_names(self) -> None:
        """A gate that no preset has and that says not what it is: most likely a typo."""
        preset = [gate.name for gate in self._base().gates]
        for name, gate in self.gates.items():
            if gate is not None and gate.metric is not None and gate.metric not in CATALOGUE:
                raise FieldError(
                    f"gates.{name}.metric",
                    f"{gate.metric!r} is unknown; {suggestion(gate.metric, CATALOGUE)}",
                )
            is_own = gate is not None and None not in (gate.metric, gate.kind, gate.threshold)
            if name not in preset and not is_own:
                what = (
                    "null removes a gate of the preset"
                    if gate is None
                    else "a gate of its own needs all three"
                )
                given = [] if gate is None else [key for key in _OWN_KEYS if getattr(gate, key) is None]
                lacks = f"lacks {' and '.join(given)}: {what}" if given else what
                raise FieldError(
                    f"gates.{name}", f"is no gate of the preset, {lacks}; {suggestion(name, preset)}"
                )

    def _check_stages(self) -> None:
        stages, before = self.stages, 0
        if stages is None:
            return
        if not stages or stages[0].bp == FULL_BP:
            raise FieldError("stages", "has no stage below 100 %, the promotion; give one, or leave it out")
        for index, stage in enumerate(stages):
            path, weight = f"stages.{index}.weight", percent(stage.bp)
            if stage.bp <= before:
                raise FieldError(path, f"{weight} is not above {percent(before)}, the stage before; raise it")
            if stage.bp == FULL_BP and index < len(stages) - 1:
                raise FieldError(path, f"{weight} must be the last stage; it is the promotion itself")
            if FULL_BP > stage.bp >= FULL_BP - self.holdback:
                top = percent(FULL_BP - self.holdback)
                raise FieldError(path, f"{weight} reaches the bake's weight, {top}; lower it, or holdback")
            before = stage.bp

    def _check_margins(self) -> None:
        preset = {gate.name for gate in self._base().gates}
        known = sorted(preset | {name for name, gate in self.gates.items() if gate is not None})
        places = [(f"rungs.{n}", rung.margins) for n, rung in enumerate(self.rungs or ())]
        places += [(f"stages.{n}", stage.margins or {}) for n, stage in enumerate(self.stages or ())]
        for path, margins in places:
            for name in margins:
                if name not in known:
                    raise FieldError(f"{path}.margins.{name}", f"is not a gate; {suggestion(name, known)}")
        for index, (before, rung) in enumerate(pairwise(self.rungs or ()), start=1):
            if rung.min_canary <= before.min_canary:
                raise FieldError(
                    f"rungs.{index}.min_canary",
                    f"{rung.min_canary} is not above {before.min_canary}, the rung before; raise it",
                )

    def _base(self) -> GatePolicy:
        return GatePolicy.named("strict" if self.preset == "strict" else "default")

    def gate_policy(self) -> GatePolicy:
        """The evaluation's policy. Raises PolicyError."""
        base = self._base()
        raw: dict[str, object] = {
            "base": base.name,
            "name": base.name if self.name == "default" else self.name,
        }
        raw |= {key: getattr(self, key) for key in _GATE_POLICY_KEYS if getattr(self, key) is not None}
        if self.session is not None:
            raw["session_s"] = self.session
        if self.rungs is not None:
            raw["rungs"] = [rung.model_dump() for rung in self.rungs]
        if self.gates:
            raw["gates"] = {
                name: change.to_mapping() if change is not None else None
                for name, change in self.gates.items()
            }
        if self.observed_ranges:
            raw["observed_ranges"] = {
                name: given.model_dump(exclude_none=True) for name, given in self.observed_ranges.items()
            }
        return gate_policy_of(raw)


def suggestion(name: str, known: Collection[str]) -> str:
    """The remedy for an unknown name: the near one, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"


def _check_gates(policy: GatePolicy) -> None:
    """Raises FieldError for a combination of keys that cannot hold."""
    first_of_metric: dict[str, Gate] = {}
    for gate in policy.gates:
        sampling = f"gates.{gate.name}.sampling"
        if gate.sampling != Sampling() and not CATALOGUE[gate.metric].arrives_later:
            raise FieldError(
                sampling, f"is for judged metrics; {gate.metric} comes with every request; leave it out"
            )
        other = first_of_metric.setdefault(gate.metric, gate)
        if other.sampling != gate.sampling:
            raise FieldError(
                sampling,
                f"differs from that of gates.{other.name}, and both test {gate.metric}; give both the same",
            )
        if gate.mirrored and gate.metric in VALUES:
            raise FieldError(
                f"gates.{gate.name}.mirrored",
                f"is for rates and scores; a mirrored answer's {gate.metric} is never gated; leave it out",
            )
