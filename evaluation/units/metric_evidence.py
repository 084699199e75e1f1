"""Evidence of one metric: its derived columns, the streams they feed, and the channels of its gates.

For rollback, a gate bets on up to three channels (first requests; sessions; mirrored pairs), each with a part
of its alpha. For promotion it bets on sessions for each margin that some stage must prove, on the units of
that stage; and, where units are sticky, on their first requests too, which alone speak once the arms'
conversations are known to differ in length (`TurnsBet`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.bettors import loss_bettor
from evaluation.betting.estimates import Estimate, EventCounts, MeanGap, MedianRatio
from evaluation.betting.histogram import LogHistogram
from evaluation.betting.latency import Exceedance, ShapeProof, below_the_cut
from evaluation.betting.rates import RateProof
from evaluation.betting.scores import PairLoss, ScoreProof, pair_harm
from evaluation.betting.unit_block import Floats, UnitBlock
from evaluation.betting.wealth import Bettor, Channel
from evaluation.metrics import CATALOGUE, UNANSWERED, VALUES, Kind
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.gates import Gate, Proof, Sampling
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S
from evaluation.stream import Stream
from evaluation.units.answered import ScoredShare
from evaluation.units.missingness import Presence
from evaluation.units.sessions import Released, Rows

MIN_FOR_SLOWDOWN = 200  # values of stable, both before and during the canary
OPTIONAL = VALUES - {"latency_ms"}  # some answers are not streamed, and some engines do not count tokens
Use = Literal["first", "session", "pairs", "proof", "first proof"]
ROLLBACK_USES = frozenset({"first", "session", "pairs"})


@dataclass(frozen=True, slots=True)
class Track:
    """A channel of a gate and its use. `proof`: what it proves; None: it rolls back.

    `staged`: the stream whose current stage the proof is about; None: it continues through all stages.
    `failed_as`: the score of requests without an answer in this channel; None: they have their own rule.
    """

    gate: Gate
    use: Use
    channel: Channel
    proof: Proof | None = None
    staged: Stream | None = None
    failed_as: float | None = None

    @property
    def margin(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.margin

    @property
    def floor(self) -> float:
        """Of the proof; 0 for a rollback."""
        return 0.0 if self.proof is None else self.proof.floor


@dataclass(frozen=True, slots=True)
class Gaps:
    """The arms' difference of answered shares before each row or session: shrunk, and without its noise."""

    shrunk: Floats
    certain: Floats


class Column:
    """Streams of one derived column: the first request of each draw, and the sessions."""

    __state__ = ("first", "units")

    def __init__(self, *, with_histogram: bool, estimate: Estimate | None = None) -> None:
        self.with_histogram = with_histogram
        self.first = Stream(with_histogram=with_histogram, estimate=estimate)
        self.units = Stream(with_histogram=with_histogram)


class MetricEvidence:
    """The columns and channels of one metric under one policy."""

    __state__ = (
        "columns",
        "score_proofs",
        "scored",
        "exceedances",
        "presence",
        "pairs",
        "canary_values",
        "sums",
        "counts",
        "stable_logs",
    )

    def __init__(self, metric: str, policy: GatePolicy, proofs: Mapping[str, Sequence[Proof]]) -> None:
        self.name = metric
        self.gates = policy.gates_for(metric)
        self.takes_values = metric in VALUES
        self.is_alarm = all(gate.is_alarm for gate in self.gates)
        self._longest = SETTLE_S * 1000.0 if metric == "latency_ms" else math.inf
        self._restart_share = policy.restart_share
        self._failures = policy.tolerated_failures()
        self._proof_limit = log_limit(policy.promotion_alpha)
        self._min_proof_canary = policy.proof_canary
        self.tracks: list[Track] = []
        self.columns: list[Column] = []
        self.exceedances: list[Exceedance] = []
        self._divisors: list[tuple[float, ...]] = []  # of each exceedance: the tolerance, then the margins
        self._has_shape_columns = False
        self._tail_columns: dict[str, Column] = {}  # by percentile gate
        self.score_proofs: list[Column] = []  # one where scores are proven: with requests without an answer
        self.scored = ScoredShare()
        self.pairs: list[Stream] = []  # of mirrored answers, one a gate that reserves alpha for them
        self._pair_gates: list[Gate] = []
        sampling = self.gates[0].sampling
        self._sampling = sampling
        self._same_sampling = sampling.stable == sampling.canary
        sampled = sampling.stable < 1.0 or sampling.canary < 1.0 or any(g.presence_gated for g in self.gates)
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
        self.canary_values = LogHistogram() if self.takes_values else None  # None: its mean is displayed
        self.sums: Floats = np.zeros(2)
        self.counts: Floats = np.zeros(2)
        self.stable_logs: Floats = np.zeros((2, 2))  # before, during the canary: sum of logarithms, count
        for gate in self.gates:
            self._add_gate(gate, proofs.get(gate.name, ()))
        for track in self.tracks:
            if track.use == "pairs":  # they may come before the first bet
                parts = channel_alphas(policy, track.gate, sticky=False)
                track.channel.decision.limit = log_limit(parts.pairs)

    @property
    def width(self) -> int:
        """Number of columns that the sessions keep: its own, one for missing values, and, where scores are
        proven, one for the weights of failures."""
        return len(self.columns) + 1 + len(self.score_proofs)

    def seed(self, values: Floats) -> None:
        """Learn stable's own values from before the rollout."""
        if self.takes_values:
            self._add_logs(0, values)
        for column in self.columns:
            if column.first.stable.histogram is not None:
                column.first.seed(values)
                column.units.seed(values)
        for exceedance in self.exceedances:
            exceedance.seed(values)

    def set_limits(self, policy: GatePolicy, *, sticky: bool) -> None:
        """Split each gate's alpha over its channels, before the first bet."""
        for track in self.tracks:
            if track.use == "first proof":
                track.channel.is_idle = not sticky
            elif track.use != "proof":
                parts = channel_alphas(policy, track.gate, sticky=sticky)
                track.channel.decision.limit = log_limit(getattr(parts, track.use))
                track.channel.is_idle = track.use == "session" and not sticky

    def comparable(self, raw: Floats, unanswered: NDArray[np.bool_], rows: Rows) -> Floats:
        """The raw values that can be compared: no latency of cold rows, and none of an unanswered request."""
        if self.takes_values:
            raw = np.where(rows.cold, np.nan, raw) if rows.cold.any() else raw
        if self.name in UNANSWERED or not unanswered.any():
            return raw
        return np.where(unanswered, np.nan, raw)

    def values(self, raw: Floats, unanswered: NDArray[np.bool_], rows: Rows) -> Floats:
        """The metric's columns (C x n). raw: comparable values, NaN where missing."""
        if not self.takes_values:
            return raw[None, :]
        # Failing fast must not look fast: an unanswered request is slowest, on both arms. Rollback uses the
        # wait of others censored on both arms, before the tolerance divides it: infinite on both would make a
        # tolerable canary worse where the limit lies among stable's values. A proof counts censored values as
        # slowest, or the canary's, divided by the margin, would look fast.
        slowest = np.where(unanswered & ~rows.cold, np.inf, raw)
        waited = slowest
        if self._longest < math.inf:
            waited = np.where(np.isinf(slowest), slowest, np.minimum(slowest, self._longest))
            slowest = np.where(raw >= self._longest, np.inf, slowest)
        out = [waited, slowest] if self._has_shape_columns else []
        for exceedance, divisors in zip(self.exceedances, self._divisors, strict=True):
            events = exceedance.of(waited, slowest, rows.arm, divisors)
            if self._failures > 1.0:
                excused = np.isinf(waited) & rows.arm & ~np.isnan(events[0])
                events[0][excused] = exceedance.discounted(self._failures)
            out.extend(events)
        return np.stack(out)

    def can_skip(self, raw: Floats) -> bool:
        """Whether these are values of an alarm, all missing: nothing depends on them."""
        return self.is_alarm and not self.score_proofs and bool(np.isnan(raw).all())

    def feed_firsts(self, rows: Rows, columns: Floats, gaps: Gaps | None) -> None:
        """Feed the streams of first requests."""
        w, gap = judged_probability(self._sampling, rows.w), self._gap(gaps)
        for column, y in zip(self.columns, columns, strict=True):
            if column.first.channels or column.first.staged:
                column.first.feed(rows.first_block(y, w, gap))

    def feed_units(self, released: Released, first_column: int, gaps: Gaps | None) -> None:
        """Feed the sessions; they have this metric's columns from `first_column` on."""
        w = None if self._same_sampling else judged_probability(self._sampling, released.w)
        gap = self._gap(gaps)
        for index, column in enumerate(self.columns, start=first_column):
            if column.units.channels or column.units.staged:
                column.units.feed(released.block(index, w, gap, single_values=column.with_histogram))
        after = first_column + len(self.columns)
        if not self.is_alarm:
            self.presence.feed(released, after, w)
        for column in self.score_proofs:
            column.units.feed(released.block_with_failures(first_column, after + 1, w))

    def failure_weights(self, raw: Floats, unanswered: NDArray[np.bool_], arm: NDArray[np.bool_]) -> Floats:
        """Weight in a proof of each request without an answer: the share of answers that are scored, as known
        before it. 0 for the others. raw: comparable values."""
        shares = self.scored.of(~np.isnan(raw), ~unanswered)
        if not self._same_sampling:
            shares = np.where(arm, self._sampling.canary, self._sampling.stable)
        return np.where(unanswered, shares, 0.0)

    def feed_first_scores(self, rows: Rows, raw: Floats, weights: Floats) -> None:
        """Feed the proofs of scores by first requests. weights: of failures, 0 for answers."""
        w = judged_probability(self._sampling, rows.w)
        for column in self.score_proofs:
            column.first.feed(rows.first_block_with_failures(raw, weights, w))

    def _gap(self, gaps: Gaps | None) -> Floats | None:
        """What missing answers can hide from this metric; None: nothing, or no request was unanswered."""
        if gaps is None or self.takes_values or self.name in UNANSWERED:
            return None
        return gaps.shrunk if self.gates[0].kind is Kind.SCORE else gaps.certain

    def session_values(self, columns: Floats, missing: Floats, weights: Floats | None, rows: Rows) -> Floats:
        """The columns as sessions keep them: first requests alone where the arms are sampled differently."""
        kept = np.concatenate((columns, missing[None, :]))
        if weights is not None:
            kept = np.concatenate((kept, weights[None, :]))
        return kept if self._same_sampling else np.where(rows.firsts, kept, np.nan)

    def interval(self, gate: Gate) -> tuple[float, float] | None:
        """The interval of the ratio of rates (percentile: of the shares above it) or medians (shape), or of
        the difference of scores; None: no evidence yet."""
        column = self._tail_columns.get(gate.name, self.columns[0])
        return column.first.estimate.interval() if column.first.estimate is not None else None

    @property
    def stable_values(self) -> LogHistogram:
        """Stable's values so far: of all requests where a percentile is gated, else of first requests."""
        stable = self.exceedances[0].stable if self.exceedances else self.columns[0].first.stable
        assert stable.histogram is not None
        return stable.histogram

    def slowdown(self) -> float:
        """Ratio of stable's geometric means, during the canary over before it; 1 while values are few."""
        (before, n_before), (during, n_during) = self.stable_logs.tolist()
        if min(n_before, n_during) < MIN_FOR_SLOWDOWN:
            return 1.0
        return math.exp(during / n_during - before / n_before)

    def _add_logs(self, during: int, values: Floats) -> None:
        logs = np.log(np.maximum(values[np.isfinite(values)], 1e-9))
        total, count = self.stable_logs[during]
        self.stable_logs[during] = np.add.accumulate(np.concatenate(([total], logs)))[-1], count + len(logs)

    def count(self, rows: Rows, raw: Floats, unanswered: NDArray[np.bool_]) -> Floats:
        """Count present and missing values, and sum them for display; return which are missing (or present,
        if those are rarer), NaN where no value is expected. raw: comparable values."""
        present = ~np.isnan(raw)
        missing = np.full(len(rows), np.nan)
        if not self.is_alarm:  # an alarm's values may be missing
            expected = rows.w > 0.0
            if self.name not in UNANSWERED:
                expected &= ~unanswered
            if self.takes_values:
                expected &= ~rows.cold
            self.presence.count(present, expected, rows.firsts, rows.at_s)
            missing = self.presence.indicator(present, expected)
        if self.takes_values:
            stable = ~rows.arm & ~unanswered
            self._add_logs(0, raw[stable & (rows.w == 0.0)])
            self._add_logs(1, raw[stable & (rows.w > 0.0)])
        for arm in (0, 1):
            chosen = raw[(rows.arm == arm) & present & (rows.w > 0.0)]
            self.sums[arm] = np.add.accumulate(np.concatenate(([self.sums[arm]], chosen)))[-1]
            self.counts[arm] += len(chosen)
            if arm and self.canary_values is not None:
                self.canary_values.add(chosen[np.isfinite(chosen)])
        return missing

    def add_pair(self, *, draw: int, at_s: float, scores: tuple[float, float], seq: int, canary: int) -> None:
        """Bet on one mirrored pair: stable's score and the canary's."""
        lower = CATALOGUE[self.name].lower_is_better
        for gate, stream in zip(self._pair_gates, self.pairs, strict=True):
            y = pair_harm(*scores, tolerance=gate.tolerance, lower_is_better=lower)
            stream.feed(UnitBlock.one(draw=draw, at_s=at_s, y=y, seq=seq, canary=canary))

    def _add_gate(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        match gate.kind:
            case Kind.RATE | Kind.SCORE:
                if not self.columns:
                    estimate = EventCounts() if gate.kind is Kind.RATE else MeanGap()
                    self.columns.append(Column(with_histogram=False, estimate=estimate))
                self._add_bounded(gate, self.columns[0], proofs)
            case Kind.SHAPE:
                self._add_shape(gate, proofs)
            case Kind.PERCENTILE:
                self._add_percentile(gate, proofs)

    def _add_bounded(self, gate: Gate, column: Column, proofs: Sequence[Proof]) -> None:
        self._add_loss(gate, column)
        if gate.mirrored:
            lower = CATALOGUE[self.name].lower_is_better
            self._pair_gates.append(gate)
            self.pairs.append(Stream(with_histogram=False))
            bettor = PairLoss(tolerance=gate.tolerance, lower_is_better=lower)
            self._rollback(gate, "pairs", self.pairs[-1], bettor)
        for proof in proofs:
            if gate.kind is Kind.SCORE:
                self._add_score_proof(gate, proof)
            else:
                self._add_proof(gate, column, proof, lambda p: RateProof(ratio=p.margin, floor=p.floor))

    def _add_shape(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        if not self._has_shape_columns:
            self._has_shape_columns = True
            estimates = (MedianRatio(), None)
            self.columns[:0] = [Column(with_histogram=True, estimate=e) for e in estimates]
        waited, slowest = self.columns[:2]
        self._add_loss(gate, waited)
        for proof in proofs:
            self._add_proof(gate, slowest, proof, lambda p: ShapeProof(margin=p.margin))

    def _add_percentile(self, gate: Gate, proofs: Sequence[Proof]) -> None:
        assert gate.percentile is not None
        highest = below_the_cut(self._longest, 1.0 + gate.tolerance)
        self.exceedances.append(Exceedance(percentile=gate.percentile, highest=highest))
        self._divisors.append((1.0 + gate.tolerance, *(proof.margin for proof in proofs)))
        column = Column(with_histogram=False, estimate=EventCounts())
        self.columns.append(column)
        self._tail_columns[gate.name] = column
        self._add_loss(gate, column)
        for proof in proofs:
            proof_column = Column(with_histogram=False)
            self.columns.append(proof_column)
            self._add_proof(gate, proof_column, proof, lambda _: RateProof(ratio=1.0, floor=0.0))

    def _add_loss(self, gate: Gate, column: Column) -> None:
        """The channels of first requests and of sessions that roll back."""
        for is_first in (True, False):
            bettor = loss_bettor(
                gate.kind,
                tolerance=gate.tolerance,
                threshold=gate.threshold,
                longest=self._longest,
                failures=self._failures,
                sessions=not is_first,
            )
            self._rollback(
                gate, "first" if is_first else "session", column.first if is_first else column.units, bettor
            )

    def _rollback(self, gate: Gate, use: Use, stream: Stream, bettor: Bettor) -> None:
        channel = Channel(bettor, limit=float("inf"), restart_share=self._restart_share)
        stream.channels.append(channel)
        self.tracks.append(Track(gate, use, channel))

    def _add_score_proof(self, gate: Gate, proof: Proof) -> None:
        """The channels that prove a margin of a score, both if failures score 0 and if they score 1."""
        if not self.score_proofs:
            self.score_proofs.append(Column(with_histogram=False))
        [column] = self.score_proofs
        for failed_as in (0.0, 1.0):
            bettor = partial(_score_proof, failed_as)
            self._add_proof(gate, column, proof, bettor, failed_as=failed_as)

    def _add_proof(
        self,
        gate: Gate,
        column: Column,
        proof: Proof,
        bettor: Callable[[Proof], Bettor],
        failed_as: float | None = None,
    ) -> None:
        """The channels of sessions and of first requests that prove a margin."""
        for is_first in (False, True):
            stream = column.first if is_first else column.units
            channel = Channel(bettor(proof), limit=self._proof_limit, min_canary=self._min_proof_canary)
            channel.is_idle = is_first  # until units are known to be sticky
            (stream.channels if proof.is_whole else stream.staged).append(channel)
            use: Use = "first proof" if is_first else "proof"
            staged = None if proof.is_whole else stream
            self.tracks.append(Track(gate, use, channel, proof, staged, failed_as))


def _score_proof(failed_as: float, proof: Proof) -> Bettor:
    return ScoreProof(margin=proof.margin, failed_as=failed_as)


def judged_probability(sampling: Sampling, w: Floats) -> Floats:
    """P(canary) of a unit given that it was judged, from its P(canary) `w`."""
    if sampling.stable == sampling.canary:
        return w
    canary = w * sampling.canary
    return canary / (canary + (1.0 - w) * sampling.stable)
