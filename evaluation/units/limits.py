"""Limits of a metric's channels: alpha is split by the kind of units, and anew where a key comes late.

Where the first units are requests, alpha is split for requests alone, and no session is bet on. A sticky unit
may come after that: one client without a key is enough to be the first. From its draw on the channels of
sessions bet, too, and the first requests lend them of what they have: with W the wealth of these at that draw
(at most 1) and f a channel's share of alpha, it begins with f W, and the first requests go on with their own
share of W. All are parts of one supermartingale, so that no more than alpha is spent. (A split by the first
draw alone rolled back none of 12 canaries that failed from the eleventh turn on.)

Invariant: nothing here changes a rollout whose units are all requests, or begin with a sticky one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.betting.rounds import RoundChannel
from evaluation.betting.unit_block import Flags, Ints
from evaluation.betting.wealth import Channel
from evaluation.policy.alpha_split import (
    PART_SHARES,
    channel_alphas,
    has_no_value_unanswered,
    log_limit,
    worst_case_alphas,
)
from evaluation.policy.policy import GatePolicy
from evaluation.units.gate_channels import Column, Track
from evaluation.units.sessions import Rows


class LateKeys:
    """The draw of the first sticky unit after alpha was split for requests. seq -1: there was none."""

    __state__ = ("seq",)

    def __init__(self) -> None:
        self.seq = -1

    def look(self, is_draw: Flags, seq: Ints) -> None:
        """Note the first draw of a sticky unit. is_draw: which requests are one; seq: their numbers."""
        found = np.flatnonzero(is_draw)
        if self.seq < 0 and len(found):
            self.seq = int(seq[found[0]])

    def cut(self, rows: Rows) -> int | None:
        """How many of the rows come before it; None: all of them."""
        if self.seq < 0 or len(rows) == 0 or rows.seq[-1] < self.seq:
            return None
        return int(np.searchsorted(rows.seq, self.seq))


def split_alpha(
    tracks: Sequence[Track], policy: GatePolicy, *, sticky: bool, lent: Mapping[str, float]
) -> None:
    """Split each gate's alpha over its channels. lent: by gate, what `wealth_lent` said when the channels of
    sessions began to bet; empty: all began together."""
    for track in tracks:
        if track.use in ("first proof", "later proof"):
            track.channel.is_idle = not sticky
        elif track.use != "proof":
            is_worst = track.missing_as in ("harm", "absent") and has_no_value_unanswered(track.gate)
            split = worst_case_alphas if is_worst else channel_alphas
            alpha = getattr(split(policy, track.gate, sticky=sticky), track.use)
            limit = log_limit(alpha * (PART_SHARES[track.part] if track.use == "later" else 1.0))
            if track.use in ("session", "later"):
                limit += lent.get(track.gate.name, 0.0)
            if isinstance(track.channel, RoundChannel):
                track.channel.set_limit(limit)
            else:
                track.channel.decision.limit = limit
            track.channel.is_idle = track.use in ("session", "later") and not sticky


def wealth_lent(tracks: Sequence[Track]) -> dict[str, float]:
    """By gate, how far the log wealth of its first requests is below 0 now, by the least of the ways that
    a rollback needs."""
    lent: dict[str, float] = {}
    for track in tracks:
        if track.use == "first" and isinstance(track.channel, Channel):
            name = track.gate.name
            lent[name] = max(lent.get(name, 0.0), -track.channel.wealth.now)
    return lent


def open_channels(tracks: Sequence[Track], columns: Sequence[Column], policy: GatePolicy) -> dict[str, float]:
    """Let the channels of sticky units bet from here on; returns what was lent."""
    opened = [track.channel for track in tracks if track.channel.is_idle]
    lent = wealth_lent(tracks)
    split_alpha(tracks, policy, sticky=True, lent=lent)
    for column in columns:
        for stream in (column.first, column.units):
            stream.wake([channel for channel in opened if isinstance(channel, Channel)])
    return lent
