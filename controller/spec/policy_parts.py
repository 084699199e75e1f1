"""Parts of a policy, as users write them: gates, observed ranges, stages, rungs; and how gates combine."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from datetime import date
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from controller.quantities import FULL_BP
from controller.spec.fields import Duration, FieldError, Strict, Weight, refuse
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.policy.gates import Gate, Sampling
from evaluation.policy.observed_ranges import ALPHA_SHARE
from evaluation.policy.policy import GatePolicy
from serving.files.client_rules import Bp, Label

# Kinds of shipped smoke cases (`Kind` of serving/judging/smoke_cases.py, which loads an HTTP client).
PreflightKind = Literal["chat", "long", "json", "tools", "stop", "safety", "stream"]


class SamplingSpec(Strict):
    """Share of each arm's answers that is judged, decided before the answer exists."""

    stable: float = Field(default=1.0, description="share of stable's answers, 0.2 for one in five")
    canary: float = Field(default=1.0, description="share of the canary's answers")


class GateSpec(Strict):
    """Changes to one gate of the preset, or a gate of its own (that needs metric, kind, threshold)."""

    ALIASES: ClassVar[Mapping[str, str]] = {"deadline_s": "deadline"}

    metric: str | None = Field(default=None, description="name of the metric in the catalogue")
    kind: Literal["rate", "score", "shape", "percentile", "mean"] | None = Field(
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


class MirrorSpec(Strict):
    """Copies of stable's requests to the canary before the first stage; nobody is shown their answers."""

    share: Weight = Field(default=200, description="share of stable's requests that are copied")
    min_pairs: int = Field(
        default=200,
        ge=1,
        le=1_000_000,
        description="requests that both arms must have answered; with a judge: that it must have judged",
    )
    deadline: Duration = Field(
        default=3600.0,
        description="time after which the first stage begins anyway; held where only a judge's verdicts lack",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.share == 0:
            raise FieldError("share", "0 % copies nothing; give a share above 0, or leave mirror out")
        if self.deadline <= 0:
            raise FieldError("deadline", "is 0 s, over before it begins; give some, such as 1h")
        return self


class PreflightSpec(Strict):
    """What the canary is asked before it gets a user: shipped smoke cases, and a golden set of one's own."""

    smoke: bool = Field(default=True, description="the shipped cases, beside stable")
    golden: str | None = Field(
        default=None, min_length=1, description="golden set, JSON lines; a path on the controller's host"
    )
    require: tuple[PreflightKind, ...] = Field(
        default=(), description="kinds that the canary must pass, whatever stable does"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.smoke and self.golden is None:
            raise FieldError("smoke", "false without golden checks nothing; leave preflight out")
        if not self.smoke and self.require:
            raise FieldError("require", "names kinds of smoke, which is false; leave one out")
        return self


class StageSpec(Strict):
    """One stage. 100 % is the promotion itself; its duration is the bake's."""

    weight: Weight | None = None
    weight_bp: int | None = Field(default=None, ge=1, le=FULL_BP)
    audience_bp: dict[Label, Bp] = Field(
        default_factory=dict,
        description="weights of audiences, by name, beside `weight`; later stages keep them",
    )
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
        default=None, ge=0, lt=1, description="a rate below stable's plus this passes, too; default: by rung"
    )
    promote_if_point_ok: bool | None = Field(
        default=None,
        description="unproven at the deadline: go on if the point estimates are within the margins",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(self._errors())
        return self

    def _errors(self) -> Iterator[ValueError]:
        if (self.weight is None) == (self.weight_bp is None):
            yield ValueError("needs exactly one of weight (2.5%) and weight_bp (250)")
            return
        if self.bp == 0:
            yield FieldError("weight", "0 % gives the canary no traffic; start at 0.01% or above")
        if self.deadline is not None and self.deadline < self.duration:
            yield FieldError(
                "deadline", f"{self.deadline:g} s is before duration {self.duration:g} s; raise it"
            )
        if self.audience_bp and self.bp == FULL_BP:
            yield FieldError("audience_bp", "is for stages below 100 %, which all clients get; leave it out")
        if self.promote_if_point_ok:
            if self.bp == FULL_BP:
                yield FieldError("promote_if_point_ok", "is for stages below 100 %; leave it out")
            elif self.margins == {}:
                yield FieldError("promote_if_point_ok", "needs margins to compare estimates with; give some")

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
    floor: float = Field(default=0.005, ge=0, lt=1, description="a rate below stable's plus this passes, too")
    own: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="wider margins that the stage's own units prove, where `margins` is of the whole rollout",
    )


def suggestion(name: str, known: Collection[str]) -> str:
    """The remedy for an unknown name: the near one, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"


def gate_errors(policy: GatePolicy) -> Iterator[FieldError]:
    """An error for each combination of a gate's keys that cannot hold."""
    first_of_metric: dict[str, Gate] = {}
    for gate in policy.gates:
        sampling = f"gates.{gate.name}.sampling"
        if gate.sampling != Sampling() and not CATALOGUE[gate.metric].arrives_later:
            yield FieldError(
                sampling, f"is for judged metrics; {gate.metric} comes with every request; leave it out"
            )
            continue
        other = first_of_metric.setdefault(gate.metric, gate)
        if other.sampling != gate.sampling:
            yield FieldError(
                sampling,
                f"differs from that of gates.{other.name}, and both test {gate.metric}; give both the same",
            )
        if gate.mirrored and gate.metric in VALUES:
            yield FieldError(
                f"gates.{gate.name}.mirrored",
                f"is for rates and scores; a mirrored answer's {gate.metric} is never gated; leave it out",
            )
