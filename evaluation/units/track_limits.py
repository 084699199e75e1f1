"""Limits of a gate's channels: its alpha, split over them before the first bet."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.betting.rounds import RoundChannel
from evaluation.policy.alpha_split import (
    PART_SHARES,
    channel_alphas,
    has_no_value_unanswered,
    log_limit,
    worst_case_alphas,
)
from evaluation.policy.policy import GatePolicy
from evaluation.units.gate_channels import Track


def set_track_limits(tracks: Sequence[Track], policy: GatePolicy, *, sticky: bool) -> None:
    """Set each channel's limit. sticky: whether units have sessions; else only first requests bet."""
    for track in tracks:
        if track.use in ("first proof", "later proof"):
            track.channel.is_idle = not sticky
        elif track.use != "proof":
            is_worst = track.missing_as in ("harm", "absent") and has_no_value_unanswered(track.gate)
            split = worst_case_alphas if is_worst else channel_alphas
            alpha = getattr(split(policy, track.gate, sticky=sticky), track.use)
            limit = log_limit(alpha * (PART_SHARES[track.part] if track.use == "later" else 1.0))
            if isinstance(track.channel, RoundChannel):
                track.channel.set_limit(limit)
            else:
                track.channel.decision.limit = limit
            track.channel.is_idle = track.use in ("session", "later") and not sticky
