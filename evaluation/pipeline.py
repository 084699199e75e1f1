"""Pipeline from settled requests to channels: draws, counts, sample ratio test, a lane for each deadline.

Both a live rollout (`evaluator.py`) and a file (`offline/backtest.py`) use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.sample_ratio import FallbackBet, SampleRatioBet
from evaluation.betting.wealth import Block, Channel, Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.observed_range import RangeMonitor, range_monitors
from evaluation.policy.alpha_split import log_limit
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.stream import Stream
from evaluation.units.metric_evidence import MetricEvidence
from evaluation.units.sessions import Rows, Sessions
from evaluation.units.units import HELD, LEFT_OUT, REQUEST, Assignments, Drawn, Units

NOW = "now"  # the lane of metrics that are known when the request has settled


class Lane:
    """Metrics that settle together, their observed ranges and their sessions."""

    __state__ = ("sessions", "metrics", "ranges")

    def __init__(self, metrics: Sequence[MetricEvidence], policy: GatePolicy) -> None:
        self.metrics = list(metrics)
        self.ranges = range_monitors(
            policy.observed_ranges, [metric.name for metric in metrics], alpha=policy.alpha
        )
        self.sessions = Sessions(
            sum(len(metric.columns) for metric in metrics),
            session_requests=policy.session_requests,
            session_s=policy.session_s,
        )

    def feed(self, rows: Rows, raw: Mapping[str, Floats], failed: NDArray[np.bool_]) -> None:
        """Add requests in order of assignment; `raw`: values by metric, NaN where missing."""
        if len(rows) == 0 or not self.metrics:
            return
        parts = []
        first_column = 0
        for metric in self.metrics:
            if metric.can_skip(raw[metric.name]):
                parts.append(np.full((len(metric.columns), len(rows)), np.nan))
            else:
                values = metric.comparable(raw[metric.name], failed, rows)
                columns = metric.values(values, failed, rows)
                metric.count(rows, values, failed)
                metric.feed_firsts(rows, columns, self.sessions, first_column)
                parts.append(metric.session_values(columns, rows))
                for monitor in self.ranges:
                    if monitor.gate.metric == metric.name:
                        monitor.feed(rows, np.where(failed, np.nan, values))  # failing fast is not fast
            first_column += len(metric.columns)
        self._feed_units(self.sessions.add(rows, np.concatenate(parts)))

    def close_through(self, through_s: float) -> None:
        """Close sessions up to the watermark: all requests assigned before `through_s` were fed."""
        if self.metrics:
            self._feed_units(self.sessions.close_through(through_s))

    def _feed_units(self, blocks: Sequence[Block]) -> None:
        start = 0
        for metric in self.metrics:
            stop = start + len(metric.columns)
            metric.feed_units(blocks[start:stop])
            start = stop


class Pipeline:
    """All evidence of one rollout, from settled requests on."""

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
        self.share = Stream(with_histogram=False)  # the sample ratio
        self.share.channels = [Channel(SampleRatioBet(), limit=log_limit(policy.served_share_alpha))]
        self.fallback = Stream(with_histogram=False)
        self.fallback.channels = [
            Channel(FallbackBet(max_rate=1.0 - floor), limit=log_limit(policy.served_share_alpha))
            for floor in (policy.served_rate_rollback, policy.served_rate_hold)
        ]
        self.seq = 0
        self.canary = 0
        self.stable = 0
        self.stage = 0
        self.stage_canary = 0
        self.stage_starts: dict[int, float] = {}
        self._warmup_s = [stage.warmup_s for stage in stages]
        self.was_sticky = False  # there was a sticky unit
        self.is_sticky = -1  # whether alpha is split for sticky units; -1: undecided, before the first bet

    def draw(self, requests: Assignments) -> tuple[Rows, Ints]:
        """The rows of the requests that are evidence, and which of the requests they are."""
        arm, w, kind = requests.arm, requests.w, requests.kind
        seq = np.arange(self.seq, self.seq + len(requests))
        drawn = self.units.resolve(requests, seq)
        on_canary = arm & (kind != LEFT_OUT) & (w > 0.0)
        canary = np.cumsum(on_canary) + self.canary
        self._fix_units(kind, drawn)
        self._count(requests, on_canary, drawn)
        keep = np.flatnonzero(drawn.position > 0)
        rows = Rows(
            seq[keep],
            requests.at_s[keep],
            arm[keep],
            drawn.w[keep],
            drawn.draw[keep],
            drawn.position[keep],
            kind[keep] == REQUEST,
            requests.stage[keep],
            canary[keep],
            self._is_warming_up(requests)[keep],
        )
        self.share.feed(rows.block(np.zeros(len(rows)), (rows.position == 1) & (rows.w > 0.0), rows.w))
        fell_back = requests.fell_back[keep]
        self.fallback.feed(rows.block(fell_back, rows.arm & ~np.isnan(fell_back), rows.w))
        self.seq += len(requests)
        return rows, keep

    def _is_warming_up(self, requests: Assignments) -> NDArray[np.bool_]:
        """Requests within the warm-up of their stage, which begins with its first drawn request."""
        is_cold = np.zeros(len(requests), dtype=np.bool_)
        is_drawn = requests.w > 0.0
        for stage in np.unique(requests.stage[is_drawn]).tolist():
            of_stage = (requests.stage == stage) & is_drawn
            start_s = self.stage_starts.setdefault(stage, float(requests.at_s[np.argmax(of_stage)]))
            if stage < len(self._warmup_s):
                is_cold |= of_stage & (requests.at_s < start_s + self._warmup_s[stage])
        return is_cold

    @property
    def ranges(self) -> list[RangeMonitor]:
        """The monitors of all lanes' observed ranges."""
        return [monitor for lane in self.lanes for monitor in lane.ranges]

    def restore_limits(self) -> None:
        """Set the limits that the first bet fixed; a snapshot does not hold them."""
        if self.is_sticky >= 0:
            for metric in self.metrics.values():
                metric.set_limits(self.policy, sticky=bool(self.is_sticky))

    def _fix_units(self, kind: Ints, drawn: Drawn) -> None:
        """Split alpha for sticky units if one came before the first bet or is the first: known before its
        coin."""
        if self.is_sticky >= 0:
            return
        bet = np.flatnonzero((drawn.position == 1) & (drawn.w > 0.0))
        through = int(bet[0]) + 1 if len(bet) else len(kind)
        self.was_sticky = self.was_sticky or bool((kind[:through] > REQUEST).any())
        if len(bet):
            is_sticky = self.was_sticky if self.policy.units == "auto" else self.policy.units == "sticky"
            self.is_sticky = int(is_sticky)
            self.restore_limits()

    def _count(self, requests: Assignments, on_canary: NDArray[np.bool_], drawn: Drawn) -> None:
        stage, kind = requests.stage, requests.kind
        self.canary += int(np.count_nonzero(on_canary))
        self.stable += int(np.count_nonzero(~requests.arm & (kind != LEFT_OUT) & (requests.w > 0.0)))
        if len(stage) and stage[-1] != self.stage:
            self.stage, self.stage_canary = int(stage[-1]), 0
        own = on_canary & (drawn.position > 0) & (kind != HELD)
        self.stage_canary += int(np.count_nonzero(own & (stage == self.stage)))


def proofs_by_gate(policy: GatePolicy, stages: Sequence[StagePlan]) -> dict[str, list[tuple[float, float]]]:
    """The distinct (margin, floor) pairs that the stages must prove, by gate."""
    out: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        margins, floor = stage_margins(policy, stage)
        for name, margin in margins.items():
            pairs = out.setdefault(name, [])
            if (margin, floor) not in pairs:
                pairs.append((margin, floor))
    return out


def stage_margins(policy: GatePolicy, stage: StagePlan) -> tuple[dict[str, float], float]:
    """The margins that a stage must prove, by gate of this policy, and the floor of its rates."""
    rung = policy.rung_for(stage.min_canary)
    margins = rung.margins if stage.margins is None else stage.margins
    names = {gate.name for gate in policy.gates}
    floor = rung.floor if stage.floor is None else stage.floor
    return {name: margin for name, margin in margins.items() if name in names}, floor
