"""Evidence of one metric: its derived columns, the streams they feed, and the channels of its gates.

For rollback, a gate bets on up to three channels (first requests or first events; session means; mirrored
pairs), each with a part of its alpha; for promotion on one for each margin that some stage must prove. First
events and capped counts never promote.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.estimates import Estimate, EventCounts, MeanGap, MedianRatio
from evaluation.betting.histogram import LogHistogram
from evaluation.betting.latency import Exceedance, ShapeLoss, ShapeProof, below_the_cut
from evaluation.betting.rates import FirstEvents, RateProof, SessionCounts, SessionMeans
from evaluation.betting.scores import PairLoss, ScoreLoss, ScoreProof
from evaluation.betting.wealth import Bettor, Block, Channel, Floats
from evaluation.metrics import VALUES, Kind
from evaluation.policy.alpha_split import channel_alphas, log_limit
from evaluation.policy.gates import Gate, Sampling
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S
from evaluation.stream import Stream
from evaluation.units.missingness import Presence
from evaluation.units.sessions import Rows, Sessions

MIN_FOR_SLOWDOWN = 200  # values of stable, both before and during the canary
OPTIONAL = VALUES - {"latency_ms"}  # some answers are not streamed, and some engines do not count tokens
Use = Literal["first", "session", "pairs", "proof"]


@dataclass(frozen=True, slots=True)
class Track:
    """A channel of a gate and its use. `margin` and `floor`: of a proof; 0 otherwise.

    `staged`: the stream whose current stage the proof is about; None: it continues through all stages.
    """

    gate: Gate
    use: Use
    channel: Channel
    margin: float = 0.0
    floor: float = 0.0
    staged: Stream | None = None


class Column:
    """Streams of one derived column: the first request or event of each draw, and the session means."""

    __state__ = ("first", "units")

    def __init__(self, *, by_event: bool, with_histogram: bool, estimate: Estimate | None = None) -> None:
        self.by_event = by_event
        self.first = Stream(with_histogram=with_histogram, estimate=estimate)
        self.units = Stream(with_histogram=with_histogram)


class MetricEvidence:
    """The columns and channels of one metric under one policy."""

    __state__ = (
        "columns",
        "exceedances",
        "presence",
        "pairs",
        "canary_values",
        "sums",
        "counts",
        "stable_logs",
    )

    def __init__(
        self, metric: str, policy: GatePolicy, proofs: Mapping[str, Sequence[tuple[float, float]]]
    ) -> None:
        self.name = metric
        self.gates = policy.gates_for(metric)
        self.takes_values = metric in VALUES
        self.is_alarm = all(gate.is_alarm for gate in self.gates)
        self._longest = SETTLE_S * 1000.0 if metric == "latency_ms" else math.inf
        self._restart_share = policy.restart_share
        self._proof_limit = log_limit(policy.promotion_alpha)
        self._min_proof_canary = policy.proof_canary
        self.tracks: list[Track] = []
        self.columns: list[Column] = []
        self.exceedances: list[Exceedance] = []
        self._divisors: list[tuple[float, ...]] = []  # of each exceedance: the tolerance, then the margins
        self._has_shape_columns = False
        self._tail_columns: dict[str, Column] = {}  # by percentile gate
        self.pairs = Stream(with_histogram=False)
        sampling = self.gates[0].sampling
        self._sampling = sampling
        self._same_sampling = sampling.stable == sampling.canary
        sampled = sampling.stable < 1.0 or sampling.canary < 1.0 or any(g.presence_gated for g in self.gates)
        self.presence = Presence(
            on_present=sampled,
            max_missing=1.0 if sampled or metric in OPTIONAL else policy.max_missing,
        )
        self.canary_values = LogHistogram() if self.takes_values else None  # None: its mean is displayed
        self.sums: Floats = np.zeros(2)
        self.counts: Floats = np.zeros(2)
        self.stable_logs: Floats = np.zeros((2, 2))  # before, during the canary: sum of logarithms, count
        for gate in self.gates:
            self._add_gate(gate, policy, proofs.get(gate.name, ()))

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
            if track.use != "proof":
                parts = channel_alphas(policy, track.gate, sticky=sticky)
                track.channel.decision.limit = log_limit(getattr(parts, track.use))
                track.channel.is_idle = track.use == "session" and not sticky

    def comparable(self, raw: Floats, failed: NDArray[np.bool_], rows: Rows) -> Floats:
        """The raw values that can be compared: no latency of cold rows, and no score of a failed request."""
        if self.takes_values:
            return np.where(rows.cold, np.nan, raw) if rows.cold.any() else raw
        return np.where(failed, np.nan, raw) if self.name != "error" and failed.any() else raw

    def values(self, raw: Floats, failed: NDArray[np.bool_], rows: Rows) -> Floats:
        """The metric's columns (C x n). raw: values, NaN where missing."""
        if not self.takes_values:
            return raw[None, :]
        waited = np.where(failed, np.nan, raw)  # failing fast must not look fast
        slowest = np.where(failed & ~rows.cold, np.inf, raw)
        if self._longest < math.inf:
            # Rollback uses the wait censored on both arms, before the tolerance divides it: infinite on both
            # would make a tolerable canary worse where the limit lies among stable's values. A proof counts
            # censored values as slowest, or the canary's, divided by the margin, would look fast.
            slowest = np.where(raw >= self._longest, np.inf, slowest)
            waited = np.minimum(waited, self._longest)
        out = [waited, slowest] if self._has_shape_columns else []
        for exceedance, divisors in zip(self.exceedances, self._divisors, strict=True):
            out.extend(exceedance.of(waited, slowest, rows.arm, divisors))
        return np.stack(out)

    def can_skip(self, raw: Floats) -> bool:
        """Whether these are values of an alarm, all missing: nothing depends on them."""
        return self.is_alarm and bool(np.isnan(raw).all())

    def feed_firsts(self, rows: Rows, columns: Floats, sessions: Sessions, first_column: int) -> None:
        """Feed the streams of first requests and events. sessions: without these rows yet; it has this
        metric's columns from `first_column` on."""
        w = judged_probability(self._sampling, rows.w)
        for index, (column, y) in enumerate(zip(self.columns, columns, strict=True), start=first_column):
            if not column.first.channels:
                continue
            chosen = ~np.isnan(y)
            if not rows.all_single:
                chosen &= _first_events(rows, y, sessions, index) if column.by_event else rows.position == 1
            column.first.feed(rows.block(y, chosen, w))

    def feed_units(self, blocks: Sequence[Block]) -> None:
        """Feed the session means, a block for each column."""
        for column, block in zip(self.columns, blocks, strict=True):
            if column.units.channels or column.units.staged:
                w = judged_probability(self._sampling, block.w)
                column.units.feed(block if self._same_sampling else block.with_w(w))

    def session_values(self, columns: Floats, rows: Rows) -> Floats:
        """The columns as sessions sum them: first requests alone where the arms are sampled differently."""
        if self._same_sampling:
            return columns
        return np.where(rows.position == 1, columns, np.nan)

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

    def count(self, rows: Rows, raw: Floats, failed: NDArray[np.bool_]) -> None:
        """Count present and missing values, and sum them for display."""
        present = ~np.isnan(raw)
        expected = (rows.w > 0.0) & ~((failed | rows.cold) & self.takes_values)
        if not self.is_alarm:  # an alarm's values may be missing
            w = judged_probability(self._sampling, rows.w)
            self.presence.feed(rows.block(present.astype(np.float64), expected, w))
        if self.takes_values:
            stable = ~rows.arm & ~failed
            self._add_logs(0, raw[stable & (rows.w == 0.0)])
            self._add_logs(1, raw[stable & (rows.w > 0.0)])
        for arm in (0, 1):
            chosen = raw[(rows.arm == arm) & present & (rows.w > 0.0)]
            self.sums[arm] = np.add.accumulate(np.concatenate(([self.sums[arm]], chosen)))[-1]
            self.counts[arm] += len(chosen)
            if arm and self.canary_values is not None:
                self.canary_values.add(chosen[np.isfinite(chosen)])

    def _add_gate(self, gate: Gate, policy: GatePolicy, proofs: Sequence[tuple[float, float]]) -> None:
        match gate.kind:
            case Kind.RATE | Kind.SCORE:
                if not self.columns:
                    estimate = EventCounts() if gate.kind is Kind.RATE else MeanGap()
                    by_event = gate.kind is Kind.RATE
                    self.columns.append(Column(by_event=by_event, with_histogram=False, estimate=estimate))
                self._add_bounded(gate, policy, self.columns[0], proofs)
            case Kind.SHAPE:
                self._add_shape(gate, proofs)
            case Kind.PERCENTILE:
                self._add_percentile(gate, policy, proofs)

    def _add_bounded(
        self, gate: Gate, policy: GatePolicy, column: Column, proofs: Sequence[tuple[float, float]]
    ) -> None:
        if gate.kind is Kind.SCORE:
            first, session = (ScoreLoss(tolerance=gate.tolerance, threshold=gate.threshold) for _ in range(2))
            self._rollback(gate, "first", column.first, first)
            self._rollback(gate, "session", column.units, session)
        else:
            self._rollback(gate, "first", column.first, FirstEvents(tolerance=gate.tolerance))
            self._rollback(gate, "session", column.units, _session_bettor(gate, policy))
        if gate.mirrored:
            self._rollback(gate, "pairs", self.pairs, PairLoss(tolerance=gate.tolerance))
            self.tracks[-1].channel.decision.limit = log_limit(
                channel_alphas(policy, gate, sticky=False).pairs
            )
        for margin, floor in proofs:
            is_score = gate.kind is Kind.SCORE
            proof = ScoreProof(margin=margin) if is_score else RateProof(ratio=margin, floor=floor)
            self._proof(gate, column.units, proof, margin, floor, staged=False)

    def _add_shape(self, gate: Gate, proofs: Sequence[tuple[float, float]]) -> None:
        if not self._has_shape_columns:
            self._has_shape_columns = True
            estimates = (MedianRatio(), None)
            self.columns[:0] = [Column(by_event=False, with_histogram=True, estimate=e) for e in estimates]
        waited, slowest = self.columns[:2]
        self._rollback(gate, "first", waited.first, self._shape_loss(gate))
        self._rollback(gate, "session", waited.units, self._shape_loss(gate))
        for margin, floor in proofs:
            self._proof(gate, slowest.units, ShapeProof(margin=margin), margin, floor, staged=True)

    def _shape_loss(self, gate: Gate) -> ShapeLoss:
        return ShapeLoss(tolerance=gate.tolerance, longest=self._longest)

    def _add_percentile(self, gate: Gate, policy: GatePolicy, proofs: Sequence[tuple[float, float]]) -> None:
        assert gate.percentile is not None
        highest = below_the_cut(self._longest, 1.0 + gate.tolerance)
        self.exceedances.append(Exceedance(percentile=gate.percentile, highest=highest))
        self._divisors.append((1.0 + gate.tolerance, *(margin for margin, _ in proofs)))
        column = Column(by_event=True, with_histogram=False, estimate=EventCounts())
        self.columns.append(column)
        self._tail_columns[gate.name] = column
        self._rollback(gate, "first", column.first, FirstEvents(tolerance=0.0))
        self._rollback(gate, "session", column.units, SessionCounts(max_events=policy.session_requests))
        for margin, floor in proofs:
            proof_column = Column(by_event=True, with_histogram=False)
            self.columns.append(proof_column)
            self._proof(gate, proof_column.units, RateProof(ratio=1.0, floor=0.0), margin, floor, staged=True)

    def _rollback(self, gate: Gate, use: Use, stream: Stream, bettor: Bettor) -> None:
        channel = Channel(bettor, limit=float("inf"), restart_share=self._restart_share)
        stream.channels.append(channel)
        self.tracks.append(Track(gate, use, channel))

    def _proof(
        self, gate: Gate, stream: Stream, bettor: Bettor, margin: float, floor: float, *, staged: bool
    ) -> None:
        channel = Channel(bettor, limit=self._proof_limit, min_canary=self._min_proof_canary)
        (stream.staged if staged else stream.channels).append(channel)
        self.tracks.append(Track(gate, "proof", channel, margin, floor, stream if staged else None))


def judged_probability(sampling: Sampling, w: Floats) -> Floats:
    """P(canary) of a unit given that it was judged, from its P(canary) `w`."""
    if sampling.stable == sampling.canary:
        return w
    canary = w * sampling.canary
    return canary / (canary + (1.0 - w) * sampling.stable)


def _session_bettor(gate: Gate, policy: GatePolicy) -> Bettor:
    if gate.tolerance > 0.0:
        return SessionMeans(tolerance=gate.tolerance)
    return SessionCounts(max_events=policy.session_requests)


def _first_events(rows: Rows, y: Floats, sessions: Sessions, column: int) -> NDArray[np.bool_]:
    """Which rows are a draw's first event, or its first request if that has none."""
    chosen: NDArray[np.bool_] = (rows.position == 1) & ~(y > 0.0)
    events = np.flatnonzero(y > 0.0)
    if len(events) == 0:
        return chosen
    _, first = np.unique(rows.draw[events], return_index=True)
    events = events[first]
    chosen[events[~sessions.has_event(rows.draw[events], column)]] = True
    return chosen
