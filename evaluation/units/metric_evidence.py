"""One metric's evidence: its columns, the streams they feed, and the channels of its gates.

A gate bets on up to three channels for rollback (first requests or first events; session means; mirrored
pairs), with parts of its alpha, and on one for each margin that some stage must prove. First events and
capped counts never promote.
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
from evaluation.policy.alpha import channel_alphas, log_limit
from evaluation.policy.gates import Gate, Sampling
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S
from evaluation.stream import Stream
from evaluation.units.missingness import Presence
from evaluation.units.sessions import Rows, Sessions

ENOUGH_VALUES = 200  # of stable, before and during, to compare it with itself
MAY_LACK = VALUES - {"latency_ms"}  # some answers are not streamed, and some engines do not count
Use = Literal["first", "session", "pairs", "proof"]


@dataclass(frozen=True, slots=True)
class Track:
    """A channel of a gate and what it is for. `margin` and `floor` of a proof; 0 otherwise.

    `staged`: the stream whose present stage the proof is about; None: it goes on through all stages.
    """

    gate: Gate
    use: Use
    channel: Channel
    margin: float = 0.0
    floor: float = 0.0
    staged: Stream | None = None


class Column:
    """One derived column: what happens with the first request or event of each draw, and with each
    session's mean."""

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
        self._least_canary = policy.proof_canary
        self.tracks: list[Track] = []
        self.columns: list[Column] = []
        self.exceedances: list[Exceedance] = []
        self._times: list[tuple[float, ...]] = []  # of each exceedance: the tolerance, then the margins
        self._has_shape_columns = False
        self._tail_columns: dict[str, Column] = {}  # by percentile gate
        self.pairs = Stream(with_histogram=False)
        sampling = self.gates[0].sampling
        self._sampling = sampling
        self._first_only = sampling.stable != sampling.canary
        sampled = sampling.stable < 1.0 or sampling.canary < 1.0 or any(g.presence_gated for g in self.gates)
        self.presence = Presence(
            on_present=sampled,
            most_missing=1.0 if sampled or metric in MAY_LACK else policy.max_missing,
        )
        self.canary_values = LogHistogram() if self.takes_values else None  # None: a mean says it all
        self.sums: Floats = np.zeros(2)
        self.counts: Floats = np.zeros(2)
        self.stable_logs: Floats = np.zeros(
            (2, 2)
        )  # before and during the canary: sum of logarithms, and how many
        for gate in self.gates:
            self._add_gate(gate, policy, proofs.get(gate.name, ()))

    def seed(self, values: Floats) -> None:
        """Stable's own values from before the rollout."""
        if self.takes_values:
            self._add_logs(0, values)
        for column in self.columns:
            if column.first.stable.histogram is not None:
                column.first.seed(values)
                column.units.seed(values)
        for exceedance in self.exceedances:
            exceedance.seed(values)

    def set_limits(self, policy: GatePolicy, *, sticky: bool) -> None:
        """Fix how each gate's alpha is cut, before the first bet."""
        for track in self.tracks:
            if track.use != "proof":
                parts = channel_alphas(policy, track.gate, sticky=sticky)
                track.channel.decision.limit = log_limit(getattr(parts, track.use))
                track.channel.is_idle = track.use == "session" and not sticky

    def comparable(self, raw: Floats, failed: NDArray[np.bool_], rows: Rows) -> Floats:
        """The raw values that say something of the versions: no latency from a cold cache, of either arm, and
        no score of an answer that did not come."""
        if self.takes_values:
            return np.where(rows.cold, np.nan, raw) if rows.cold.any() else raw
        return np.where(failed, np.nan, raw) if self.name != "error" and failed.any() else raw

    def values(self, raw: Floats, failed: NDArray[np.bool_], rows: Rows) -> Floats:
        """The metric's columns (C x n) from its raw values (NaN: missing) and which requests failed."""
        if not self.takes_values:
            return raw[None, :]
        waited = np.where(failed, np.nan, raw)  # failing fast must not look fast
        slowest = np.where(failed & ~rows.cold, np.inf, raw)
        if self._longest < math.inf:
            # Rollback sees the wait cut off on both arms, before the tolerance divides it: infinite on both
            # would make a tolerable canary worse where the cut lies among stable's values. A proof takes
            # what was cut off for the slowest, or the canary's, divided by the margin, would pass for fast.
            slowest = np.where(raw >= self._longest, np.inf, slowest)
            waited = np.minimum(waited, self._longest)
        out = [waited, slowest] if self._has_shape_columns else []
        for exceedance, times in zip(self.exceedances, self._times, strict=True):
            out.extend(exceedance.of(waited, slowest, rows.arm, times))
        return np.stack(out)

    def has_nothing(self, raw: Floats) -> bool:
        """Whether these values of an alarm can be passed over: they are all missing, and nothing waits for
        them."""
        return self.is_alarm and bool(np.isnan(raw).all())

    def take(
        self, rows: Rows, raw: Floats, columns: Floats, failed: NDArray[np.bool_], sessions: Sessions, at: int
    ) -> None:
        """Feed the first-channel streams and the counts; `sessions` holds these columns from `at`, before
        these rows."""
        self._count(rows, raw, failed)
        for index, (column, y) in enumerate(zip(self.columns, columns, strict=True)):
            if not column.first.channels:
                continue
            chosen = ~np.isnan(y)
            if not rows.all_single:
                chosen &= _first_events(rows, y, sessions, at + index) if column.by_event else rows.place == 1
            column.first.feed(rows.block(y, chosen, judged_coin(self._sampling, rows.w)))

    def take_units(self, blocks: Sequence[Block]) -> None:
        """Feed the session means, a block for each column."""
        for column, block in zip(self.columns, blocks, strict=True):
            if column.units.channels or column.units.staged:
                column.units.feed(
                    block if self._plain else block.with_w(judged_coin(self._sampling, block.w))
                )

    def session_values(self, columns: Floats, rows: Rows) -> Floats:
        """The columns as sessions sum them: first requests alone where the arms are judged at different
        rates."""
        if not self._first_only:
            return columns
        return np.where(rows.place == 1, columns, np.nan)

    def interval(self, gate: Gate) -> tuple[float, float] | None:
        """Of the ratio of rates (of a percentile: of the shares above it), of medians (shape), of the
        difference of scores; None: nothing can be said yet."""
        column = self._tail_columns.get(gate.name, self.columns[0])
        return column.first.estimate.interval() if column.first.estimate is not None else None

    @property
    def stable_values(self) -> LogHistogram:
        """Stable's values so far, of requests where a percentile is gated, else of first requests."""
        stable = self.exceedances[0].stable if self.exceedances else self.columns[0].first.stable
        assert stable.histogram is not None
        return stable.histogram

    @property
    def _plain(self) -> bool:
        return self._sampling.stable == self._sampling.canary

    def slowdown(self) -> float:
        """Stable beside the canary over stable before it, as a ratio of geometric means; 1 while either is
        little known."""
        (before, many), (during, enough) = self.stable_logs.tolist()
        if min(many, enough) < ENOUGH_VALUES:
            return 1.0
        return math.exp(during / enough - before / many)

    def _add_logs(self, when: int, values: Floats) -> None:
        logs = np.log(np.maximum(values[np.isfinite(values)], 1e-9))
        total, count = self.stable_logs[when]
        self.stable_logs[when] = np.add.accumulate(np.concatenate(([total], logs)))[-1], count + len(logs)

    def _count(self, rows: Rows, raw: Floats, failed: NDArray[np.bool_]) -> None:
        present = ~np.isnan(raw)
        asked = (rows.w > 0.0) & ~((failed | rows.cold) & self.takes_values)
        if not self.is_alarm:  # what never decides need not be there
            self.presence.feed(
                rows.block(present.astype(np.float64), asked, judged_coin(self._sampling, rows.w))
            )
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
            self._rollback(
                gate, "first", column.first, ScoreLoss(tolerance=gate.tolerance, threshold=gate.threshold)
            )
            self._rollback(
                gate, "session", column.units, ScoreLoss(tolerance=gate.tolerance, threshold=gate.threshold)
            )
        else:
            self._rollback(gate, "first", column.first, FirstEvents(tolerance=gate.tolerance))
            self._rollback(gate, "session", column.units, _session_bettor(gate, policy))
        if gate.mirrored:
            self._rollback(gate, "pairs", self.pairs, PairLoss(tolerance=gate.tolerance))
            self.tracks[-1].channel.decision.limit = log_limit(
                channel_alphas(policy, gate, sticky=False).pairs
            )
        for margin, floor in proofs:
            proof: Bettor
            proof = (
                ScoreProof(margin=margin) if gate.kind is Kind.SCORE else RateProof(ratio=margin, floor=floor)
            )
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
        self._times.append((1.0 + gate.tolerance, *(margin for margin, _ in proofs)))
        column = Column(by_event=True, with_histogram=False, estimate=EventCounts())
        self.columns.append(column)
        self._tail_columns[gate.name] = column
        self._rollback(gate, "first", column.first, FirstEvents(tolerance=0.0))
        self._rollback(gate, "session", column.units, SessionCounts(most=policy.session_requests))
        for margin, floor in proofs:
            proved = Column(by_event=True, with_histogram=False)
            self.columns.append(proved)
            self._proof(gate, proved.units, RateProof(ratio=1.0, floor=0.0), margin, floor, staged=True)

    def _rollback(self, gate: Gate, use: Use, stream: Stream, bettor: Bettor) -> None:
        channel = Channel(bettor, limit=float("inf"), restart_share=self._restart_share)
        stream.channels.append(channel)
        self.tracks.append(Track(gate, use, channel))

    def _proof(
        self, gate: Gate, stream: Stream, bettor: Bettor, margin: float, floor: float, *, staged: bool
    ) -> None:
        channel = Channel(bettor, limit=self._proof_limit, least_canary=self._least_canary)
        (stream.staged if staged else stream.channels).append(channel)
        self.tracks.append(Track(gate, "proof", channel, margin, floor, stream if staged else None))


def judged_coin(sampling: Sampling, w: Floats) -> Floats:
    """P(canary) of a unit, given that it was judged."""
    if sampling.stable == sampling.canary:
        return w
    canary = w * sampling.canary
    return canary / (canary + (1.0 - w) * sampling.stable)


def _session_bettor(gate: Gate, policy: GatePolicy) -> Bettor:
    if gate.tolerance > 0.0:
        return SessionMeans(tolerance=gate.tolerance)
    return SessionCounts(most=policy.session_requests)


def _first_events(rows: Rows, y: Floats, sessions: Sessions, column: int) -> NDArray[np.bool_]:
    """Where a draw's first event is, or its first request without one."""
    chosen: NDArray[np.bool_] = (rows.place == 1) & ~(y > 0.0)
    events = np.flatnonzero(y > 0.0)
    if len(events) == 0:
        return chosen
    _, first = np.unique(rows.draw[events], return_index=True)
    events = events[first]
    chosen[events[~sessions.has_event(rows.draw[events], column)]] = True
    return chosen
