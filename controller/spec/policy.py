"""The policy of a rollout as people write it: what is gated, on which ladder, how long it may wait."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from controller.quantities import FULL_BP, percent
from controller.spec.fields import Duration, Strict, Weight
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.policy.gates import Gate, Sampling, check_margins
from evaluation.policy.observed_ranges import ALPHA_SHARE
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError


class SamplingSpec(Strict):
    """How many of an arm's answers are judged, decided before the answer exists."""

    stable: float = Field(default=1.0, description="share of stable's answers, 0.2 for one in five")
    canary: float = Field(default=1.0, description="share of the canary's answers")


class GateSpec(Strict):
    """Changes to one gate of the preset, or a gate of its own (that needs metric, kind, threshold)."""

    ALSO: ClassVar[Mapping[str, str]] = {"deadline_s": "deadline"}

    metric: str | None = Field(default=None, description="what is measured, by its name in the catalogue")
    kind: Literal["rate", "score", "shape", "percentile"] | None = Field(
        default=None, description="how it is tested"
    )
    alpha_share: float | None = Field(
        default=None, description="its part of alpha; 0 makes it an alarm, shown and never deciding"
    )
    threshold: float | None = Field(default=None, description="the harm that must be detected")
    tolerance: float | None = Field(
        default=None,
        description="the harm that must not roll back; default: half of the threshold, strict: 0",
    )
    percentile: float | None = Field(default=None, description="0.99; of a percentile gate alone")
    deadline: Duration | None = Field(default=None, description="how long a score may come after its request")
    sampling: SamplingSpec | None = Field(default=None, description="where only some answers are judged")
    presence_gated: bool | None = Field(
        default=None, description="whether a value comes at all is itself an outcome, as with thumbs"
    )
    mirrored: bool | None = Field(
        default=None, description="keeps a quarter of the gate's alpha for mirrored pairs"
    )

    def to_mapping(self) -> dict[str, object]:
        """In the words of `parse_gate_policy`."""
        given = self.model_dump(exclude_none=True)
        if "deadline" in given:
            given["deadline_s"] = given.pop("deadline")
        return given


def _dated(value: object) -> object:
    """A date of YAML as text."""
    return value.isoformat() if isinstance(value, date) else value


When = Annotated[str, BeforeValidator(_dated)]


class ObservedRangeSpec(Strict):
    """The canary's percentiles inside what stable showed between two dates; `canaryctl observed` writes it.

    The range is fixed: what both versions share, as the time of day, does not cancel against it.
    """

    metric: str = Field(description="what is measured: latency_ms, ttft_ms, itl_ms, tokens or cost")
    ranges: dict[str, tuple[float, float]] = Field(
        description="lowest and highest value that stable's percentile took, as p95: [300, 420]"
    )
    alpha_share: float = Field(
        default=ALPHA_SHARE, description="its part of alpha, evenly by percentile and side"
    )
    on_outside: Literal["hold", "rollback"] = Field(
        default="hold", description="hold: the stage is INVALID while the canary is outside"
    )
    sides: Literal["both", "above"] = Field(
        default="both", description="above: what is below the range is inside, too"
    )
    since: When | None = Field(default=None, description="begin of what stable showed; shown, never read")
    until: When | None = Field(default=None, description="its end")


class StageSpec(Strict):
    """One rung. 100 % is the promotion itself; its duration is the bake's."""

    weight: Weight | None = None
    weight_bp: int | None = Field(default=None, ge=1, le=FULL_BP)
    duration: Duration = 0.0
    min_canary: int = Field(
        default=0, ge=0, description="canary requests that must have settled in this stage"
    )
    deadline: Duration | None = Field(default=None, description="default: three times what is planned")
    on_missing: Literal["hold", "rollback"] = "hold"
    margins: dict[str, float] | None = Field(
        None, description="what must be proven, by gate; default: by min_canary"
    )
    floor: float | None = Field(
        default=None, ge=0, le=1, description="a rate below stable plus this passes, too; default: the rung's"
    )
    promote_if_point_ok: bool | None = Field(
        default=None,
        description="at the deadline, unproven: go on if the point estimates are within the margins",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.weight is None) == (self.weight_bp is None):
            raise ValueError("needs exactly one of weight (2.5%) and weight_bp (250)")
        if self.bp == 0:
            raise ValueError(
                "weight 0 % gives the canary nothing to prove itself on; start at 0.01% or above"
            )
        if self.deadline is not None and self.deadline < self.duration:
            raise ValueError(f"deadline {self.deadline:g} s is before duration {self.duration:g} s; raise it")
        if self.promote_if_point_ok:
            self._check_points()
        return self

    def _check_points(self) -> None:
        if self.bp == FULL_BP:
            raise ValueError("promote_if_point_ok is of a stage below 100 %; leave it out")
        if self.margins == {}:
            raise ValueError("promote_if_point_ok needs margins to hold the estimates against; give some")

    @property
    def bp(self) -> int:
        return (self.weight if self.weight is not None else self.weight_bp) or 0


class RungSpec(Strict):
    """What a stage of at least `min_canary` canary requests has to prove, where the stage does not say."""

    min_canary: int = Field(default=0, ge=0)
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="by gate: a ratio for rates and latency, a loss for scores"
    )
    floor: float = Field(default=0.005, ge=0, le=1, description="a rate below stable plus this passes, too")


# Keys that the evaluation has under the same name.
_SAME = (
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
    """How a rollout goes: what is gated, on which ladder, how long it may wait."""

    ALSO: ClassVar[Mapping[str, str]] = {"base": "preset", "session_s": "session"}

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
        default=None, description="false rollbacks, over the whole rollout; default 0.01"
    )
    promotion_alpha: float | None = Field(
        default=None, description="false proofs, of each gate of a stage; default 0.045"
    )
    gates: dict[str, GateSpec | None] = Field(
        default_factory=dict, description="null takes a gate of the preset out"
    )
    observed_ranges: dict[str, ObservedRangeSpec] = Field(
        default_factory=dict, description="gates against fixed ranges that stable showed, by name"
    )
    units: Literal["auto", "request", "sticky"] | None = Field(
        default=None, description="what the coin is tossed for; default auto: as the traffic shows"
    )
    proof_canary: int | None = Field(
        default=None, ge=0, description="canary requests before a proof is looked at; default 100"
    )
    rungs: tuple[RungSpec, ...] | None = Field(
        default=None, description="what stages must prove, by their min_canary; the first has 0"
    )
    promote_if_point_ok: bool = Field(
        default=False, description="of every stage that does not say; recorded as not proven"
    )
    session_requests: int | None = Field(
        default=None, description="a sticky unit's session closes after so many; default 10"
    )
    session: Duration | None = Field(
        default=None, description="... or after this long since its first request; default 10m"
    )
    restart_share: float | None = Field(
        default=None, description="of the bets, kept for harm that begins late; default 0.3"
    )
    max_missing: float | None = Field(
        default=None, description="a larger share of missing values is INVALID; default 0.1"
    )
    load_ratio: float | None = Field(
        default=None,
        description="load a replica, one arm's over the other's, up to which latency compares; default 1.25",
    )
    served_share_alpha: float | None = Field(
        default=None, description="of the test that units fit their weight; default 0.001"
    )
    served_rate_hold: float | None = Field(
        default=None, description="canary requests that it must serve itself; default 0.98"
    )
    served_rate_rollback: float | None = Field(
        default=None, description="below it is rolled back; default 0.9"
    )
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
    def _check(self) -> Self:
        if self.holdback > FULL_BP // 2:
            raise ValueError(
                f"holdback {percent(self.holdback)} exceeds 50 %; the promoted version must carry most"
            )
        self._check_stages()
        self._check_rungs()
        self._check_twin()
        try:
            gates = self.gate_policy()
            for index, stage in enumerate(self.stages or ()):
                check_margins(f"stages.{index}.margins", stage.margins or {}, gates.gate_kinds())
        except PolicyError as exc:
            raise ValueError(str(exc)) from exc
        _check_gates(gates)
        return self

    def _check_twin(self) -> None:
        points = self.promote_if_point_ok or any(stage.promote_if_point_ok for stage in self.stages or ())
        if self.twin and points:
            raise ValueError(
                "promote_if_point_ok does not go with twin, which times the proofs; leave one out"
            )

    def _check_stages(self) -> None:
        if self.stages is None:
            return
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage below 100 %, or leave it out")
        before = 0
        for index, stage in enumerate(self.stages):
            at, last = f"stages.{index}.weight {percent(stage.bp)}", index == len(self.stages) - 1
            if stage.bp <= before:
                raise ValueError(
                    f"{at} does not rise above the stage before it, {percent(before)}; raise or drop it"
                )
            if stage.bp == FULL_BP and not last:
                raise ValueError(f"{at} must be the last stage; it is the promotion itself")
            if stage.bp != FULL_BP and stage.bp >= FULL_BP - self.holdback:
                top = percent(FULL_BP - self.holdback)
                raise ValueError(f"{at} reaches the bake's share, {top}; lower it, or lower holdback")
            before = stage.bp
        if self.stages[0].bp == FULL_BP:
            raise ValueError("stages has only 100 %, which proves nothing first; put a stage below it before")

    def _check_rungs(self) -> None:
        preset = {gate.name for gate in self._base().gates}
        known = sorted(preset | {name for name, gate in self.gates.items() if gate is not None})
        places = [(f"rungs.{n}", rung.margins) for n, rung in enumerate(self.rungs or ())]
        places += [(f"stages.{n}", stage.margins or {}) for n, stage in enumerate(self.stages or ())]
        for at, margins in places:
            for name in margins:
                if name not in known:
                    raise ValueError(f"{at}.margins.{name} is no gate; use one of {', '.join(known)}")
        for index, (before, rung) in enumerate(pairwise(self.rungs or ()), start=1):
            if rung.min_canary <= before.min_canary:
                raise ValueError(
                    f"rungs.{index}.min_canary {rung.min_canary} does not rise above the rung before it, "
                    f"{before.min_canary}; raise or drop it"
                )

    def _base(self) -> GatePolicy:
        return GatePolicy.named("strict" if self.preset == "strict" else "default")

    def gate_policy(self) -> GatePolicy:
        """What the evidence is judged by. Raises PolicyError."""
        base = self._base()
        raw: dict[str, object] = {
            "base": base.name,
            "name": base.name if self.name == "default" else self.name,
        }
        raw |= {key: getattr(self, key) for key in _SAME if getattr(self, key) is not None}
        if self.session is not None:
            raw["session_s"] = self.session
        if self.rungs is not None:
            raw["rungs"] = [rung.model_dump() for rung in self.rungs]
        gates: dict[str, object] = {gate.name: {} for gate in base.gates}
        for name, change in self.gates.items():
            if change is not None:
                gates[name] = change.to_mapping()
            elif name in gates:
                del gates[name]
            else:
                raise PolicyError(f"gates.{name} is null but unknown; known: {', '.join(sorted(gates))}")
        if self.gates:
            raw["gates"] = gates
        if self.observed_ranges:
            raw["observed_ranges"] = {
                name: given.model_dump(exclude_none=True) for name, given in self.observed_ranges.items()
            }
        return parse_gate_policy(raw)


def _check_gates(policy: GatePolicy) -> None:
    """What the keys say together. Raises ValueError."""
    sampled: dict[str, Gate] = {}
    for gate in policy.gates:
        at = f"gates.{gate.name}"
        if gate.sampling != Sampling() and not CATALOGUE[gate.metric].arrives_later:
            raise ValueError(
                f"{at}.sampling is for what is judged later; {gate.metric} comes with every request; "
                "leave it out"
            )
        other = sampled.setdefault(gate.metric, gate)
        if other.sampling != gate.sampling:
            raise ValueError(
                f"{at}.sampling differs from that of gates.{other.name}, and both ask about {gate.metric}; "
                "give both the same"
            )
        if gate.mirrored and gate.metric in VALUES:
            raise ValueError(
                f"{at}.mirrored is for rates and scores; a mirrored answer's {gate.metric} is never gated; "
                "leave it out"
            )
