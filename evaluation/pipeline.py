"""Pipeline from settled requests to channels: draws, counts, sample ratio test, a lane for each deadline.

Both a live rollout (`evaluator.py`) and a file (`offline/backtest.py`) use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints
from evaluation.metrics import CATALOGUE
from evaluation.observed_range import RangeMonitor, range_monitors
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import proofs_by_gate
from evaluation.records import LEFT_MS, sampled_name
from evaluation.units.answered import AnsweredGap
from evaluation.units.attendance import Attendance
from evaluation.units.limits import LateKeys
from evaluation.units.metric_evidence import MetricEvidence
from evaluation.units.released import Released
from evaluation.units.sessions import Rows, Sessions
from evaluation.units.split import COLUMNS, Split
from evaluation.units.units import HELD, LEFT_OUT, REQUEST, Assignments, Drawn, Units
from evaluation.units.value_columns import comparable, without_answer

NOW = "now"  # the lane of metrics that are known when the request has settled


class Lane:
    """Metrics that settle together, their observed ranges and their sessions."""

    __state__ = (
        "sessions", "later", "metrics", "ranges", "answered", "answered_sessions", "answered_later",
        "attendance",
    )  # fmt: skip

    def __init__(
        self,
        metrics: Sequence[MetricEvidence],
        policy: GatePolicy,
        late_keys: LateKeys,
        split: Split | None = None,
    ) -> None:
        """split: its tests use the sessions of this lane; None: another lane's."""
        self.metrics = list(metrics)
        self._policy = policy
        self._late_keys = late_keys
        self._split = split
        self.ranges = range_monitors(
            policy.observed_ranges, [metric.name for metric in metrics], alpha=policy.alpha
        )
        self.sessions = Sessions(
            sum(metric.width for metric in metrics) + (COLUMNS if split else 1),
            session_requests=policy.session_requests,
            session_s=policy.session_s,
        )
        self.later = Sessions(
            sum(metric.later_width for metric in metrics) + 1,
            session_requests=policy.session_requests,
            session_s=policy.session_s,
        )
        self.answered = AnsweredGap()  # by first requests
        self.answered_sessions = AnsweredGap()
        self.answered_later = AnsweredGap()
        self.attendance = Attendance(session_s=policy.session_s)

    def feed(
        self,
        rows: Rows,
        raw: Mapping[str, Floats],
        unanswered: NDArray[np.bool_],
        fell_back: Floats | None = None,
        cancelled: Floats | None = None,
    ) -> None:
        """Add requests in order of assignment; `raw`: values by metric, covariates by name, and `LEFT_MS`
        where known, NaN where missing. fell_back: 1 where stable served for the canary, cancelled: 1 where
        the client left before an answer or a failure (so unanswered); both NaN where unknown, and None where
        nowhere known."""
        if len(rows) == 0 or not (self.metrics or self._split):
            return
        cut = None if all(metric.lent for metric in self.metrics) else self._late_keys.cut(rows)
        if cut is not None:
            before, rest = slice(0, cut), slice(cut, None)
            parts = [(before, False), (rest, True)] if cut else [(rest, True)]
            for part, is_keyed in parts:
                for metric in self.metrics if is_keyed else ():
                    metric.open_for_keys(self._policy)
                self.feed(
                    rows.pick(part),
                    {name: values[part] for name, values in raw.items()},
                    unanswered[part],
                    None if fell_back is None else fell_back[part],
                    None if cancelled is None else cancelled[part],
                )
            return
        columns = self._feed(rows, raw, unanswered, fell_back, cancelled)
        looks, following = self.attendance.due_in(rows)
        start, released = 0, []
        for stop, look in [*looks, (len(rows), following)]:
            if stop > start:
                released.append(self._add_later(rows, columns, start, stop))
                start = stop
            self.attendance.begin(look)
            if look < following:
                released.append(self._look())
        self._feed_later(released)

    def _feed(
        self,
        rows: Rows,
        raw: Mapping[str, Floats],
        unanswered: NDArray[np.bool_],
        fell_back: Floats | None,
        cancelled: Floats | None,
    ) -> Floats:
        """Feed all that later sessions do not change; returns the columns of these (columns x requests of
        later sessions)."""
        later, of_draws = np.flatnonzero(rows.round), rows.of_draws
        own, failed = (rows.pick(of_draws), unanswered[of_draws]) if len(later) else (rows, unanswered)
        gaps = self._gaps_before(own, failed)
        left = np.zeros(len(rows), dtype=np.bool_) if cancelled is None else cancelled == 1.0
        parts, later_parts = [], []
        for metric in self.metrics:
            if metric.can_skip(raw[metric.name]):
                metric.pass_by(rows)
                parts.append(np.full((metric.width, len(own)), np.nan))
                later_parts.append(np.full((metric.later_width, len(later)), np.nan))
                continue
            silent = without_answer(metric.name, raw[metric.name], unanswered, left)
            values = comparable(metric.name, raw[metric.name], silent, rows)
            columns = metric.values(values, silent, left, rows, raw.get(LEFT_MS))
            drawn = raw.get(sampled_name(metric.name))
            weights = metric.weights_of_missing(values, silent, rows, drawn) if metric.with_missing else None
            covariates = metric.covariates.of(raw, rows)
            metric.count_later(rows, values)
            if len(later):
                of_later = None if weights is None else weights[later]
                later_parts.append(metric.later_values(columns[:, later], of_later, rows.pick(later)))
                values, columns = values[of_draws], columns[:, of_draws]
                weights = None if weights is None else weights[of_draws]
                covariates = None if covariates is None else covariates[:, of_draws]
            silent = silent[of_draws]
            missing = metric.count(own, values, silent)
            metric.feed_firsts(own, columns, gaps, silent.astype(np.float64), covariates)
            if weights is not None:
                metric.feed_first_missing(own, values, weights, gaps, covariates)
            parts.append(metric.session_values(columns, missing, weights, own, covariates))
            for monitor in self.ranges:
                if monitor.gate.metric == metric.name:
                    monitor.feed(own, values)
        if self._split is not None:
            unknown = np.full(len(rows), np.nan)
            fell_back = (unknown if fell_back is None else fell_back)[of_draws]
            gone = (unknown if cancelled is None else cancelled)[of_draws]
            parts.append(self._split.session_columns(own, fell_back, failed.astype(np.float64), gone))
        else:
            parts.append(np.where(failed, 0.0, 1.0)[None, :])
        self._feed_units(self.sessions.add(own, np.concatenate(parts)))
        later_parts.append(np.where(unanswered[later], 0.0, 1.0)[None, :])
        return np.concatenate(later_parts) if len(later) else np.empty((0, 0))

    def _add_later(self, rows: Rows, columns: Floats, start: int, stop: int) -> Released | None:
        """Count the tosses among some of the requests, and add those of later sessions; returns the sessions
        that closed. columns: of these requests, of all rows."""
        part = rows.pick(slice(start, stop))
        self.attendance.count(part)
        later = np.flatnonzero(part.round)
        if len(later) == 0:
            return None
        first = int(np.count_nonzero(rows.round[:start]))
        released = self.later.add(part.pick(later), columns[:, first : first + len(later)])
        self.attendance.add(released)
        return released

    def close_through(self, through_s: float) -> None:
        """Close sessions up to the watermark: all requests assigned before `through_s` were fed."""
        if self.metrics or self._split:
            looks, following = self.attendance.due_before(through_s)
            released = []
            for look in looks:
                self.attendance.begin(look)
                released.append(self._look())
            self.attendance.begin(following)
            self._feed_units(self.sessions.close_through(through_s))
            released.append(self.later.close_through(through_s))
            self.attendance.add(released[-1])
            self._feed_later(released)

    def _look(self) -> Released:
        """Make a look at everyone who was drawn: all requests up to its time were added, and no others.
        Returns the later sessions that closed."""
        attendance = self.attendance
        closed = self.later.close_through(attendance.next_s())
        attendance.add(closed)
        parts = attendance.parts_of_round(attendance.round_and_look()[0])
        start = 0
        for metric in self.metrics:
            for returned in parts:
                metric.look_at_everyone(attendance, returned, start)
            start += metric.later_width
        return closed

    def _gaps_before(self, rows: Rows, unanswered: NDArray[np.bool_]) -> Floats:
        """The gaps of first requests, for all rows; those of later requests are not used."""
        firsts = np.flatnonzero(rows.firsts)
        gaps = np.zeros(len(rows))
        gaps[firsts] = self.answered.of(
            rows.arm[firsts], rows.w[firsts], np.where(unanswered[firsts], 0.0, 1.0)
        )
        return gaps

    def _feed_units(self, released: Released) -> None:
        if len(released) == 0:
            return
        start = sum(metric.width for metric in self.metrics)
        answered = released.means(start)
        gaps = self.answered_sessions.of(released.arm, released.w, answered)
        if self._split is not None:
            self._split.feed_units(released, start)
        start = 0
        for metric in self.metrics:
            metric.feed_units(released, start, gaps, 1.0 - answered)
            start += metric.width

    def _feed_later(self, closed: Sequence[Released | None]) -> None:
        parts = [part for part in closed if part is not None and len(part)]
        if not parts:
            return
        released = Released.joined(parts) if len(parts) > 1 else parts[0]
        start = sum(metric.later_width for metric in self.metrics)
        answered = released.means(start)
        gaps = self.answered_later.of(released.arm, released.w, answered)
        if self._split is not None:
            self._split.feed_later(released, start)
        start = 0
        for metric in self.metrics:
            metric.feed_later(released, start, gaps, 1.0 - answered)
            start += metric.later_width


class Pipeline:
    """All evidence of one rollout, from settled requests on."""

    __state__ = (
        "units",
        "lanes",
        "split",
        "seq",
        "canary",
        "stable",
        "stage_canary",
        "stage_seen",
        "stage_units",
        "stage_starts",
        "stage",
        "is_sticky",
        "was_sticky",
        "late_keys",
        "has_always_canary",
    )

    def __init__(self, policy: GatePolicy, stages: Sequence[StagePlan]) -> None:
        self.policy = policy
        proofs = proofs_by_gate(policy, stages)
        names = list(dict.fromkeys(gate.metric for gate in policy.gates))
        self.metrics = {name: MetricEvidence(name, policy, proofs) for name in names}
        self.lane_names = [NOW, *(name for name in names if CATALOGUE[name].arrives_later)]
        now = [metric for name, metric in self.metrics.items() if not CATALOGUE[name].arrives_later]
        later = [[self.metrics[name]] for name in self.lane_names[1:]]
        self.split = Split(policy)
        self.late_keys = LateKeys()
        of_now = Lane(now, policy, self.late_keys, self.split)
        self.lanes = [of_now, *(Lane(metrics, policy, self.late_keys) for metrics in later)]
        self.units = Units(session_requests=policy.session_requests, session_s=policy.session_s)
        self.seq = 0
        self.canary = 0
        self.stable = 0
        self.stage = 0
        self.stage_canary = 0  # requests of the canary in this stage that count: of sessions
        self.stage_seen = 0  # all of them
        self.stage_units = 0  # drawn to the canary in this stage
        self.stage_starts: dict[int, float] = {}
        self._warmup_s = [stage.warmup_s for stage in stages]
        self.was_sticky = False  # there was a sticky unit
        self.has_always_canary = False  # some clients are, at weight 1: stable has none of them
        self.is_sticky = -1  # whether alpha is split for sticky units; -1: undecided, before the first bet

    def draw(self, requests: Assignments) -> tuple[Rows, Ints, Floats]:
        """The rows of the requests that are evidence, which of the requests they are, and where stable served
        for the canary (1; NaN: unknown, or stable's)."""
        arm, w, kind = requests.arm, requests.w, requests.kind
        seq = np.arange(self.seq, self.seq + len(requests))
        drawn = self.units.resolve(requests, seq)
        on_canary = arm & (kind != LEFT_OUT) & (w > 0.0)
        is_sure = on_canary & (w >= 1.0) & (kind != HELD)
        self.has_always_canary = self.has_always_canary or bool(is_sure.any())
        canary = np.cumsum(on_canary) + self.canary
        self._fix_units(kind, drawn, seq)
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
            (self._is_warming_up(requests) | drawn.under_way)[keep],
            drawn.round[keep],
            drawn.part[keep],
            drawn.stands[keep],
            drawn.fresh[keep],
            drawn.origin[keep],
            w[keep],
            requests.unit[keep],
        )
        fell_back = np.where(rows.arm, requests.fell_back[keep], np.nan)
        self.split.feed_firsts(rows.pick(rows.of_draws), fell_back[rows.of_draws])
        if rows.round.any():
            self.split.feed_returns(rows.pick(np.flatnonzero(rows.round)))
        self.seq += len(requests)
        return rows, keep, fell_back

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
            self.split.set_limits(sticky=bool(self.is_sticky))

    def _fix_units(self, kind: Ints, drawn: Drawn, seq: Ints) -> None:
        """Split alpha for sticky units if one came before the first bet or is the first: known before its
        coin. One that comes later opens the channels of sessions at its draw (`limits.py`)."""
        if self.is_sticky < 0:
            bet = np.flatnonzero((drawn.position == 1) & (drawn.w > 0.0))
            through = int(bet[0]) + 1 if len(bet) else len(kind)
            self.was_sticky = self.was_sticky or bool((kind[:through] > REQUEST).any())
            if len(bet):
                is_sticky = self.was_sticky if self.policy.units == "auto" else self.policy.units == "sticky"
                self.is_sticky = int(is_sticky)
                self.restore_limits()
        if self.is_sticky == 0 and self.policy.units == "auto":
            is_toss = (kind > REQUEST) & (drawn.position == 1) & (drawn.round == 0)
            self.late_keys.look(is_toss & (drawn.w > 0.0), seq)

    def _count(self, requests: Assignments, on_canary: NDArray[np.bool_], drawn: Drawn) -> None:
        stage, kind = requests.stage, requests.kind
        self.canary += int(np.count_nonzero(on_canary))
        self.stable += int(np.count_nonzero(~requests.arm & (kind != LEFT_OUT) & (requests.w > 0.0)))
        if len(stage) and stage.max() > self.stage:  # a late row of an earlier stage ends nothing
            self.stage, self.stage_canary, self.stage_seen, self.stage_units = int(stage.max()), 0, 0, 0
        of_canary = on_canary & (stage == self.stage) & (kind != HELD)
        counts = of_canary & (drawn.position > 0) & (drawn.w > 0.0)
        self.stage_canary += int(np.count_nonzero(counts))
        self.stage_seen += int(np.count_nonzero(of_canary))
        self.stage_units += int(np.count_nonzero(counts & (drawn.position == 1) & (drawn.round == 0)))

    def canary_text(self, stage: int, needed: int) -> str:
        """What a stage still lacks of the canary requests that it needs; empty: nothing."""
        found, seen, units = 0, 0, 0
        if self.stage == stage:
            found, seen, units = self.stage_canary, self.stage_seen, self.stage_units
        if found >= needed:
            return ""
        text = f"{found} of {needed} canary requests in this stage"
        if seen < needed:
            return text
        return (
            f"{text}: it had {seen}, but of its {units} new units those of a first session count, and of all "
            "units one later session a round; lower min_canary, or let conversations be the unit"
        )
