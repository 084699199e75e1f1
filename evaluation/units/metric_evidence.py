"""Evidence of one metric: its columns, which feed its gates (`gate_channels.py`), and its counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.scores import pair_harm
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.metrics import CATALOGUE, OUTCOMES, SIZES, VALUES, WAITS, Kind
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.gates import Gate, Proof
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S
from evaluation.stream import Stream
from evaluation.units.answered import LaterShare, ScoredShare
from evaluation.units.attendance import Attendance, harm_of, look_at
from evaluation.units.capped import Capped
from evaluation.units.covariate_columns import CovariateColumns, with_covariates
from evaluation.units.gate_channels import Column, GateChannels
from evaluation.units.judged import judged_probability, missing_weights, without_failed
from evaluation.units.later_feed import LaterValues, feed_parts
from evaluation.units.limits import open_channels, split_alpha
from evaluation.units.missingness import Lacking, OneValue, Presence
from evaluation.units.offered import Offered
from evaluation.units.own_range import OWN_RANGE, OwnRange
from evaluation.units.own_speed import OwnSpeed
from evaluation.units.points import Points
from evaluation.units.released import Released
from evaluation.units.sessions import Rows
from evaluation.units.value_columns import ValueSettings, value_columns, with_worst

OPTIONAL = VALUES - {"latency_ms"}  # some answers are not streamed, and some engines do not count tokens
_STATE = (
    "columns", "with_missing", "scored", "one_value", "one_value_later", "later_share", "everyone",
    "exceedances", "presence", "pairs", "points", "sums", "counts", "lent", "own_speed", "offered",
)  # fmt: skip


class MetricEvidence:
    """The columns and channels of one metric under one policy."""

    def __init__(self, metric: str, policy: GatePolicy, proofs: Mapping[str, Sequence[Proof]]) -> None:
        self.name = metric
        self.gates = policy.gates_for(metric)
        self.covariates = CovariateColumns(self.gates[0].covariates, policy.restart_share)
        self.takes_values = metric in VALUES
        self.is_size = metric in SIZES
        self.is_alarm = all(gate.is_alarm for gate in self.gates)
        self._longest = SETTLE_S * 1000.0 if metric == "latency_ms" else math.inf
        self._failures = policy.tolerated_failures()
        bets = GateChannels(metric, policy, proofs, longest=self._longest)
        self.tracks = bets.tracks
        self.columns = bets.columns
        self.with_missing = list(bets.with_missing.values())
        self.exceedances = bets.exceedances
        self.pairs = bets.pairs
        self.everyone = [channel for _, _, channels in bets.everyone for channel in channels]
        self._bets = bets
        self.scored = ScoredShare()
        self.one_value = OneValue()
        self.one_value_later = OneValue()
        self.later_share = LaterShare()
        sampling = self.gates[0].sampling
        self._sampling = sampling
        self._same_sampling = sampling.stable == sampling.canary
        sampled = sampling.stable < 1.0 or sampling.canary < 1.0 or any(g.presence_gated for g in self.gates)
        self._is_sampled = sampled
        is_judged = CATALOGUE[metric].arrives_later
        is_partial = is_judged or sampled or metric in OPTIONAL
        self.presence = Presence(
            on_present=sampled,
            is_two_sided=is_partial and self._same_sampling,
            max_missing=1.0 if is_partial else policy.max_missing,
            restart_share=policy.restart_share,
            is_judged=is_judged,
            is_counted=not self.is_alarm,
        )
        self.lacking = None if is_partial or not self.takes_values else Lacking()
        self.unjudged = Lacking()  # answers that are known to have been drawn for a score
        self.points = Points(with_histogram=self.takes_values)
        self.sums: Floats = np.zeros(2)
        self.counts: Floats = np.zeros(2)
        self.capped = Capped() if bets.means else None
        self.lent: dict[str, float] = {}  # by gate (`limits.py`); empty: no key came late
        self.own_speed = OwnSpeed()
        self.offered = Offered()
        self.own_range = OwnRange() if metric in OWN_RANGE and not self.is_alarm else None
        for track in self.tracks:
            if track.use == "pairs":  # they may come before the first bet
                parts = channel_alphas(policy, track.gate, sticky=False)
                track.channel.decision.limit = log_limit(parts.pairs)

    @property
    def width(self) -> int:
        """Number of columns that the sessions keep: its own, one for missing values, one for the weights of
        failures where they count as missing, and the covariates."""
        return len(self.columns) + 1 + bool(self.with_missing) + len(self.covariates.names)

    @property
    def __state__(self) -> tuple[str, ...]:
        more = ["covariates"] if self.covariates.names else []
        more += [name for name in ("own_range", "capped", "lacking") if getattr(self, name) is not None]
        return (*_STATE, *more, *(["unjudged"] if self._is_sampled else []))

    def seed(self, values: Floats) -> None:
        """Learn stable's own values from before the rollout: of sizes the caps alone."""
        if self.capped is not None:
            self.capped.seed(values)
        if self.takes_values and not self.is_size:
            self._seed_columns(values)

    def _seed_columns(self, values: Floats) -> None:
        self.own_speed.seed(values)
        for column in self.columns:
            if column.first.stable.histogram is not None:
                column.first.seed(values)
                column.units.seed(values)
        for exceedance in self.exceedances:
            exceedance.seed(values)

    def set_limits(self, policy: GatePolicy, *, sticky: bool) -> None:
        """Split each gate's alpha over its channels, before the first bet; anew where a key came late."""
        split_alpha(self.tracks, policy, sticky=sticky or bool(self.lent), lent=self.lent)
        for column in (*self.columns, *self.with_missing):
            column.first.fix_idle()
            column.units.fix_idle()

    def open_for_keys(self, policy: GatePolicy) -> None:
        """Bet on sessions from here on, too: the first sticky unit comes."""
        self.lent = open_channels(self.tracks, (*self.columns, *self.with_missing), policy)

    def values(
        self,
        raw: Floats,
        unanswered: NDArray[np.bool_],
        cancelled: NDArray[np.bool_],
        rows: Rows,
        left_ms: Floats | None = None,
    ) -> Floats:
        """The metric's columns (C x n). raw: comparable values, NaN where missing. cancelled: those of the
        unanswered that their client left, after `left_ms`; NaN and None: not known."""
        if not self.takes_values:
            return raw[None, :] if self._bets.worst is None else with_worst(raw, unanswered, rows.arm)
        settings = ValueSettings(
            self._bets,
            self._longest,
            self._failures,
            is_wait=self.name in WAITS,
            is_of_all=self.lacking is not None,
        )
        apart = self.offered.apart(rows)
        if not self.is_size:
            return value_columns(settings, raw, unanswered, cancelled, rows, left_ms, apart)
        nobody = np.zeros(len(rows), dtype=np.bool_)  # a request without an answer has no size, and no rank
        columns = value_columns(settings, raw, nobody, nobody, rows, None, apart)
        if self.capped is None:
            return columns
        of_caps = self.capped.columns(rows, judged_probability(self._sampling, rows.w), raw)
        return np.vstack((columns, of_caps[: len(self._bets.means)]))

    def can_skip(self, raw: Floats) -> bool:
        """Whether these are values of an alarm, all missing: nothing depends on them."""
        if self.with_missing or self.covariates.names:
            return False
        return self.is_alarm and bool(np.isnan(raw).all())

    def pass_by(self, rows: Rows) -> None:
        """Note rows that are skipped."""
        if self.takes_values:
            self.offered.apart(rows)
        for exceedance in self.exceedances:
            exceedance.pass_by(rows.order)

    def feed_firsts(
        self,
        rows: Rows,
        columns: Floats,
        gaps: Floats | None,
        unanswered: Floats,
        covariates: Floats | None = None,
    ) -> None:
        """Feed the streams of first requests. covariates: p x n; None: the metric has none. unanswered: 1
        where a request had no answer."""
        w, gap = judged_probability(self._sampling, rows.w), self._gap(gaps)
        for column, y in zip(self.columns, columns, strict=True):
            if column.first.channels or column.first.staged:
                block = rows.first_block(y, w, gaps if column in self._bets.means else gap)
                if column.missing is not None:
                    block = without_failed(block, unanswered, block.seq, rows.seq)
                column.first.feed(with_covariates(block, covariates, block.seq, rows.seq))
        self.covariates.feed(rows, covariates)

    def feed_units(
        self, released: Released, first_column: int, gaps: Floats | None, unanswered: Floats
    ) -> None:
        """Feed the sessions; they have this metric's columns from `first_column` on. unanswered: share of
        each one's requests without an answer."""
        w = None if self._same_sampling else judged_probability(self._sampling, released.w)
        gap = self._gap(gaps)
        after, last = first_column + len(self.columns), first_column + self.width
        covariates = [released.means(c) for c in range(last - len(self.covariates.names), last)]

        def feed(stream: Stream, block: UnitBlock) -> None:
            stream.feed(with_covariates(block, covariates, block.draw, released.draw))

        for index, column in enumerate(self.columns, start=first_column):
            if column.units.channels or column.units.staged:
                own_gap = gaps if column in self._bets.means else gap
                block = released.block(index, w, own_gap, single_values=column.with_histogram)
                if column.missing is not None:
                    block = without_failed(block, unanswered, block.draw, released.draw)
                feed(column.units, block)
        has_one = self.one_value.of(released, first_column, after + 1) if self.with_missing else None
        if not self.is_alarm:
            self.presence.feed(released, after, w, has_one)
        for column in self.with_missing:
            if column.missing is not None:
                block = released.block_with_missing(first_column, after + 1, w, gap, column.missing, has_one)
                feed(column.units, block)

    def feed_later(
        self, released: Released, first_column: int, gaps: Floats | None, unanswered: Floats
    ) -> None:
        """Feed the later sessions; they have the columns of `later_values` from `first_column` on."""
        w = released.w if self._same_sampling else judged_probability(self._sampling, released.w)
        has_one = None
        if self.with_missing:
            has_one = self.one_value_later.of(released, first_column, first_column + len(self.columns))
        values = LaterValues(w, self._gap(gaps), unanswered, has_one)
        feed_parts((*self.columns, *self.with_missing), released, first_column, len(self.columns), values)

    def look_at_everyone(self, attendance: Attendance, returned: Released, first_column: int) -> None:
        """Test all units that were drawn, with whoever has not come back in a round as the worst.

        returned: the round's later sessions of a part, with the columns of `later_values` from `first_column`
        on. Each part has a test of its own: a unit has at most one later session of a part in a round.
        """
        part = int(returned.part[0])
        for gate, column, channels in self._bets.everyone:
            if not channels[part].is_decided:
                block = self._later_block(returned, column, first_column)
                if len(block):
                    harm = harm_of(block, gate, self._failures)
                    look_at(attendance, channels[part], returned, block, harm, self._sampling)

    def _later_block(self, returned: Released, column: Column, first_column: int) -> UnitBlock:
        if column.missing is None:
            index = first_column + self.columns.index(column)
            return returned.block(index, single_values=column.with_histogram)
        weights = first_column + len(self.columns)
        return returned.block_with_missing(first_column, weights, None, None, column.missing)

    def count_later(self, rows: Rows, raw: Floats) -> None:
        """Count the values of later sessions and of the draws themselves. raw: comparable values."""
        if self.takes_values:
            self.own_speed.learn(rows, raw)
        self.later_share.count(rows, ~np.isnan(raw) & (rows.w > 0.0))

    def later_values(self, columns: Floats, weights: Floats | None, rows: Rows) -> Floats:
        """What later sessions keep: the columns, and the weights of failures where they count as missing."""
        kept = columns if weights is None else np.concatenate((columns, weights[None, :]))
        return kept if self._same_sampling else np.where(rows.firsts, kept, np.nan)

    @property
    def later_width(self) -> int:
        """Number of columns that later sessions keep."""
        return len(self.columns) + bool(self.with_missing)

    def weights_of_missing(
        self, raw: Floats, unanswered: NDArray[np.bool_], rows: Rows, drawn: Floats | None
    ) -> Floats:
        """`missing_weights`, by the share of answers that are scored, as known before each. raw: comparable
        values. drawn: 1 where a score was drawn for; None: nowhere known."""
        sampled = None if drawn is None or not self._is_sampled else drawn == 1.0
        scored = ~np.isnan(raw) if sampled is None else ~np.isnan(raw) | sampled
        if sampled is not None:
            self.unjudged.count_drawn(rows, raw, sampled & ~unanswered)
        shares = self.scored.of(scored, ~unanswered, rows.of_draws)
        if not self._same_sampling:
            shares = np.where(rows.arm, self._sampling.canary, self._sampling.stable)
        return missing_weights(shares, raw, unanswered, sampled)

    def feed_first_missing(
        self,
        rows: Rows,
        raw: Floats,
        weights: Floats,
        gaps: Floats | None,
        covariates: Floats | None = None,
    ) -> None:
        """Feed the streams in which missing values count, by first requests. weights: of failures, 0 for
        answers. covariates: p x n; None: the metric has none."""
        w, gap = judged_probability(self._sampling, rows.w), self._gap(gaps)
        for column in self.with_missing:
            if column.missing is None:
                continue
            block = rows.first_block_with_missing(raw, weights, w, gap, column.missing)
            column.first.feed(with_covariates(block, covariates, block.seq, rows.seq))

    def _gap(self, gaps: Floats | None) -> Floats | None:
        """What missing answers can hide from a rate of answers; None: nothing."""
        return gaps if self.gates[0].kind is Kind.RATE and self.name not in OUTCOMES else None

    def session_values(
        self,
        columns: Floats,
        missing: Floats,
        weights: Floats | None,
        rows: Rows,
        covariates: Floats | None = None,
    ) -> Floats:
        """The columns as sessions keep them: first requests alone where the arms are sampled differently, and
        of covariates: a later request may depend on the arm's answers. covariates: p x n."""
        kept = np.concatenate((columns, missing[None, :]))
        if weights is not None:
            kept = np.concatenate((kept, weights[None, :]))
        kept = kept if self._same_sampling else np.where(rows.firsts, kept, np.nan)
        if covariates is None:
            return kept
        return np.concatenate((kept, np.where(rows.firsts, covariates, np.nan)))

    def invalid_reason(self) -> str | None:
        """Why the metric is INVALID now; None: it is not."""
        unfit = None if self.own_range is None else self.own_range.invalid_reason()
        return self.presence.reason() or self.covariates.reason() or unfit

    def doubt(self) -> str | None:
        """Why nothing is proven by its values now, though it may be chance; None: no reason."""
        if self.presence.is_uneven:
            return "more values are missing on one arm than chance explains"
        return None if self.own_range is None else self.own_range.doubt()

    @property
    def unexplained_share(self) -> float:
        """Share of answers without a value, where no sampling is stated; 0 where one is."""
        if self._is_sampled or self.presence.rows == 0:
            return 0.0
        return 1.0 - self.presence.present / self.presence.rows

    def void_since(self) -> float:
        """Sequence number from which its values say nothing: missing, or with other covariates, by arm."""
        differing = self.covariates.decision
        unbalanced = math.inf if differing is None or not differing.is_reached else float(differing.seq)
        return min(self.presence.differs_since, unbalanced)

    def interval(self, gate: Gate) -> tuple[float, float] | None:
        """The interval of the ratio of rates (percentile: of the shares above it) or medians (shape), or of
        the difference of scores; None: no evidence yet."""
        if gate.kind is Kind.MEAN:
            return None
        column = self._bets.tail_columns.get(gate.name, self.columns[0])
        return column.first.estimate.interval() if column.first.estimate is not None else None

    def count(self, rows: Rows, raw: Floats, unanswered: NDArray[np.bool_]) -> Floats:
        """Count present and missing values, and sum them for display; return which are missing (or present,
        if those are rarer), NaN where no value is expected. raw: comparable values."""
        present = ~np.isnan(raw)
        if self.own_range is not None:
            self.own_range.count(rows, raw, present)
        missing = np.full(len(rows), np.nan)
        if not self.is_alarm:  # an alarm's values may be missing
            expected = rows.w > 0.0
            if self.name not in OUTCOMES:
                expected &= ~unanswered
            if self.takes_values:
                expected &= ~rows.cold
            self.presence.count(present, expected, rows.firsts, rows.at_s)
            if self.lacking is not None:
                self.lacking.count(rows.arm[expected], rows.stage[expected], present[expected])
            missing = self.presence.indicator(present, expected)
        w = judged_probability(self._sampling, rows.w)
        self.points.add(rows.arm, w, raw)
        for arm in (0, 1):
            chosen = raw[(rows.arm == arm) & present & (rows.w > 0.0)]
            self.sums[arm] = np.add.accumulate(np.concatenate(([self.sums[arm]], chosen)))[-1]
            self.counts[arm] += len(chosen)
        return missing

    def add_pair(self, *, draw: int, at_s: float, scores: tuple[float, float], seq: int, canary: int) -> None:
        """Bet on one mirrored pair: stable's score and the canary's."""
        lower = CATALOGUE[self.name].lower_is_better
        for gate, stream in zip(self._bets.pair_gates, self.pairs, strict=True):
            y = pair_harm(*scores, tolerance=gate.tolerance, lower_is_better=lower)
            stream.feed(UnitBlock.one(draw=draw, at_s=at_s, y=y, seq=seq, canary=canary))
