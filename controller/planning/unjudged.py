"""Gates that stable's own traffic gives nothing to judge by: NOT JUDGED in a plan, and asked for by a deploy.

Rules:
1. A metric has no source when enough of stable's requests are known and not one carried it. Too few
   requests, or requests too young for a score, say nothing: then no gate is reported.
2. A preset's gate without a source is left out of the rollout, its part of alpha goes to the other gates,
   and a deploy needs a reason. Gates on streamed metrics need none: where nothing streams, nothing is missed.
3. Until then, a gate whose first score has not come is only warned of (`awaited`): nobody can tell yet
   whether a grader will send it.
4. A gate that the user named, in `gates` or in a margin, is never left out: it has to be proven, so nothing
   is promoted until its metric arrives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from controller.planning.baseline import MIN_REQUESTS, MeasuredBaseline
from controller.spec.policy import PolicySpec
from controller.spec.service import derived_policy, dump
from evaluation.metrics import CATALOGUE, STREAMED
from evaluation.policy.gates import shared_out

MOSTLY_FAILED = 0.9  # of stable's requests: from there on they say nothing of what its answers have
ALPHA_STEPS = 1_000_000  # shares are rounded down to one of these: their sum stays within 1

Needs = Literal["nothing", "reason", "source"]


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A gate without a source. needs: what a deploy needs; `source`: its metric, or another policy."""

    gate: str
    metric: str
    needs: Needs
    requests: int  # of stable, none of which carried the metric
    failed: int = 0  # of them, those that had no answer to carry it

    @property
    def is_stable_down(self) -> bool:
        """True: what lacks is answers, not their metric."""
        return self.failed >= MOSTLY_FAILED * self.requests > 0

    @property
    def text(self) -> str:
        """Gate, cause and remedy in one line."""
        if self.is_stable_down:
            return (
                f"{self.gate} NOT JUDGED: {self.failed:,} of stable's {self.requests:,} requests failed, and "
                f"none has {self.metric}; find out first why stable answers nobody: canaryctl status"
            )
        seen = f"{self.gate} NOT JUDGED: none of stable's {self.requests:,} requests has {self.metric}"
        if self.metric in STREAMED:
            seen += ", because none was streamed"
        match self.needs:
            case "nothing":
                return seen
            case "reason":
                return f"{seen}; {_source(self.metric)}, or deploy without this gate: --allow-unjudged REASON"
            case "source":
                return (
                    f"{seen}; the policy names it, so nothing is promoted without it; "
                    f"{_source(self.metric)}, or remove it from the policy: gates: {{{self.gate}: null}}"
                )


def unjudged(
    policy: PolicySpec, measured: MeasuredBaseline, judged: Collection[str] = ()
) -> tuple[Unjudged, ...]:
    """The policy's deciding gates whose metric never came in stable's traffic. judged: metrics that a judge
    will give."""
    named = _named(policy)
    found = []
    for gate in policy.gate_policy().gates:
        requests = measured.could_carry(gate.metric)
        is_known = requests < MIN_REQUESTS or measured.carried(gate.metric) or gate.metric in judged
        if gate.is_alarm or is_known:
            continue
        needs: Needs = "nothing" if gate.metric in STREAMED else "reason"
        named_needs: Needs = "source" if gate.name in named else needs
        failed = 0 if CATALOGUE[gate.metric].arrives_later else measured.events.get("error", 0)
        found.append(Unjudged(gate.name, gate.metric, named_needs, requests, failed))
    return tuple(found)


def awaited(policy: PolicySpec, measured: MeasuredBaseline, judged: Collection[str] = ()) -> tuple[str, ...]:
    """A line for each deciding gate on scores of which none has come, while it is too early to say that none
    will: without one, the rollout waits for a proof that cannot come. judged: metrics that a judge gives."""
    return tuple(
        f"{gate}: no score of {metric} has come yet; nothing can be promoted without it, so the "
        "rollout would end as not proven (hold_limit); "
        f"{_source(metric)}, or leave the gate out of the policy: gates: {{{gate}: null}}"
        for gate, metric in _awaited(policy, measured)
        if metric not in judged
    )


def assumed(policy: PolicySpec, measured: MeasuredBaseline, judged: Collection[str] = ()) -> tuple[str, ...]:
    """A line for each gate of `awaited`, for a forecast, which can only assume that its scores will come."""
    return tuple(
        f"{gate}: assumed to get a score of each request; no score of {metric} has come yet, and "
        "without one no stage is proven"
        for gate, metric in _awaited(policy, measured)
        if metric not in judged
    )


def _awaited(policy: PolicySpec, measured: MeasuredBaseline) -> tuple[tuple[str, str], ...]:
    """Gates and metrics of `awaited`."""
    return tuple(
        (gate.name, gate.metric)
        for gate in policy.gate_policy().gates
        if CATALOGUE[gate.metric].arrives_later
        and not (gate.is_alarm or measured.carried(gate.metric))
        and measured.could_carry(gate.metric) < MIN_REQUESTS
    )


def without(policy: PolicySpec, gates: Sequence[Unjudged]) -> PolicySpec:
    """The policy without those of `gates` that the user did not name; their alpha goes to the others."""
    gone = {one.gate for one in gates if one.needs != "source"}
    shares = {gate.name: gate.alpha_share for gate in policy.gate_policy().gates if not gate.is_alarm}
    kept = shared_out(shares, gone)
    if kept is None:
        return policy
    written = dump(policy).get("gates") or {}
    scaled = {
        name: {**(written.get(name) or {}), "alpha_share": _floor(share)} for name, share in kept.items()
    }
    return derived_policy(policy, {"gates": {**written, **scaled, **dict.fromkeys(gone)}})


def _named(policy: PolicySpec) -> set[str]:
    """Gates that the user named: in `gates`, or in the margins of a rung or a stage."""
    margins = [rung.margins for rung in policy.rungs or ()]
    margins += [stage.margins or {} for stage in policy.stages or ()]
    return {name for name, gate in policy.gates.items() if gate is not None}.union(*margins)


def _source(metric: str) -> str:
    if CATALOGUE[metric].arrives_later:
        return f"send {metric} scores: POST /v1/feedback"
    if metric == "cost":
        return "give the service prices (`prices`, docs/cost.md)"
    return f"serve requests that have {metric}"


def _floor(share: float) -> float:
    return math.floor(share * ALPHA_STEPS) / ALPHA_STEPS
