"""How the error budget alpha is split: over gates, then over the channels of a gate. Never spent twice.

Invariant: the channels of a gate add up to its part of alpha, and the split is fixed before the first bet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.metrics import OUTCOMES, Kind
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy

SERVED_SHARE = 0.02  # of the error gate, for the share of units that the canary serves itself
PAIRS_SHARE = 0.25  # of a gate with mirrored answers, for the channel of pairs
LATER_SHARE = 0.1  # of the rest, where units are sticky, for their later sessions
PART_SHARES = (0.6, 0.16, 0.1, 0.08, 0.06)  # of that, for the parts of later requests (`units.PARTS`)
SESSION_SHARE = 0.5  # of what is left then


@dataclass(frozen=True, slots=True)
class ChannelAlphas:
    """The alpha of each channel of one gate; 0 means that the channel never decides."""

    first: float
    session: float
    pairs: float
    later: float


def gate_alpha(policy: GatePolicy, gate: Gate) -> float:
    """The alpha of one gate. Alarms share a separate budget as large as the policy's: they never decide, so
    a false one only costs attention."""
    if gate.is_alarm:
        return policy.alpha / sum(other.is_alarm for other in policy.gates)
    alpha = policy.alpha * gate.alpha_share
    return alpha * (1.0 - SERVED_SHARE) if gate == _error_gate(policy) else alpha


def served_alpha(policy: GatePolicy) -> float:
    """The alpha of the served rate: a part of the error gate's; without one, of what no gate spends."""
    error = _error_gate(policy)
    if error is not None:
        return policy.alpha * error.alpha_share * SERVED_SHARE
    shares = [g.alpha_share for g in policy.gates] + [r.alpha_share for r in policy.observed_ranges]
    spent = math.fsum(shares)
    return policy.alpha * min(max(1.0 - spent, 0.0), 0.25 * SERVED_SHARE)


def _error_gate(policy: GatePolicy) -> Gate | None:
    return next((gate for gate in policy.gates if gate.metric == "error" and not gate.is_alarm), None)


def channel_alphas(policy: GatePolicy, gate: Gate, *, sticky: bool) -> ChannelAlphas:
    """The channels' alphas. `sticky`: a sticky unit came before the first bet, or was the first.

    Check: default policy, gate quality, not sticky: first 0.002, the others 0; sticky: first and session
    0.0009 each, later 0.0002.
    """
    alpha = gate_alpha(policy, gate)
    pairs = alpha * PAIRS_SHARE if gate.mirrored else 0.0
    later = (alpha - pairs) * LATER_SHARE if sticky else 0.0
    session = (alpha - pairs - later) * SESSION_SHARE if sticky else 0.0
    return ChannelAlphas(alpha - pairs - session - later, session, pairs, later)


def worst_case_alphas(policy: GatePolicy, gate: Gate, *, sticky: bool) -> ChannelAlphas:
    """The alphas of the channels in which requests without an answer count as harm.

    They speak for a canary that answers more than stable, the others for one that does not, and a rollback
    needs both. So the gates whose metric such requests lack share the rollout's alpha a second time: with
    the presets at most 1.6 %, not 1 %, are rolled back where all additional answers are the worst.
    Check: default policy, gate quality, not sticky: first 0.005.
    """
    shares = [g.alpha_share for g in policy.gates if has_no_value_unanswered(g)]
    factor = 1.0 / max(math.fsum(shares), gate.alpha_share)
    parts = channel_alphas(policy, gate, sticky=sticky)
    return ChannelAlphas(*(factor * part for part in (parts.first, parts.session, parts.pairs, parts.later)))


def has_no_value_unanswered(gate: Gate) -> bool:
    """Whether a request without an answer has no value of this gate's metric, nor counts as slowest."""
    is_bounded = gate.kind in (Kind.RATE, Kind.SCORE)
    return is_bounded and gate.metric not in OUTCOMES and not gate.is_alarm


def log_limit(alpha: float) -> float:
    """The log wealth at which a channel decides: log(1 / alpha), infinite for 0."""
    return math.log(1.0 / alpha) if alpha > 0.0 else math.inf
