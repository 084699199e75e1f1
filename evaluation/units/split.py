"""Tests of the split itself: the sample ratio, the share of units that the canary serves, and turns.

- Sample ratio: units against the weights of their draws. A mismatch freezes all statistics.
- Served: the canary's units whose requests stable had to serve. By first requests at once, and by sessions.
- Turns: whether conversations have other lengths on one arm. Then a session's mean may say nothing of an
  answer, and first requests alone speak; where they seem to have, no session rolls back any more.
- Returns: whether units come back to a later session of each part as often on both arms, and ask as much in
  it. If not, those sessions are not comparable, nor are those of the parts after it.

- Cancels: whether clients leave before the answer more often on the canary, beyond the tolerance of errors. A
  cancelled request is slowest, which finds a canary that hangs for many; this holds one that does for few.
  Not the other way round: a faster canary has fewer.

Each counts a unit once, however many requests it has. (Counting requests: 100 of 100 healthy runs frozen, and
13 % false rollbacks where 5 % of the users always fall back.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.betting.rates import EventLoss
from evaluation.betting.rounds import RoundChannel
from evaluation.betting.sample_ratio import FallbackBet, SampleRatioBet, TurnsBet
from evaluation.betting.unit_block import Floats
from evaluation.betting.wealth import Channel, Decision
from evaluation.policy.alpha_split import PART_SHARES, SESSION_SHARE, log_limit, served_alpha
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream
from evaluation.units.released import Released
from evaluation.units.sessions import Rows

TURNS_ALPHA = 0.01
DOUBT_ALPHA = 0.05  # sooner: a session's harm must not be shown before the length that explains it
RETURNS_ALPHA = 0.01
CANCELS_ALPHA = 0.002  # a false hold only waits
MORE_CANCELS = 1.25  # times as many cancels as stable; up to that, no reason to wait
MANY_ERRORS = 2.0  # standard errors of the canary's excess of cancels; beyond, nothing is promoted meanwhile
COLUMNS = 4  # of the sessions: answered, turns, fell back, cancelled


class Split:
    """The tests of the split of one rollout."""

    __state__ = (
        "share", "served_first", "served", "turns", "returns", "later_turns", "cancels", "lacking", "excess",
        "largest",
    )  # fmt: skip

    def __init__(self, policy: GatePolicy) -> None:
        self._policy = policy
        restarts, most = policy.restart_share, policy.session_requests
        self.share = Stream(with_histogram=False)
        limit = log_limit(policy.served_share_alpha)
        self.share.channels = [Channel(SampleRatioBet(), limit=limit, restart_share=restarts)]
        self.served_first, self.served = Stream(with_histogram=False), Stream(with_histogram=False)
        for stream in (self.served_first, self.served):
            stream.channels = [
                Channel(FallbackBet(max_rate=1.0 - floor), limit=float("inf"), restart_share=restarts)
                for floor in (policy.served_rate_rollback, policy.served_rate_hold)
            ]
        self.turns = Stream(with_histogram=False)
        self.turns.channels = [
            Channel(TurnsBet(max_turns=most), limit=log_limit(alpha), restart_share=restarts)
            for alpha in (TURNS_ALPHA, DOUBT_ALPHA)
        ]
        # What stable fails at once cannot be cancelled, and what a better canary answers can: cancels alone
        # are no harm, but only together with more requests that lack an answer, for whatever reason.
        self.cancels, self.lacking = Stream(with_histogram=False), Stream(with_histogram=False)
        self.excess: Floats = np.zeros((2, 2))  # of the canary, beyond so many: cancels, lacking; variances
        self.largest: Floats = np.zeros(2)  # part in that of one of the canary's units
        for stream in (self.cancels, self.lacking):
            loss = EventLoss(tolerance=policy.tolerated_failures() - 1.0)
            stream.channels = [Channel(loss, limit=log_limit(CANCELS_ALPHA), restart_share=restarts)]
        self.returns = [Stream(with_histogram=False) for _ in PART_SHARES]
        for stream, share in zip(self.returns, PART_SHARES, strict=True):
            limit = log_limit(RETURNS_ALPHA * share)
            stream.staged = [RoundChannel(SampleRatioBet(), limit=limit, min_stable=0)]
        self.later_turns = [Stream(with_histogram=False) for _ in PART_SHARES]
        for stream, share in zip(self.later_turns, PART_SHARES, strict=True):
            limit = log_limit(TURNS_ALPHA * share)
            stream.staged = [RoundChannel(TurnsBet(max_turns=most), limit=limit, min_stable=0)]

    def set_limits(self, *, sticky: bool) -> None:
        """Split the served rate's alpha over its two channels, before the first bet."""
        alpha = served_alpha(self._policy)
        session = alpha * SESSION_SHARE if sticky else 0.0
        for stream, part in ((self.served_first, alpha - session), (self.served, session)):
            for channel in stream.channels:
                channel.decision.limit = log_limit(part)
                channel.is_idle = part == 0.0 and alpha > 0.0

    def feed_firsts(self, rows: Rows, fell_back: Floats) -> None:
        """Add the units of new draws. fell_back: 1 where stable served, NaN where unknown or stable's."""
        drawn = np.where(rows.w > 0.0, 0.0, np.nan)
        self.share.feed(rows.first_block(drawn, rows.w))
        self.served_first.feed(rows.first_block(fell_back, rows.w))

    def feed_returns(self, rows: Rows) -> None:
        """Add the units of new later sessions."""
        firsts = rows.pick(np.flatnonzero(rows.firsts))
        for part in np.unique(firsts.part).tolist():
            of_part = firsts.pick(np.flatnonzero(firsts.part == part))
            block = of_part.first_block(np.zeros(len(of_part)), of_part.w)
            self.returns[part].feed(replace(block, stage=of_part.round, is_checked=True))

    def feed_later(self, released: Released, column: int) -> None:
        """Add later sessions. column: one in which every request has a value."""
        for part in np.unique(released.part).tolist():
            of_part = released.pick(released.part == part)
            self.later_turns[part].feed(of_part.by_round().block(column))

    def session_columns(self, rows: Rows, fell_back: Floats, unanswered: Floats, cancelled: Floats) -> Floats:
        """What the sessions keep for these tests and for `AnsweredGap`: COLUMNS x n."""
        return np.stack((1.0 - unanswered, np.zeros(len(rows)), fell_back, cancelled))

    def feed_units(self, released: Released, first_column: int) -> None:
        """Add the sessions, which have the columns of `session_columns` from `first_column` on."""
        self.turns.feed(released.block(first_column + 1))
        self.served.feed(released.block(first_column + 2))
        self.cancels.feed(released.block(first_column + 3))
        left, w = np.nan_to_num(released.means(first_column + 3)), released.w
        lacking = 1.0 - np.nan_to_num(released.means(first_column), nan=1.0)
        self.lacking.feed(released.whole_block(lacking))
        both = np.stack((left, lacking))
        both = np.where(released.arm, both / MORE_CANCELS, both)
        terms = np.stack(((released.arm - w) * both, w * (1.0 - w) * both * both))
        so_far = np.concatenate((self.excess[:, :, None], terms), axis=2)
        self.excess = np.add.accumulate(so_far, axis=2)[:, :, -1]
        of_canary = np.where(released.arm, terms[0], 0.0)
        self.largest = np.maximum(self.largest, of_canary.max(axis=1, initial=0.0))

    @property
    def sample_ratio(self) -> Decision:
        """Whether units do not fit their weights."""
        return self.share.channels[0].decision

    @property
    def turns_differ(self) -> Decision:
        """Whether conversations have other lengths on one arm."""
        return self.turns.channels[0].decision

    @property
    def turns_may_differ(self) -> Decision:
        """Whether that is likely enough that no session rolls back any more."""
        return self.turns.channels[1].decision

    @property
    def more_cancels(self) -> Decision:
        """Whether more requests are cancelled on the canary, and more lack an answer, for certain."""
        both = [stream.channels[0].decision for stream in (self.cancels, self.lacking)]
        return next((one for one in both if not one.is_reached), max(both, key=lambda one: one.seq))

    @property
    def has_many_cancels(self) -> bool:
        """Whether, for now, more requests are cancelled on the canary than chance explains, whichever of its
        units one leaves out.

        At small weights few cancels are far from normal: one alone is sqrt((1 - w) / w) standard errors, so
        that a single client who left held a promotion below a weight of 20 %. Leaving one out keeps a twin's
        chance to be held at one look below 2.3 %, which is that of two standard errors, at every weight and
        number of cancels (at most 1.6 %; all counted, 10 % with one at a weight of 10 %).
        """
        excess, variance = self.excess
        return bool(np.all(excess - self.largest > MANY_ERRORS * np.sqrt(variance)))

    def returns_differ(self, part: int) -> list[Decision]:
        """Whether units come back more often on one arm, or ask more then, by the parts up to this one."""
        streams = (*self.returns[: part + 1], *self.later_turns[: part + 1])
        return [stream.staged[0].decision for stream in streams]

    def served_below(self, *, hold: bool) -> Decision:
        """Whether the canary serves less than the floor of a rollback, or of a hold: by the first channel."""
        decisions = [stream.channels[int(hold)].decision for stream in (self.served_first, self.served)]
        reached = [decision for decision in decisions if decision.is_reached]
        return min(reached, key=lambda d: d.seq) if reached else max(decisions, key=lambda d: d.peak)
