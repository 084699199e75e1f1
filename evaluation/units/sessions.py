"""Sessions: the requests of one draw as one unit with their mean, released in the order of the draws.

A session is up to `session_requests` requests within `session_s` after a draw. It closes at the last of them,
or when the time has passed; it is released after the session of every earlier draw, so that a version that
makes users return faster does not get its units counted sooner. A request that is its own unit is a session
of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.wealth import Block, Floats, Ints


@dataclass(frozen=True, slots=True)
class Rows:
    """Settled requests that are evidence, in order of assignment. Arrays of equal length.

    `position`: 1 for the first request of a draw. `single`: it is its own unit. `canary`: canary requests up
    to and including this row. `cold`: its latency is ignored, on both arms: within the warm-up of its stage,
    or while a canary replica carried more load than a stable one.
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

    def __len__(self) -> int:
        return len(self.seq)

    @classmethod
    def none(cls) -> Rows:
        """No requests."""
        ints, floats, flags = np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.bool_)
        return cls(ints, floats, flags, floats, ints, ints, flags, ints, ints, flags)

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
    def all_single(self) -> bool:
        """Whether each request is its own unit."""
        return bool(self.single.all())

    def block(self, y: Floats, rows: NDArray[np.bool_] | Ints, w: Floats) -> Block:
        """Some of these rows as a block. y, w: outcomes and probabilities of all rows."""
        if rows.dtype == np.bool_ and rows.all():
            return Block(self.arm, w, y, np.ones(len(y)), self.seq, self.canary, self.at_s, self.stage)
        return Block(
            self.arm[rows],
            w[rows],
            y[rows],
            np.ones(len(y))[rows],
            self.seq[rows],
            self.canary[rows],
            self.at_s[rows],
            self.stage[rows],
        )


class Sessions:
    """Sessions of one lane that are not released yet, by draw, with the sums of each of its columns."""

    __state__ = (
        "draw", "start_s", "arm", "w", "stage", "sums", "counts", "close_seq", "close_canary", "close_at_s",
        "last_seq", "last_canary", "given",
    )  # fmt: skip

    def __init__(self, columns: int, *, session_requests: int, session_s: float) -> None:
        self._max_requests = session_requests
        self._length_s = session_s
        self.draw: Ints = np.empty(0, dtype=np.int64)
        self.start_s: Floats = np.empty(0)
        self.arm: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
        self.w: Floats = np.empty(0)
        self.stage: Ints = np.empty(0, dtype=np.int64)
        self.sums: Floats = np.empty((columns, 0))
        self.counts: Floats = np.empty((columns, 0))
        self.close_seq: Ints = np.empty(0, dtype=np.int64)  # -1: open
        self.close_canary: Ints = np.empty(0, dtype=np.int64)
        self.close_at_s: Floats = np.empty(0)
        self.last_seq = -1
        self.last_canary = 0
        self.given: Floats = np.array([-1.0, 0.0, -np.inf])  # seq, canary, time of the last released session

    def add(self, rows: Rows, values: Floats) -> list[Block]:
        """Add requests in order; return the sessions released by that, a block for each column.

        values: columns x n, NaN where missing.
        """
        if len(rows) and len(self.draw) == 0 and rows.all_single:
            return self._single(rows, values)
        if len(rows):
            self._add(rows, values)
        return self._release()

    def close_through(self, through_s: float) -> list[Block]:
        """Close sessions that ended before the watermark `through_s`; return the sessions released so."""
        passed = np.flatnonzero((self.close_seq < 0) & (self.start_s + self._length_s < through_s))
        self._close(
            passed,
            np.full(len(passed), self.last_seq),
            np.full(len(passed), self.last_canary),
            self.start_s[passed] + self._length_s,
        )
        return self._release()

    def has_event(self, draws: Ints, column: int) -> NDArray[np.bool_]:
        """Which of these draws already have an event in this column."""
        slot = np.searchsorted(self.draw, draws)
        known = slot < len(self.draw)
        known[known] = self.draw[slot[known]] == draws[known]
        out = np.zeros(len(draws), dtype=np.bool_)
        out[known] = self.sums[column, slot[known]] > 0.0
        return out

    def _single(self, rows: Rows, values: Floats) -> list[Block]:
        """The requests themselves: sessions of one request each, with none waiting before them."""
        self.last_seq, self.last_canary = int(rows.seq[-1]), int(rows.canary[-1])
        self.given = np.array(
            [self.last_seq, self.last_canary, max(self.given[2], rows.at_s[-1])], dtype=np.float64
        )
        present = ~np.isnan(values)
        empty = rows.pick(slice(0, 0)).block(np.empty(0), np.empty(0, dtype=np.bool_), np.empty(0))
        return [
            rows.block(y, has, rows.w) if has.any() else empty for y, has in zip(values, present, strict=True)
        ]

    def _add(self, rows: Rows, values: Floats) -> None:
        first = rows.position == 1
        new = int(np.count_nonzero(first))
        self.draw = np.concatenate((self.draw, rows.draw[first]))
        self.start_s = np.concatenate((self.start_s, rows.at_s[first]))
        self.arm = np.concatenate((self.arm, rows.arm[first]))
        self.w = np.concatenate((self.w, rows.w[first]))
        self.stage = np.concatenate((self.stage, rows.stage[first]))
        self.sums = np.concatenate((self.sums, np.zeros((len(self.sums), new))), axis=1)
        self.counts = np.concatenate((self.counts, np.zeros((len(self.sums), new))), axis=1)
        self.close_seq = np.concatenate((self.close_seq, np.full(new, -1, dtype=np.int64)))
        self.close_canary = np.concatenate((self.close_canary, np.zeros(new, dtype=np.int64)))
        self.close_at_s = np.concatenate((self.close_at_s, np.zeros(new)))
        slot = np.searchsorted(self.draw, rows.draw)
        present = ~np.isnan(values)
        for column in range(len(values)):
            np.add.at(self.sums[column], slot[present[column]], values[column][present[column]])
            np.add.at(self.counts[column], slot[present[column]], 1.0)
        last = rows.single | (rows.position == self._max_requests)
        self._close(slot[last], rows.seq[last], rows.canary[last], rows.at_s[last])
        self._close_passed(rows)
        self.last_seq, self.last_canary = int(rows.seq[-1]), int(rows.canary[-1])

    def _release(self) -> list[Block]:
        """Remove the closed sessions that no open one precedes: a block for each column, of its values."""
        still_open = np.flatnonzero(self.close_seq < 0)
        count = int(still_open[0]) if len(still_open) else len(self.draw)
        seq = np.maximum.accumulate(np.concatenate(([self.given[0]], self.close_seq[:count])))
        canary = np.maximum.accumulate(np.concatenate(([self.given[1]], self.close_canary[:count])))
        at_s = np.maximum.accumulate(np.concatenate(([self.given[2]], self.close_at_s[:count])))
        self.given = np.array([seq[-1], canary[-1], at_s[-1]])
        blocks = []
        for sums, counts in zip(self.sums[:, :count], self.counts[:, :count], strict=True):
            has = counts > 0.0
            blocks.append(
                Block(
                    self.arm[:count][has],
                    self.w[:count][has],
                    sums[has] / counts[has],
                    counts[has],
                    seq[1:][has].astype(np.int64),
                    canary[1:][has].astype(np.int64),
                    at_s[1:][has],
                    self.stage[:count][has],
                )
            )
        self._drop(count)
        return blocks

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

    def _drop(self, count: int) -> None:
        for name in ("draw", "start_s", "arm", "w", "stage", "close_seq", "close_canary", "close_at_s"):
            setattr(self, name, getattr(self, name)[count:].copy())
        self.sums = self.sums[:, count:].copy()
        self.counts = self.counts[:, count:].copy()
