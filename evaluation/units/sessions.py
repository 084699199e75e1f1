"""Sessions: the requests of one draw as one unit, released in the order of the draws.

A session is up to `session_requests` requests within `session_s` after a draw. It closes at the last of them,
or when the time has passed; it is released after the session of every earlier draw, so that a version that
makes users return faster does not get its units counted sooner. A request that is its own unit is a session
of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.session_limits import RowOrder
from evaluation.betting.unit_block import Floats, Ints, UnitBlock, ones
from evaluation.units.released import Counted, Released


@dataclass(frozen=True, slots=True)
class Rows:
    """Settled requests that are evidence, in order of assignment. Arrays of equal length.

    `position`: 1 for the first request of a draw. `single`: it is its own unit. `canary`: canary requests up
    to and including this row. `cold`: its latency is ignored, on both arms: within the warm-up of its stage,
    while a canary replica carried more load than a stable one, or the first request of a conversation that
    was under way when it was drawn. `round`, `part`: of a later session, from 1 and from 0; round 0: of
    the draw itself. `stands`: requests that a later one stands for (`later_blocks.py`). `fresh`:
    begins its unit's first later session of the part in the stage. `origin`: see `Drawn`.
    `logged_w`: the weight that the router logged, which is not the draw's `w` for a unit drawn before.
    `unit`: hash of the unit; matters for sticky ones only.
    """

    seq: Ints
    at_s: Floats
    arm: NDArray[np.bool_]
    w: Floats
    draw: Ints
    position: Ints
    single: NDArray[np.bool_]
    stage: Ints
    canary: Ints
    cold: NDArray[np.bool_]
    round: Ints
    part: Ints
    stands: Ints
    fresh: NDArray[np.bool_]
    origin: Ints
    logged_w: Floats
    unit: Ints

    def __len__(self) -> int:
        return len(self.seq)

    @classmethod
    def none(cls) -> Rows:
        """No requests."""
        ints, floats, flags = np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.bool_)
        return cls(
            ints, floats, flags, floats, ints, ints, flags, ints, ints, flags, ints, ints, ints, flags, ints,
            floats, ints,
        )  # fmt: skip

    def columns(self) -> list[NDArray[Any]]:
        """The columns, in the order of the fields."""
        return [getattr(self, name) for name in self.__slots__]

    def joined(self, other: Rows) -> Rows:
        """These requests, then those."""
        return Rows(*map(np.concatenate, zip(self.columns(), other.columns(), strict=True)))

    def pick(self, rows: slice | Ints) -> Rows:
        """The chosen requests, in order."""
        return Rows(*(column[rows] for column in self.columns()))

    @property
    def of_draws(self) -> slice | Ints:
        """Which rows are of the draws themselves, not of later sessions."""
        return np.flatnonzero(self.round == 0) if self.round.any() else slice(None)

    @property
    def all_single(self) -> bool:
        """Whether each request is its own unit."""
        return bool(self.single.all())

    @property
    def firsts(self) -> NDArray[np.bool_]:
        """Which rows are the first request of their draw: the one that speaks for the unit."""
        is_first: NDArray[np.bool_] = self.position == 1
        return is_first

    @property
    def order(self) -> RowOrder:
        """Which rows belong to one session."""
        return RowOrder(self.seq, self.draw, self.at_s, self.firsts & ~self.single)

    def first_block(self, y: Floats, w: Floats, gap: Floats | None = None) -> UnitBlock:
        """The units by their first requests that have a value. y (NaN: missing), w, gap: of all rows."""
        chosen = self.firsts & ~np.isnan(y)
        if chosen.all():
            return UnitBlock(
                self.draw, self.arm, w, y, ones(len(y)), self.seq, self.canary, self.at_s, self.stage, gap,
                is_checked=True,
            )  # fmt: skip
        return self.units_at(np.flatnonzero(chosen), y, w, gap)

    def first_block_with_missing(
        self, y: Floats, weights: Floats, w: Floats, gap: Floats | None, count: Counted
    ) -> UnitBlock:
        """The units by their first requests; those without a value count 0 in `y`.

        y (NaN: no value), weights (`judged.missing_weights`), w, gap: of all rows.
        """
        has, failed, unjudged = ~np.isnan(y), weights > 0.0, weights < 0.0
        match count:
            case "failed":
                chosen = has | failed
            case "sampled":
                chosen = has | failed | unjudged
            case "unjudged":
                chosen = has | unjudged
            case "unscored":
                chosen = ~failed
            case "all":
                chosen = np.ones_like(has)
        rows = np.flatnonzero(self.firsts & chosen)
        block = self.units_at(rows, np.where(has, y, 0.0), w, gap)
        if has[rows].all():
            return block
        missing = np.where(has[rows], 0.0, 1.0)
        part = np.where(has[rows], 1.0, np.maximum(weights[rows], 0.0))
        if count not in ("failed", "sampled"):
            return replace(block, missing=missing, counted=part, is_checked=True)
        drawn = unjudged[rows]
        block = replace(block, missing=missing, weight=np.where(drawn, 1.0, part), is_checked=True)
        counted = np.where(drawn, 0.0, 1.0)
        return replace(block, counted=counted, is_checked=True) if drawn.any() else block

    def units_at(self, rows: Ints, y: Floats, w: Floats, gap: Floats | None = None) -> UnitBlock:
        """The units whose first requests are these rows, ascending. y, w, gap: of all rows."""
        return UnitBlock(
            self.draw[rows],
            self.arm[rows],
            w[rows],
            y[rows],
            ones(len(rows)),
            self.seq[rows],
            self.canary[rows],
            self.at_s[rows],
            self.stage[rows],
            None if gap is None else gap[rows],
        )


_BY_SESSION = (
    "draw", "start_s", "arm", "w", "stage", "round", "part", "fresh", "origin", "unit", "close_seq",
    "close_canary", "close_at_s",
)  # fmt: skip


class Sessions:
    """Sessions of one lane that are not released yet, by draw, with the values of their requests."""

    __state__ = (
        "draw", "start_s", "arm", "w", "stage", "round", "part", "fresh", "origin", "unit", "owners",
        "values", "close_seq", "close_canary", "close_at_s", "last_seq", "last_canary", "given",
    )  # fmt: skip

    def __init__(self, columns: int, *, session_requests: int, session_s: float) -> None:
        self._max_requests = session_requests
        self._length_s = session_s
        self.draw: Ints = np.empty(0, dtype=np.int64)
        self.start_s: Floats = np.empty(0)
        self.arm: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self.w: Floats = np.empty(0)
        self.stage: Ints = np.empty(0, dtype=np.int64)
        self.round: Ints = np.empty(0, dtype=np.int64)
        self.part: Ints = np.empty(0, dtype=np.int64)
        self.fresh: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self.origin: Ints = np.empty(0, dtype=np.int64)
        self.unit: Ints = np.empty(0, dtype=np.int64)
        self.owners: Ints = np.empty(0, dtype=np.int64)  # the session of each request below
        self.values: Floats = np.empty((columns, 0))  # columns x requests
        self.close_seq: Ints = np.empty(0, dtype=np.int64)  # -1: open
        self.close_canary: Ints = np.empty(0, dtype=np.int64)
        self.close_at_s: Floats = np.empty(0)
        self.last_seq = -1
        self.last_canary = 0
        self.given: Floats = np.array([-1.0, 0.0, -np.inf])  # seq, canary, time of the last released session

    def add(self, rows: Rows, values: Floats) -> Released:
        """Add requests in order; return the sessions released by that. values: columns x n."""
        if len(rows) and len(self.draw) == 0 and rows.all_single:
            return self._single(rows, values)
        if len(rows):
            self._add(rows, values)
        return self._release()

    def close_through(self, through_s: float) -> Released:
        """Close sessions that ended before the watermark `through_s`; return the sessions released so."""
        passed = np.flatnonzero((self.close_seq < 0) & (self.start_s + self._length_s < through_s))
        self._close(
            passed,
            np.full(len(passed), self.last_seq),
            np.full(len(passed), self.last_canary),
            self.start_s[passed] + self._length_s,
        )
        return self._release()

    def _single(self, rows: Rows, values: Floats) -> Released:
        """The requests themselves: sessions of one request each, with none waiting before them."""
        self.last_seq, self.last_canary = int(rows.seq[-1]), int(rows.canary[-1])
        self.given = np.array(
            [self.last_seq, self.last_canary, max(self.given[2], rows.at_s[-1])], dtype=np.float64
        )
        return Released(
            rows.draw, rows.arm, rows.w, rows.stage, rows.seq, rows.canary, rows.at_s, None, values,
            rows.round, rows.part, rows.fresh, rows.origin, rows.unit,
        )  # fmt: skip

    def _add(self, rows: Rows, values: Floats) -> None:
        first = rows.firsts
        new = int(np.count_nonzero(first))
        self.draw = np.concatenate((self.draw, rows.draw[first]))
        self.start_s = np.concatenate((self.start_s, rows.at_s[first]))
        self.arm = np.concatenate((self.arm, rows.arm[first]))
        self.w = np.concatenate((self.w, rows.w[first]))
        self.stage = np.concatenate((self.stage, rows.stage[first]))
        self.round = np.concatenate((self.round, rows.round[first]))
        self.part = np.concatenate((self.part, rows.part[first]))
        self.fresh = np.concatenate((self.fresh, rows.fresh[first]))
        self.origin = np.concatenate((self.origin, rows.origin[first]))
        self.unit = np.concatenate((self.unit, rows.unit[first]))
        self.close_seq = np.concatenate((self.close_seq, np.full(new, -1, dtype=np.int64)))
        self.close_canary = np.concatenate((self.close_canary, np.zeros(new, dtype=np.int64)))
        self.close_at_s = np.concatenate((self.close_at_s, np.zeros(new)))
        slot = np.searchsorted(self.draw, rows.draw)
        self.owners = np.concatenate((self.owners, slot))
        self.values = np.concatenate((self.values, values), axis=1)
        last = rows.single | (rows.position == self._max_requests)
        self._close(slot[last], rows.seq[last], rows.canary[last], rows.at_s[last])
        self._close_passed(rows)
        self.last_seq, self.last_canary = int(rows.seq[-1]), int(rows.canary[-1])

    def _release(self) -> Released:
        """Remove the closed sessions that no open one precedes."""
        still_open = np.flatnonzero(self.close_seq < 0)
        count = int(still_open[0]) if len(still_open) else len(self.draw)
        seq = np.maximum.accumulate(np.concatenate(([self.given[0]], self.close_seq[:count])))
        canary = np.maximum.accumulate(np.concatenate(([self.given[1]], self.close_canary[:count])))
        at_s = np.maximum.accumulate(np.concatenate(([self.given[2]], self.close_at_s[:count])))
        self.given = np.array([seq[-1], canary[-1], at_s[-1]])
        # By session: in order of arrival, its values would be in another order in another batch.
        is_released = self.owners < count
        requests = np.flatnonzero(is_released)
        requests = requests[np.argsort(self.owners[requests], kind="stable")]
        released = Released(
            self.draw[:count],
            self.arm[:count],
            self.w[:count],
            self.stage[:count],
            seq[1:].astype(np.int64),
            canary[1:].astype(np.int64),
            at_s[1:],
            self.owners[requests],
            self.values[:, requests],
            self.round[:count],
            self.part[:count],
            self.fresh[:count],
            self.origin[:count],
            self.unit[:count],
        )
        if count:
            self._drop(count, ~is_released)
        return released

    def _close_passed(self, rows: Rows) -> None:
        """Close sessions that ended before a row of this block, with the counters of the row before that."""
        limit = self.start_s + self._length_s
        passed = np.flatnonzero((self.close_seq < 0) & (limit < rows.at_s[-1]))
        after = np.searchsorted(rows.at_s, limit[passed], side="right")
        seq = np.concatenate(([self.last_seq], rows.seq))
        canary = np.concatenate(([self.last_canary], rows.canary))
        self._close(passed, seq[after], canary[after], limit[passed])

    def _close(self, slots: Ints, seq: Ints, canary: Ints, at_s: Floats) -> None:
        self.close_seq[slots] = seq
        self.close_canary[slots] = canary
        self.close_at_s[slots] = at_s

    def _drop(self, count: int, kept: NDArray[np.bool_]) -> None:
        for name in _BY_SESSION:
            setattr(self, name, getattr(self, name)[count:].copy())
        self.owners = self.owners[kept] - count
        self.values = self.values[:, kept]
