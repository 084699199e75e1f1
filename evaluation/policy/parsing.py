"""What a policy and a plan may say: each value is checked when it is made, and refused by its key.

Invariant: nothing here decides; a policy that passes these rules is read as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from evaluation.metrics import CATALOGUE, VALUES, Kind

if TYPE_CHECKING:
    from evaluation.policy.policy import Gate, GatePolicy, Rung, StagePlan

MOST_RATIO = 1000.0
#: Gates that a rung may name although the policy has left them out, and how they are tested.
PRESET_KINDS: Mapping[str, Kind] = {
    "error": Kind.RATE,
    "latency_p99": Kind.PERCENTILE,
    "latency_shape": Kind.SHAPE,
    "ttft_shape": Kind.SHAPE,
    "quality": Kind.SCORE,
    "hallucination": Kind.RATE,
}


class PolicyError(ValueError):
    """A policy that cannot hold; the message names the key, the value, the limit and the remedy."""


def check_policy(policy: GatePolicy) -> None:
    """Raise PolicyError unless the policy can hold."""
    if not isinstance(policy.name, str) or not policy.name:
        raise PolicyError(f"name {policy.name!r} is no name; give text, as strict")
    for key in ("alpha", "promotion_alpha", "served_share_alpha"):
        _probability(key, getattr(policy, key), most=0.5)
    for key in ("served_rate_hold", "served_rate_rollback"):
        _probability(key, getattr(policy, key), most=1.0)
    if policy.served_rate_rollback > policy.served_rate_hold:
        raise PolicyError(
            f"served_rate_rollback {policy.served_rate_rollback} is above served_rate_hold "
            f"{policy.served_rate_hold}; use 0.90 and 0.98"
        )
    if not 0.0 <= number("restart_share", policy.restart_share) < 1.0:
        raise PolicyError(
            f"restart_share {policy.restart_share} is outside [0, 1); use 0.3, or 0 for no restarts"
        )
    if not 0.0 <= number("max_missing", policy.max_missing) <= 1.0:
        raise PolicyError(
            f"max_missing {policy.max_missing} is outside 0..1; it is a share of values, as 0.1"
        )
    if not number("load_ratio", policy.load_ratio) >= 1.0:
        raise PolicyError(f"load_ratio {policy.load_ratio} is below 1; use 1.25")
    if policy.units not in ("auto", "request", "sticky"):
        raise PolicyError(f"units {policy.units!r} is unknown; use auto, request or sticky")
    whole("proof_canary", policy.proof_canary, least=0)
    whole("session_requests", policy.session_requests, least=1)
    if number("session_s", policy.session_s) <= 0.0:
        raise PolicyError(f"session_s {policy.session_s} is not above 0; use 600")
    names = [gate.name for gate in policy.gates] + [gate.name for gate in policy.observed_ranges]
    if len(set(names)) != len(names):
        raise PolicyError(f"gates {names} repeat a name; give each gate its own")
    for gate in policy.gates:
        _check_gate(gate)
    shares = [gate.alpha_share for gate in policy.gates]
    shares += [gate.alpha_share for gate in policy.observed_ranges]
    total = math.fsum(shares)
    if total > 1.0 + 1e-9:
        which = "gates.*.alpha_share" + (
            " and observed_ranges.*.alpha_share" if policy.observed_ranges else ""
        )
        raise PolicyError(f"{which} add up to {total:g}, limit 1; lower them, they are parts of alpha")
    kinds = kinds_of(policy)
    for index, rung in enumerate(policy.rungs):
        _check_rung(f"rungs.{index}", rung, kinds)
    least = sorted(rung.min_canary for rung in policy.rungs)
    if not least or least[0] != 0:
        raise PolicyError("rungs must begin with min_canary 0; add the rung of the first stage")
    if len(set(least)) != len(least):
        raise PolicyError(f"rungs repeat a min_canary ({', '.join(map(str, least))}); give each its own")


def kinds_of(policy: GatePolicy) -> dict[str, Kind]:
    """How the gates are tested that a rung or a stage may name."""
    return {**PRESET_KINDS, **{gate.name: gate.kind for gate in policy.gates}}


def check_stages(stages: object, policy: GatePolicy) -> tuple[StagePlan, ...]:
    """The stages, checked against the policy whose gates they name. Errors: PolicyError."""
    from evaluation.policy.policy import StagePlan

    if not isinstance(stages, list | tuple) or not all(isinstance(stage, StagePlan) for stage in stages):
        raise PolicyError(f"stages {stages!r} is not a list of StagePlan; leave it out for one stage")
    if not stages:
        raise PolicyError("stages is empty; leave it out for one stage, or give the plan's")
    for index, stage in enumerate(stages):
        check_margins(f"stages.{index}.margins", stage.margins or {}, kinds_of(policy))
    return tuple(stages)


def check_stage(stage: StagePlan) -> None:
    """Raise PolicyError unless a stage can be run. Its gates are known to the policy alone."""
    if not 0.0 < number("weight", stage.weight) <= 1.0:
        raise PolicyError(f"weight {stage.weight} of a stage is outside (0, 1]; it is P(canary), as 0.05")
    whole("min_canary", stage.min_canary, least=0)
    if stage.floor is not None:
        _floor("floor", stage.floor)
    if number("warmup_s", stage.warmup_s) < 0.0:
        raise PolicyError(f"warmup_s {stage.warmup_s} of a stage is below 0; use 0 for none")
    if stage.margins is not None:
        for name, margin in mapping("margins", stage.margins).items():
            number(f"margins.{name}", margin)


def check_margins(at: str, margins: object, kinds: Mapping[str, Kind]) -> None:
    """Raise PolicyError unless each is a margin that its gate can prove."""
    for name, value in mapping(at, margins).items():
        kind = kinds.get(name)
        if kind is None:
            raise PolicyError(f"{at}.{name} names no gate; use one of {', '.join(kinds)}")
        margin = number(f"{at}.{name}", value)
        if kind is Kind.SCORE and not 0.0 < margin < 1.0:
            raise PolicyError(f"{at}.{name} {margin} is outside (0, 1); it is a loss of score, as 0.05")
        if kind is not Kind.SCORE and not 1.0 <= margin <= MOST_RATIO:
            raise PolicyError(f"{at}.{name} {margin} is outside 1..{MOST_RATIO:g}; it is a ratio, as 1.5")


def _check_rung(at: str, rung: Rung, kinds: Mapping[str, Kind]) -> None:
    whole(f"{at}.min_canary", rung.min_canary, least=0)
    check_margins(f"{at}.margins", rung.margins, kinds)
    _floor(f"{at}.floor", rung.floor)


def _check_gate(gate: Gate) -> None:
    if not isinstance(gate.name, str) or not gate.name:
        raise PolicyError(f"gate name {gate.name!r} is no name; give text, as error")
    at = f"gates.{gate.name}"
    if gate.metric not in CATALOGUE:
        raise PolicyError(
            f"{at}.metric {gate.metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}"
        )
    fitting = _kinds_for(gate.metric)
    if gate.kind not in fitting:
        raise PolicyError(f"{at}.kind {gate.kind} does not fit {gate.metric}; use {' or '.join(fitting)}")
    if not 0.0 <= number(f"{at}.alpha_share", gate.alpha_share) <= 1.0:
        raise PolicyError(f"{at}.alpha_share {gate.alpha_share} is outside 0..1; it is a part of alpha")
    if not number(f"{at}.threshold", gate.threshold) > 0.0:
        raise PolicyError(f"{at}.threshold {gate.threshold} is not above 0; say what harm must be detected")
    most = 1.0 if gate.kind is Kind.SCORE else MOST_RATIO
    if gate.threshold >= most:
        raise PolicyError(f"{at}.threshold {gate.threshold} is not below {most:g}; say what harm can happen")
    if not 0.0 <= number(f"{at}.tolerance", gate.tolerance) < gate.threshold:
        raise PolicyError(
            f"{at}.tolerance {gate.tolerance} is outside [0, threshold {gate.threshold}); use half of it"
        )
    if (gate.kind is Kind.PERCENTILE) != (gate.percentile is not None):
        raise PolicyError(
            f"{at}.percentile {gate.percentile} does not fit kind {gate.kind}; only percentile gates have one"
        )
    if gate.percentile is not None:
        _probability(f"{at}.percentile", gate.percentile, most=1.0)
    for arm, share in (("stable", gate.sampling.stable), ("canary", gate.sampling.canary)):
        if not 0.0 < number(f"{at}.sampling.{arm}", share) <= 1.0:
            raise PolicyError(
                f"{at}.sampling.{arm} {share} is outside (0, 1]; it is the probability of being judged"
            )
    if not number(f"{at}.deadline_s", gate.deadline_s) > 0.0:
        raise PolicyError(f"{at}.deadline_s {gate.deadline_s} is not above 0; say how long a score may take")
    for key in ("presence_gated", "mirrored"):
        flag(f"{at}.{key}", getattr(gate, key))


def _kinds_for(metric: str) -> tuple[Kind, ...]:
    """How a metric can be tested: a rate counts events, which are harm; a score is the better the higher."""
    if metric in VALUES:
        return Kind.SHAPE, Kind.PERCENTILE
    return (Kind.RATE,) if CATALOGUE[metric].lower_is_better else (Kind.SCORE,)


def _probability(key: str, value: object, *, most: float) -> None:
    if not 0.0 < number(key, value) < most:
        raise PolicyError(f"{key} {value} is outside (0, {most:g}); it is a probability")


def _floor(key: str, value: object) -> None:
    if not 0.0 <= number(key, value) < 1.0:
        raise PolicyError(f"{key} {value} is outside [0, 1); it is a share of requests, as 0.005")


def mapping(key: str, value: object) -> Mapping[str, object]:
    """The value as a mapping. Errors: PolicyError."""
    if not isinstance(value, Mapping):
        raise PolicyError(f"{key} {value!r} is not a mapping; write its settings as name: value")
    return value


def number(key: str, value: object) -> float:
    """The value as a finite number. Errors: PolicyError."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass  # an integer beyond every float is refused like infinity
    raise PolicyError(f"{key} {value!r} is not a finite number; write it as 0.01")


def whole(key: str, value: object, *, least: int) -> int:
    """The value as a whole number of at least `least`. Errors: PolicyError."""
    got = number(key, value)
    if got != int(got) or got < least:
        raise PolicyError(f"{key} {value!r} is not a whole number of at least {least}; write one")
    return int(got)


def flag(key: str, value: object) -> bool:
    """The value as true or false, and nothing that merely looks like it. Errors: PolicyError."""
    if not isinstance(value, bool):
        raise PolicyError(f"{key} {value!r} is neither true nor false; write one, without quotes")
    return value
