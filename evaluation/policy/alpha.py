"""How one error budget is split: over gates, then over the channels of a gate. Never spent twice.

Invariant: the parts of a gate add up to its part of alpha, and how they are cut is fixed before the first
bet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evaluation.policy.policy import Gate, GatePolicy

PAIRS_PART = 0.25  # of a metric whose answers are mirrored, for the channel of pairs
SESSION_PART = 0.5  # of what is left, where units are sticky


@dataclass(frozen=True, slots=True)
class Parts:
    """The alpha of each channel of one gate; 0 means that the channel never decides."""

    first: float
    session: float
    pairs: float


def whole_of(policy: GatePolicy, gate: Gate) -> float:
    """The alpha of one gate. Alarms share another alpha of their own, as large as the policy's: they never
    decide, and what they say by mistake costs a look."""
    if gate.is_alarm:
        return policy.alpha / sum(other.is_alarm for other in policy.gates)
    return policy.alpha * gate.alpha_share


def parts_of(policy: GatePolicy, gate: Gate, *, sticky: bool) -> Parts:
    """The channels' alphas. `sticky`: the first unit that was bet, or one before it, is a sticky one.

    Check: default policy, gate error, not sticky: first 0.003, session 0, pairs 0; sticky: 0.0015, 0.0015, 0.
    """
    whole = whole_of(policy, gate)
    pairs = whole * PAIRS_PART if gate.mirrored else 0.0
    session = (whole - pairs) * SESSION_PART if sticky else 0.0
    return Parts(whole - pairs - session, session, pairs)


def limit_of(alpha: float) -> float:
    """The log wealth at which a channel decides: log(1 / alpha), infinite for 0."""
    return math.log(1.0 / alpha) if alpha > 0.0 else math.inf
