"""Settings of a policy that contradict each other, or of which one has no effect beside the other.

Each is a line of its own: value, limit, remedy. None is asked of a policy that the store holds: it was
accepted once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

from controller.quantities import FULL_BP, NEVER_CANARY, duration, percent
from controller.spec.fields import FieldError
from controller.spec.policy_parts import ObservedRangeSpec, StageSpec
from evaluation.metrics import Kind
from evaluation.policy.gates import PRESET_KINDS
from evaluation.policy.policy import GatePolicy

if TYPE_CHECKING:
    from controller.spec.policy import PolicySpec

MAX_REQUESTS_PER_S = 10_000  # of one service: above any traffic of an LLM


def contradictions(policy: PolicySpec) -> Iterator[FieldError]:
    """An error for each contradiction that needs no reading of the gates."""
    for index, stage in enumerate(policy.stages or ()):
        yield from _stage_errors(f"stages.{index}", stage, policy)
    yield from _removed_gates(policy)
    yield from _rung_errors(policy)
    yield from _replaced(policy)
    mirror = policy.mirror
    if mirror is not None and mirror.share > 0 and mirror.deadline > 0:
        yield from _too_many("mirror.min_pairs", mirror.min_pairs, mirror.share, mirror.deadline)
    for name, given in policy.observed_ranges.items():
        since, until = _time_s(given.since), _time_s(given.until)
        if since is not None and until is not None and until <= since:
            yield FieldError(
                f"observed_ranges.{name}.until", f"{given.until} is not after since, {given.since}; swap them"
            )
    yield from _range_errors(policy)


def gate_contradictions(policy: PolicySpec, gates: GatePolicy) -> Iterator[FieldError]:
    """An error for each contradiction among the gates. gates: those of the policy."""
    kinds = gates.gate_kinds()
    for index, stage in enumerate(policy.stages or ()):
        has_rate = any(kinds.get(name) is Kind.RATE for name in stage.margins or ())
        if stage.floor is not None and stage.margins is not None and stage.bp < FULL_BP and not has_rate:
            yield FieldError(
                f"stages.{index}.floor",
                f"{stage.floor:g} has no effect: margins has no rate; leave it out, or give one, such as "
                "error",
            )
    deciding = [gate for gate in gates.gates if not gate.is_alarm]
    decided = {gate.metric for gate in deciding}
    for gate in gates.gates:
        given = policy.gates.get(gate.name)
        if given is not None and given.required and gate.is_alarm and gate.metric not in decided:
            yield FieldError(
                f"gates.{gate.name}.required",
                "true has no effect: alpha_share 0 makes the gate an alarm, which decides nothing; give it a "
                "share, or leave required out",
            )
    first: dict[object, str] = {}
    for gate in deciding:
        other = first.setdefault(
            (gate.metric, gate.kind, gate.percentile, gate.threshold, gate.tolerance), gate.name
        )
        if other != gate.name:
            yield FieldError(
                f"gates.{gate.name}",
                f"tests the same as gates.{other}: {gate.metric} by {gate.kind}, threshold "
                f"{gate.threshold:g}; leave one out",
            )


def _stage_errors(path: str, stage: StageSpec, policy: PolicySpec) -> Iterator[FieldError]:
    if stage.bp == FULL_BP:
        yield from _promotion_errors(path, stage, policy)
        return
    if stage.deadline:
        yield from _too_many(f"{path}.min_canary", stage.min_canary, stage.bp, stage.deadline)
    for audience, bp in stage.audience_bp.items():
        if bp < stage.bp:
            yield FieldError(
                f"{path}.audience_bp.{audience}",
                f"{bp} has no effect: it is below {stage.bp}, the stage's weight; raise it, or leave it out",
            )


def _promotion_errors(path: str, stage: StageSpec, policy: PolicySpec) -> Iterator[FieldError]:
    """What the stage at 100 %, which is the promotion, cannot have."""
    given = {
        "min_canary": stage.min_canary > 0,
        "margins": bool(stage.margins),
        "floor": stage.floor is not None,
        "deadline": stage.deadline is not None,
        "on_missing": stage.on_missing != "hold",
    }
    for key in (key for key, is_given in given.items() if is_given):
        yield FieldError(f"{path}.{key}", "is for stages below 100 %, the promotion itself; leave it out")
    default = type(policy).model_fields["bake"].default
    if stage.duration > 0 and policy.bake not in (default, stage.duration):
        yield FieldError(
            "bake",
            f"{duration(policy.bake)} contradicts {path}.duration, {duration(stage.duration)}, which is the "
            "bake's at 100 %; leave one out",
        )


def _too_many(path: str, count: int, weight_bp: int, deadline_s: float) -> Iterator[FieldError]:
    """A count of requests that no traffic brings within a deadline."""
    needed = count * FULL_BP / (weight_bp * deadline_s) if weight_bp > 0 else 0.0
    if needed > MAX_REQUESTS_PER_S and count < NEVER_CANARY:
        yield FieldError(
            path,
            f"{count} at {percent(weight_bp)} within the deadline, {duration(deadline_s)}, needs "
            f"{needed:.0f} requests/s, limit {MAX_REQUESTS_PER_S}; lower it, or raise the deadline",
        )


def _removed_gates(policy: PolicySpec) -> Iterator[FieldError]:
    removed = {name for name, gate in policy.gates.items() if gate is None}
    places = chain(
        ((f"stages.{n}.margins", stage.margins or {}) for n, stage in enumerate(policy.stages or ())),
        ((f"rungs.{n}.margins", rung.margins) for n, rung in enumerate(policy.rungs or ())),
        ((f"rungs.{n}.own", rung.own) for n, rung in enumerate(policy.rungs or ())),
    )
    for path, margins in places:
        for name in removed.intersection(margins, PRESET_KINDS):
            yield FieldError(
                f"{path}.{name}", f"proves a gate that gates.{name}: null removes; leave one of both out"
            )


def _rung_errors(policy: PolicySpec) -> Iterator[FieldError]:
    for index, rung in enumerate(policy.rungs or ()):
        for name, own in rung.own.items():
            whole = rung.margins.get(name)
            if whole is not None and own < whole:
                yield FieldError(
                    f"rungs.{index}.own.{name}",
                    f"{own:g} is below {whole:g}, the margin of the whole rollout; own ones are wider: raise "
                    "it",
                )


def _replaced(policy: PolicySpec) -> Iterator[FieldError]:
    """Keys that another one replaces."""
    if policy.preset == "vendor" and policy.stages is not None:
        yield FieldError("preset", "vendor has no effect: stages gives the weights; leave one out")


def _range_errors(policy: PolicySpec) -> Iterator[FieldError]:
    """Ranges that no distribution has: a percentile is never below a lower one."""
    lows: dict[str, list[tuple[float, float, str]]] = {}  # by metric: percentile, low, where
    highs: dict[str, list[tuple[float, float, str]]] = {}
    for name, given in policy.observed_ranges.items():
        for key, share, low, high in _percentiles(given):
            path = f"observed_ranges.{name}.ranges.{key}"
            highs.setdefault(given.metric, []).append((share, high, path))
            if given.sides == "both":
                lows.setdefault(given.metric, []).append((share, low, path))
    for metric, found in highs.items():
        for share, high, path in found:
            above = [one for one in lows.get(metric, ()) if one[0] <= share and one[1] > high]
            if above:
                _, low, other = max(above, key=lambda one: one[1])
                yield FieldError(
                    path,
                    f"ends at {high:g}, below {low:g}, where {other} begins; no {metric} can be in both: "
                    "correct one",
                )


def _percentiles(given: ObservedRangeSpec) -> Iterator[tuple[str, float, float, float]]:
    """Key, percentile (0-100), low and high of each range that can be read."""
    for key, (low, high) in given.ranges.items():
        try:
            yield key, float(key.removeprefix("p")), low, high
        except ValueError:
            continue  # refused by the evaluation, with the key


def _time_s(text: str | None) -> float | None:
    """Seconds since 1970 of a date or a number; None: not given, or free text."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
