"""Gate policy of one rollout: its gates, rungs, error budgets and limits; frozen, checked on construction.

`parsing.py` reads one from plain values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace

from evaluation.metrics import CATALOGUE, UNANSWERED, Kind
from evaluation.policy.gates import (
    DEFAULT_RUNGS,
    PRESET_KINDS,
    Gate,
    Rung,
    alarm_gate,
    check_floor,
    check_gate,
    check_margins,
    preset_gates,
    shared_out,
)
from evaluation.policy.observed_ranges import RangeGate
from evaluation.policy.values import PolicyError, check_probability, number, whole


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """Everything that decides, for one whole rollout. Raises PolicyError for invalid values."""

    name: str = "default"
    alpha: float = 0.01  # for the whole rollout, over all its gates and stages
    # For each gate of a stage; all must pass, so no correction. The promise is 5 %; a little less is spent,
    # so that the share counted in a few hundred simulated runs stays below the promise as well.
    promotion_alpha: float = 0.045
    proof_canary: int = 100  # canary requests before the first interim look at a proof
    gates: tuple[Gate, ...] = field(default_factory=lambda: preset_gates(0.5))
    rungs: tuple[Rung, ...] = DEFAULT_RUNGS
    served_share_alpha: float = 0.001  # of the sample ratio test
    served_rate_hold: float = 0.98
    served_rate_rollback: float = 0.90
    units: str = "auto"  # "request", "sticky", or "auto": sticky if a sticky unit came before the first bet
    session_requests: int = 10
    session_s: float = 600.0
    restart_share: float = 0.3  # prior of the processes that start later; 0 turns late-onset restarts off
    max_missing: float = 0.10
    load_ratio: float = 1.25
    observed_ranges: tuple[RangeGate, ...] = ()

    def __post_init__(self) -> None:
        _check_settings(self)
        _check_gates(self)
        _check_rungs(self)

    @classmethod
    def default(cls) -> GatePolicy:
        """Tolerates half of each threshold."""
        return cls()

    @classmethod
    def strict(cls) -> GatePolicy:
        """Tolerates nothing: detects sooner, and eventually rolls back anything that is slightly worse."""
        return cls(name="strict", gates=preset_gates(0.0))

    @classmethod
    def named(cls, name: str) -> GatePolicy:
        """The preset called `name`. Errors: PolicyError when there is none."""
        if name == "default":
            return cls.default()
        if name == "strict":
            return cls.strict()
        raise PolicyError(f"policy {name!r} is unknown; use default or strict, or give a mapping")

    def to_mapping(self) -> dict[str, object]:
        """Plain values that `parse_gate_policy` reads back to an equal policy."""
        out = asdict(self)
        out["gates"] = {gate.pop("name"): gate for gate in out["gates"]}
        out["rungs"] = [
            dict(rung, margins=dict(rung["margins"]), own=dict(rung["own"])) for rung in out["rungs"]
        ]
        # Left out where unused: keeps the digests of policies that were stored before they existed.
        for rung in out["rungs"]:
            if not rung["own"]:
                del rung["own"]
        for gate in out["gates"].values():
            if not gate["required"]:
                del gate["required"]
            if gate["covariates"]:
                gate["covariates"] = list(gate["covariates"])
            else:
                del gate["covariates"]
        out["observed_ranges"] = {gate.name: gate.to_mapping() for gate in self.observed_ranges}
        if not self.observed_ranges:
            del out["observed_ranges"]  # keeps the digests of policies stored before ranges existed
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

    def gate_kinds(self) -> dict[str, Kind]:
        """How each gate that a rung or a stage may name is tested, by name."""
        return {**PRESET_KINDS, **{gate.name: gate.kind for gate in self.gates}}

    def rung_for(self, min_canary: int) -> Rung:
        """The highest rung that a stage of `min_canary` canary requests reaches."""
        return max((r for r in self.rungs if r.min_canary <= min_canary), key=lambda r: r.min_canary)

    def only(self, *metrics: str) -> GatePolicy:
        """The same policy with the gates of these metrics alone; their alpha shares stay as they are."""
        gates = tuple(g for g in self.gates if g.metric in metrics)
        ranges = tuple(g for g in self.observed_ranges if g.metric in metrics)
        rungs = _without_margins(self.rungs, set(self.gates) - set(gates))
        return replace(self, gates=gates, rungs=rungs, observed_ranges=ranges)

    def without_sources(self, metrics: Collection[str]) -> GatePolicy:
        """The same policy where these metrics have no source: the preset's gates on them become alarms, and
        their parts of alpha are shared out over the others. Gates that a user asked for stay.

        Only for what is known before the first draw: a metric that stops later, or arrives later, must not
        move alpha.
        """
        absent = tuple(g for g in self.gates if g.metric in metrics and not g.required and not g.is_alarm)
        names = {g.name for g in absent}
        shares = shared_out({g.name: g.alpha_share for g in self.gates}, names)
        if shares is None:
            return self
        gates = tuple(replace(g, alpha_share=min(shares.get(g.name, 0.0), 1.0)) for g in self.gates)
        rungs = tuple(
            replace(
                rung,
                margins={name: m for name, m in rung.margins.items() if name not in names},
                own={name: m for name, m in rung.own.items() if name not in names},
            )
            for rung in self.rungs
        )
        return replace(self, gates=gates, rungs=rungs)

    def tolerated_failures(self) -> float:
        """How many times as many requests as stable the canary may leave unanswered by the gates on errors
        and rejections; 1 without such gates."""
        gates = [gate for gate in self.gates if gate.metric in UNANSWERED and not gate.is_alarm]
        return 1.0 + max((gate.tolerance for gate in gates), default=0.0)

    def with_alarms(self) -> GatePolicy:
        """The same policy, with an alarm for every metric of the catalogue that has no gate."""
        gated = {gate.metric for gate in self.gates}
        alarms = tuple(alarm_gate(metric) for metric in CATALOGUE.values() if metric.name not in gated)
        return replace(self, gates=(*self.gates, *alarms))

    def gates_for(self, metric: str) -> tuple[Gate, ...]:
        """The gates that test `metric`, in the policy's order."""
        return tuple(g for g in self.gates if g.metric == metric)


def _without_margins(rungs: tuple[Rung, ...], removed: set[Gate]) -> tuple[Rung, ...]:
    """The rungs without the margins of removed gates. A preset's gate may be named without existing."""
    names = {gate.name for gate in removed} - PRESET_KINDS.keys()
    if not any(names & rung.margins.keys() for rung in rungs):
        return rungs
    return tuple(
        replace(
            rung,
            margins={name: m for name, m in rung.margins.items() if name not in names},
            own={name: m for name, m in rung.own.items() if name not in names},
        )
        for rung in rungs
    )


def _check_settings(policy: GatePolicy) -> None:
    if not isinstance(policy.name, str) or not policy.name:
        raise PolicyError(f"name {policy.name!r} is not a name; use text such as strict")
    for key in ("alpha", "promotion_alpha", "served_share_alpha"):
        check_probability(key, getattr(policy, key), below=0.5)
    for key in ("served_rate_hold", "served_rate_rollback"):
        check_probability(key, getattr(policy, key), below=1.0)
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
    whole("proof_canary", policy.proof_canary, minimum=0)
    whole("session_requests", policy.session_requests, minimum=1)
    if number("session_s", policy.session_s) <= 0.0:
        raise PolicyError(f"session_s {policy.session_s} is not above 0; use 600")


def _check_gates(policy: GatePolicy) -> None:
    every: tuple[Gate | RangeGate, ...] = (*policy.gates, *policy.observed_ranges)
    names = [gate.name for gate in every]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        key = "observed_ranges" if twice in {gate.name for gate in policy.observed_ranges} else "gates"
        raise PolicyError(f"{key}.{twice} is the name of another gate; give each gate its own")
    covariates: dict[str, Gate] = {}
    for gate in policy.gates:
        check_gate(gate)
        other = covariates.setdefault(gate.metric, gate)
        if gate.covariates != other.covariates:
            raise PolicyError(
                f"gates.{gate.name}.covariates differ from those of gates.{other.name}, and both test "
                f"{gate.metric}; give both the same"
            )
    total = math.fsum(gate.alpha_share for gate in every)
    if total > 1.0 + 1e-9:
        keys = "gates.*.alpha_share" + (
            " and observed_ranges.*.alpha_share" if policy.observed_ranges else ""
        )
        raise PolicyError(f"{keys} add up to {total:g}, limit 1; lower them, they are parts of alpha")


def _check_rungs(policy: GatePolicy) -> None:
    kinds = policy.gate_kinds()
    for index, rung in enumerate(policy.rungs):
        whole(f"rungs.{index}.min_canary", rung.min_canary, minimum=0)
        check_margins(f"rungs.{index}.margins", rung.margins, kinds)
        check_margins(f"rungs.{index}.own", rung.own, kinds)
        for name in rung.own:
            if name not in rung.margins:
                raise PolicyError(
                    f"rungs.{index}.own.{name} has no margin beside it; give margins.{name}, for the rollout"
                )
        check_floor(f"rungs.{index}.floor", rung.floor)
    starts = sorted(rung.min_canary for rung in policy.rungs)
    if not starts or starts[0] != 0:
        raise PolicyError("rungs must begin with min_canary 0; add the rung of the first stage")
    if len(set(starts)) != len(starts):
        raise PolicyError(f"rungs repeat a min_canary ({', '.join(map(str, starts))}); give each its own")
