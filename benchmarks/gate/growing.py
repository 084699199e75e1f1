"""Backtests of one stage whose rows come in parts: the results of ever longer beginnings for the price of the
longest, and what policies have in common computed once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Ints
from evaluation.offline.backtest import BacktestResult, closing_result, feed
from evaluation.offline.columns import Table, checked_table, policy_for_columns
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.units.units import Assignments, Drawn, Units
from evaluation.verdict import evaluation_report, rollback_of

Columns = Mapping[str, NDArray[np.generic]]
STEP = 2**0.5  # from one look for an early rollback to the next
FIRST_STEP = 125  # canary requests


class SharedUnits(Units):
    """The draws of one run's units, resolved by the first of several backtests that are fed alike."""

    def __init__(self, policy: GatePolicy, first: SharedUnits | None = None) -> None:
        super().__init__(session_requests=policy.session_requests, session_s=policy.session_s)
        self._first = first
        self._steps: list[tuple[int, Drawn, int, int]] = [] if first is None else first._steps
        self._step = 0

    def resolve(self, requests: Assignments, seq: Ints) -> Drawn:
        """The draws of the requests, as of `Units`."""
        if self._step == len(self._steps):
            units = self if self._first is None else self._first
            drawn = Units.resolve(units, requests, seq)
            self._steps.append((len(requests), drawn, units.contradictions, units.sticky_draws))
        rows, drawn, self.contradictions, self.sticky_draws = self._steps[self._step]
        self._step += 1
        assert rows == len(requests), "backtests of one traffic are fed in equal parts"
        return drawn


class Traffic:
    """Columns of one run, and what several policies have in common on them: checked rows, and draws."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.canary = np.cumsum(columns["arm"], dtype=np.int64)
        self.has_sessions = bool((columns["assigned_by"] != "request").any())
        self._checked: dict[tuple[int, int, tuple[str, ...]], Table] = {}
        self._units: dict[tuple[int, float], SharedUnits] = {}

    def units(self, policy: GatePolicy) -> SharedUnits:
        """The ledger of units for one more backtest."""
        key = policy.session_requests, policy.session_s
        if key in self._units:
            return SharedUnits(policy, self._units[key])
        return self._units.setdefault(key, SharedUnits(policy))

    def __len__(self) -> int:
        return len(self.canary)

    def rows_of(self, canary_requests: int) -> int:
        """How many rows there are up to so many canary requests; all where there are fewer."""
        return min(int(np.searchsorted(self.canary, canary_requests)) + 1, len(self))

    def checked(self, start: int, stop: int, policy: GatePolicy) -> Table:
        """The checked rows from `start` to `stop`, with the columns that the policy's gates need."""
        needed = [(gate.metric, *gate.covariates) for gate in policy.gates]
        key = start, stop, tuple(dict.fromkeys(name for names in needed for name in names))
        if key not in self._checked:
            part = {name: column[start:stop] for name, column in self.columns.items()}
            self._checked[key] = checked_table(part, policy)
        return self._checked[key]


class GrowingBacktest:
    """A backtest of the first rows of a table without equal times, of which more are fed at each call.

    It computes no intervals, which decide nothing.
    """

    def __init__(self, traffic: Traffic, policy: GatePolicy, stage: StagePlan) -> None:
        self._traffic = traffic
        self._policy = policy_for_columns(traffic.columns, policy)
        self._plan = (stage,)
        self._pipeline = Pipeline(self._policy, self._plan)
        self._pipeline.units = traffic.units(self._policy)
        for metric in self._pipeline.metrics.values():
            for column in metric.columns:
                column.first.estimate = None
        self._rows = 0

    @property
    def is_whole(self) -> bool:
        """Whether all rows have been fed."""
        return self._rows == len(self._traffic)

    def grow(self, rows: int) -> None:
        """Feed the rows up to so many."""
        if rows > self._rows:
            feed(self._pipeline, self._traffic.checked(self._rows, rows, self._policy))
            self._rows = rows

    def result(self) -> BacktestResult:
        """The result of a backtest of the rows so far."""
        if self.is_whole or not self._traffic.has_sessions:
            return closing_result(self._pipeline, self._plan, 0)
        # Closing sessions resolves no draw, and changes no policy.
        kept = (self._pipeline.units, self._policy, *self._policy.gates)
        return closing_result(copy.deepcopy(self._pipeline, {id(x): x for x in kept}), self._plan, 0)

    def early_rollback(self) -> int | None:
        """Canary requests at a rollback that no later row can change; None: there is none yet.

        A later row closes a session, and stops a gate, no sooner than at the last row so far.
        """
        tracks = [track for metric in self._pipeline.metrics.values() for track in metric.tracks]
        if not any(track.proof is None and track.channel.decision.is_reached for track in tracks):
            return None
        report = evaluation_report(self._pipeline, self._plan, 0, through_s=float("inf"))
        rollback = rollback_of(report.gates)
        decided = None if rollback is None else rollback.decided_canary
        return decided if decided is not None and decided < self._pipeline.canary else None


def rollback_time(traffic: Traffic, policy: GatePolicy, lengths: Sequence[int]) -> int | None:
    """Canary requests at the rollback in the first beginning of the rows that has one, with nothing to prove.

    lengths: canary requests of each beginning, ascending. None: there is none.
    """
    backtest = GrowingBacktest(traffic, policy, StagePlan(0.5, 0, {}))
    step = float(FIRST_STEP)
    for length in lengths:
        while len(lengths) > 1 and step < length:
            backtest.grow(traffic.rows_of(round(step)))
            step *= STEP
            if (early := backtest.early_rollback()) is not None:
                return early
        backtest.grow(traffic.rows_of(length))
        result = backtest.result()
        if result.decision == "rollback":
            return result.canary_requests
    return None
