"""Policy of a rollout, as users write it: gates, stages, timeouts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from controller.quantities import FULL_BP, duration, percent, shown
from controller.spec.contradictions import contradictions, gate_contradictions
from controller.spec.fields import Duration, FieldError, Strict, Weight, is_stored, refuse
from controller.spec.policy_parts import (
    GateSpec,
    MirrorSpec,
    ObservedRangeSpec,
    PreflightSpec,
    RungSpec,
    StageSpec,
    gate_errors,
    suggestion,
)
from evaluation.metrics import CATALOGUE
from evaluation.policy.gates import check_margins
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError

MAX_STAGES = 50
MAX_NAME = 100  # characters of the names of a policy and of its gates
_OWN_KEYS = ("metric", "kind", "threshold")
# Keys of a stage that other rules are about: without one, they cannot be looked at.
_RULED = frozenset({"weight", "weight_bp", "margins", "min_canary", "duration", "audience_bp"})
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

MAX_GATES = 40  # each costs up to 40 us of CPU for every request in the controller's tick


class PolicySpec(Strict):
    """Policy of a rollout: its gates, stages and timeouts."""

    ALIASES: ClassVar[Mapping[str, str]] = {"base": "preset", "session_s": "session"}
    LIMITS: ClassVar[Mapping[str, int]] = {"gates": MAX_GATES, "observed_ranges": MAX_GATES}

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
    mirror: MirrorSpec | None = Field(
        default=None, description="copies of stable's requests to the canary before the first stage"
    )
    preflight: PreflightSpec | None = Field(
        default=None, description="smoke cases and a golden set before the canary gets a user"
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
    def _check(self, info: ValidationInfo) -> Self:
        is_new = not is_stored(info)
        refuse(chain(self._newer_errors() if is_new else (), self._errors(is_new=is_new)))
        return self

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without a gate, its margins cannot be judged, nor without the holdback the highest weight.

        Of a stage, a key that no other rule is about goes alone, so that its margins are still looked at.
        """
        given = [path.split(".") for path in paths]
        gates = {keys[1] for keys in given if keys[0] == "gates" and len(keys) > 1}
        alone = [keys for keys in given if _goes_alone(data, keys)]
        others = {keys[0] for keys in given if (keys[0] != "gates" or len(keys) == 1) and keys not in alone}
        data = _without_keys(data, alone)
        if "holdback" in others:
            others.add("stages")
        rest = super().without(data, others)
        return _without_gates(rest, gates) if gates else rest

    def _newer_errors(self) -> Iterator[FieldError]:
        """Limits that would be over before they begin, and a ladder that another key replaces; not asked of a
        stored policy."""
        # Every commit of a rollout writes its stages, and terminals show the names as they are.
        if len(self.stages or ()) > MAX_STAGES:
            yield FieldError("stages", f"are {len(self.stages or ())}, at most {MAX_STAGES}; leave some out")
        for what, name in (("name", self.name), *(("gates", name) for name in self.gates)):
            if not name.isprintable() or len(name) > MAX_NAME:
                yield FieldError(
                    what, f"{shown(name)} is not one printable line of up to {MAX_NAME} characters; rename it"
                )
        for name in _LIMITS:
            if getattr(self, name) <= 0:
                default = duration(type(self).model_fields[name].default).replace(" ", "")
                yield FieldError(name, f"is 0 s, over before it begins; give some, such as {default}")
        for index, stage in enumerate(self.stages or ()):
            if stage.deadline is not None and stage.deadline <= 0:
                yield FieldError(f"stages.{index}.deadline", "is 0 s, over before it begins; raise it")
        if self.ladder == "full" and (self.preset == "vendor" or self.stages is not None):
            other = "stages" if self.stages is not None else "preset vendor"
            yield FieldError("ladder", f"full has no effect: {other} gives the weights; leave one out")
        yield from contradictions(self)

    def _errors(self, *, is_new: bool) -> Iterator[FieldError]:
        """Each broken rule on several keys."""
        if self.holdback > FULL_BP // 2:
            yield FieldError(
                "holdback", f"{percent(self.holdback)} exceeds 50 %; leave most to the promoted version"
            )
        yield from self._stage_errors()
        points = [self.promote_if_point_ok, *(stage.promote_if_point_ok for stage in self.stages or ())]
        if self.twin and any(points):
            yield FieldError(
                "promote_if_point_ok", "cannot be combined with twin, which times the proofs; leave one out"
            )
        by_name = [*self._margin_errors(), *self._gate_name_errors()]
        yield from by_name or self._gate_errors(is_new=is_new)

    def _gate_errors(self, *, is_new: bool) -> Iterator[FieldError]:
        """What the evaluation refuses of the gates and of the stages' margins."""
        try:
            gates = self.gate_policy()
        except PolicyError as exc:
            yield _as_field_error(exc)
            return
        for index, stage in enumerate(self.stages or ()):
            try:
                check_margins(f"stages.{index}.margins", stage.margins or {}, gates.gate_kinds())
            except PolicyError as exc:
                yield _as_field_error(exc)
        yield from gate_errors(gates)
        if is_new:
            yield from gate_contradictions(self, gates)

    def _gate_name_errors(self) -> Iterator[FieldError]:
        """A gate that no preset has and that says not what it is: most likely a typo."""
        preset = [gate.name for gate in self._base().gates]
        if "" in self.gates:
            yield FieldError("gates", "has an empty name; name each gate, as error")
        for name, gate in self.gates.items():
            if not name:
                continue
            if gate is not None and gate.metric is not None and gate.metric not in CATALOGUE:
                yield FieldError(
                    f"gates.{name}.metric",
                    f"{gate.metric!r} is unknown; {suggestion(gate.metric, CATALOGUE)}",
                )
                continue
            is_own = gate is not None and None not in (gate.metric, gate.kind, gate.threshold)
            if name not in preset and not is_own:
                what = (
                    "null removes a gate of the preset"
                    if gate is None
                    else "a gate of its own needs all three"
                )
                given = [] if gate is None else [key for key in _OWN_KEYS if getattr(gate, key) is None]
                lacks = f"lacks {' and '.join(given)}: {what}" if given else what
                yield FieldError(
                    f"gates.{name}", f"is no gate of the preset, {lacks}; {suggestion(name, preset)}"
                )

    def _stage_errors(self) -> Iterator[FieldError]:
        stages, before = self.stages, 0
        if stages is None:
            return
        if not stages or stages[0].bp == FULL_BP:
            yield FieldError("stages", "has no stage below 100 %, the promotion; give one, or leave it out")
            return
        for index, stage in enumerate(stages):
            path, weight = f"stages.{index}.weight", percent(stage.bp)
            if stage.bp <= before:
                yield FieldError(path, f"{weight} is not above {percent(before)}, the stage before; raise it")
            elif stage.bp == FULL_BP and index < len(stages) - 1:
                yield FieldError(path, f"{weight} must be the last stage; it is the promotion itself")
                break
            elif FULL_BP > stage.bp >= FULL_BP - self.holdback:
                top = percent(FULL_BP - self.holdback)
                yield FieldError(path, f"{weight} reaches the bake's weight, {top}; lower it, or holdback")
            before = stage.bp
        weights: dict[str, int] = {}
        for index, stage in enumerate(stages):
            for audience, bp in stage.audience_bp.items():
                if bp < weights.get(audience, 0):
                    yield FieldError(
                        f"stages.{index}.audience_bp.{audience}",
                        f"{bp} is below {weights[audience]}, of a stage before; raise it, or leave it out",
                    )
                weights[audience] = bp

    def _margin_errors(self) -> Iterator[FieldError]:
        preset = {gate.name for gate in self._base().gates}
        known = sorted(preset | {name for name, gate in self.gates.items() if gate is not None})
        places = [(f"rungs.{n}", rung.margins) for n, rung in enumerate(self.rungs or ())]
        places += [(f"stages.{n}", stage.margins or {}) for n, stage in enumerate(self.stages or ())]
        for path, margins in places:
            for name in margins:
                if name not in known:
                    yield FieldError(f"{path}.margins.{name}", f"is not a gate; {suggestion(name, known)}")
        for index, (before, rung) in enumerate(pairwise(self.rungs or ()), start=1):
            if rung.min_canary <= before.min_canary:
                yield FieldError(
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


def _as_field_error(error: PolicyError) -> FieldError:
    """The evaluation's error, whose message begins with the path."""
    return FieldError(*str(error).split(" ", 1))


def _goes_alone(data: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether a key (`stages`, index, key) can be left out of its stage, which stays one."""
    if len(keys) != 3 or keys[0] != "stages" or keys[2] in _RULED or not keys[1].isdigit():
        return False
    stages = data.get("stages")
    entry = stages[int(keys[1])] if isinstance(stages, list | tuple) else None
    return isinstance(entry, Mapping) and not {"weight", "weight_bp"}.isdisjoint(entry)


def _without_keys(data: Mapping[str, Any], paths: Collection[Sequence[str]]) -> Mapping[str, Any]:
    """The policy without these keys (`stages`, index, key) of its stages."""
    stages = data.get("stages")
    if not paths or not isinstance(stages, list | tuple):
        return data
    gone = {(index, key) for _, index, key in paths}
    return {
        **data,
        "stages": [
            {key: value for key, value in entry.items() if (str(index), key) not in gone}
            if isinstance(entry, Mapping)
            else entry
            for index, entry in enumerate(stages)
        ],
    }


def _without_gates(data: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The policy without these gates, one of a preset as null, and without their margins."""
    preset = {gate.name for gate in GatePolicy.named("default").gates}
    gates = data.get("gates")
    if isinstance(gates, Mapping):
        kept = {name: gate for name, gate in gates.items() if name not in names}
        data = {**data, "gates": kept | dict.fromkeys(preset.intersection(names))}
    for key in ("stages", "rungs"):
        entries = data.get(key)
        if isinstance(entries, list | tuple):
            data = {**data, key: [_without_margins(entry, names) for entry in entries]}
    return data


def _without_margins(entry: object, names: Collection[str]) -> object:
    margins = entry.get("margins") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(margins, Mapping):
        return entry
    return {**entry, "margins": {name: value for name, value in margins.items() if name not in names}}
