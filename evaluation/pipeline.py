"""From settled requests to channels: draws, counts, the split's own test, and one lane for each deadline.

The one route that both a live rollout (`evaluator.py`) and a file (`backtest.py`) take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.sample_ratio import FallbackBet, ShareBet
from evaluation.betting.wealth import Block, Channel, Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.observed_range import RangeWatch, compared, watches
from evaluation.policy.alpha import log_limit
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream
from evaluation.units.metric_evidence import MetricEvidence
from evaluation.units.sessions import Rows, Sessions
from evaluation.units.units import HELD, LEFT_OUT, REQUEST, Units

NOW = "now"  # the lane of what is known when the request has settled


class Lane:
    """Metrics that settle together, and their sessions."""

    __state__ = ("sessions", "metrics", "ranges")

    def __init__(self, metrics: Sequence[MetricEvidence], policy: GatePolicy) -> None:
        self.metrics = list(metrics)
        self.ranges = watches(policy.observed_ranges, [metric.name for metric in metrics], alpha=policy.alpha)
        self.sessions = Sessions(
            sum(len(metric.columns) for metric in metrics),
            session_requests=policy.session_requests,
            session_s=policy.session_s,
        )

    def take(self, rows: Rows, raw: Mapping[str, Floats], failed: NDArray[np.bool_]) -> None:
        """Take requests in order of assignment; `raw`: values by metric, NaN where missing."""
        if len(rows) == 0 or not self.metrics:
            return
        parts = []
        at = 0
        for metric in self.metrics:
            if metric.has_nothing(raw[metric.name]):
                parts.append(np.full((len(metric.columns), len(rows)), np.nan))
                at += len(metric.columns)
                continue
            given = metric.comparable(raw[metric.name], failed, rows)
            columns = metric.values(given, failed, rows)
            metric.take(rows, given, columns, failed, self.sessions, at)
            parts.append(metric.session_values(columns, rows))
            at += len(columns)
            for watch in self.ranges:
                if watch.gate.metric == metric.name:
                    watch.take(rows, compared(given, failed))
        self._give(self.sessions.take(rows, np.concatenate(parts)))

    def close_through(self, through_s: float) -> None:
        """No request of this lane assigned before `through_s` is still to come."""
        if self.metrics:
            self._give(self.sessions.close_through(through_s))

    def _give(self, blocks: Sequence[Block]) -> None:
        at = 0
        for metric in self.metrics:
            metric.take_units(blocks[at : at + len(metric.columns)])
            at += len(metric.columns)


class Pipeline:
    """All evidence of one rollout, behind settlement."""

    __state__ = (
        "units",
        "lanes",
        "share",
        "fallback",
        "seq",
        "canary",
        "stable",
        "stage_canary",
        "stage_starts",
        "stage",
        "is_sticky",
        "was_sticky",
    )

    def __init__(self, policy: GatePolicy, stages: Sequence[StagePlan]) -> None:
        self.policy = policy
        proofs = proofs_by_gate(policy, stages)
        names = list(dict.fromkeys(gate.metric for gate in policy.gates))
        self.metrics = {name: MetricEvidence(name, policy, proofs) for name in names}
        self.lane_names = [NOW, *(name for name in names if CATALOGUE[name].arrives_later)]
        now = [metric for name, metric in self.metrics.items() if not CATALOGUE[name].arrives_later]
        later = [[self.metrics[name]] for name in self.lane_names[1:]]
        self.lanes = [Lane(metrics, policy) for metrics in (now, *later)]
        self.units = Units(session_requests=policy.session_requests, session_s=policy.session_s)
        self.share = Stream(with_histogram=False)
        self.share.channels = [Channel(ShareBet(), limit=log_limit(policy.served_share_alpha))]
        self.fallback = Stream(with_histogram=False)
        self.fallback.channels = [
            Channel(FallbackBet(most=1.0 - floor), limit=log_limit(policy.served_share_alpha))
            for floor in (policy.served_rate_rollback, policy.served_rate_hold)
        ]
        self.seq = 0
        self.canary = 0
        self.stable = 0
        self.stage = 0
        self.stage_canary = 0
        self.stage_starts: dict[int, float] = {}
        self._warmup_s = [stage.warmup_s for stage in stages]
        self.was_sticky = False  # a sticky unit was seen
        self.is_sticky = -1  # whether alpha is cut for sticky units; -1: not fixed, nothing was bet

    def draw(
        self,
        at_s: Floats,
        arm: NDArray[np.bool_],
        w: Floats,
        kind: Ints,
        unit: Ints,
        stage: Ints,
        fell_back: Floats,
    ) -> tuple[Rows, Ints]:
        """The requests that are evidence, and which they are. Arrays of equal length, in order of
        assignment."""
        seq = np.arange(self.seq, self.seq + len(at_s))
        drawn = self.units.resolve(at_s, arm, w, kind, unit, seq)
        counted = arm & (kind != LEFT_OUT) & (w > 0.0)
        canary = np.cumsum(counted) + self.canary
        self._fix_units(kind, drawn.place, drawn.w)
        self._count(arm, kind, w, stage, counted & (drawn.place > 0), counted)
        keep = np.flatnonzero(drawn.place > 0)
        rows = Rows(
            seq[keep],
            at_s[keep],
            arm[keep],
            drawn.w[keep],
            drawn.draw[keep],
            drawn.place[keep],
            kind[keep] == REQUEST,
            stage[keep],
            canary[keep],
            self._cold(at_s, w, stage)[keep],
        )
        self.share.feed(rows.block(np.zeros(len(rows)), (rows.place == 1) & (rows.w > 0.0), rows.w))
        told = fell_back[keep]
        self.fallback.feed(rows.block(told, rows.arm & ~np.isnan(told), rows.w))
        self.seq += len(at_s)
        return rows, keep

    def _cold(self, at_s: Floats, w: Floats, stage: Ints) -> NDArray[np.bool_]:
        """Requests within the warm-up of their stage, which begins with its first drawn request."""
        cold = np.zeros(len(at_s), dtype=np.bool_)
        for index in np.unique(stage[w > 0.0]).tolist():
            here = (stage == index) & (w > 0.0)
            start_s = self.stage_starts.setdefault(index, float(at_s[np.argmax(here)]))
            if index < len(self._warmup_s):
                cold |= here & (at_s < start_s + self._warmup_s[index])
        return cold

    @property
    def ranges(self) -> list[RangeWatch]:
        """The watches of all lanes' observed ranges."""
        return [watch for lane in self.lanes for watch in lane.ranges]

    def restore_limits(self) -> None:
        """Put the limits back that the first bet fixed."""
        if self.is_sticky >= 0:
            for metric in self.metrics.values():
                metric.set_limits(self.policy, sticky=bool(self.is_sticky))

    def _fix_units(self, kind: Ints, place: Ints, w: Floats) -> None:
        """Cut alpha for sticky units if one was seen up to and with the first unit that is bet: known
        before its coin."""
        if self.is_sticky >= 0:
            return
        bet = np.flatnonzero((place == 1) & (w > 0.0))
        through = int(bet[0]) + 1 if len(bet) else len(kind)
        self.was_sticky = self.was_sticky or bool((kind[:through] > REQUEST).any())
        if len(bet):
            self.is_sticky = int(
                self.was_sticky if self.policy.units == "auto" else self.policy.units == "sticky"
            )
            self.restore_limits()

    def _count(
        self,
        arm: NDArray[np.bool_],
        kind: Ints,
        w: Floats,
        stage: Ints,
        own: NDArray[np.bool_],
        counted: NDArray[np.bool_],
    ) -> None:
        self.canary += int(np.count_nonzero(counted))
        self.stable += int(np.count_nonzero(~arm & (kind != LEFT_OUT) & (w > 0.0)))
        if len(stage) and stage[-1] != self.stage:
            self.stage, self.stage_canary = int(stage[-1]), 0
        self.stage_canary += int(np.count_nonzero(own & (stage == self.stage) & (kind != HELD)))


def proofs_by_gate(policy: GatePolicy, stages: Sequence[StagePlan]) -> dict[str, list[tuple[float, float]]]:
    """The distinct (margin, floor) that the stages must prove, by gate."""
    out: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        margins, floor = stage_margins(policy, stage)
        for name, margin in margins.items():
            wanted = out.setdefault(name, [])
            if (margin, floor) not in wanted:
                wanted.append((margin, floor))
    return out


def stage_margins(policy: GatePolicy, stage: StagePlan) -> tuple[dict[str, float], float]:
    """What a stage must prove, of the gates this policy has, and the floor of its rates."""
    rung = policy.rung_for(stage.min_canary)
    margins = rung.margins if stage.margins is None else stage.margins
    names = {gate.name for gate in policy.gates}
    floor = rung.floor if stage.floor is None else stage.floor
    return {name: margin for name, margin in margins.items() if name in names}, floor
