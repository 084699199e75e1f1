"""Released: closed sessions with the values of their requests, and the blocks of units made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Flags, Floats, Ints, UnitBlock, ones

#: Which requests without a value count, as missing: those without an answer, those with one, or both; the
#: answers that a judge is known to have drawn (`judged.UNJUDGED`), or both these and those without an answer.
Counted = Literal["failed", "unscored", "all", "unjudged", "sampled"]


@dataclass(frozen=True, slots=True)
class Released:
    """Closed sessions in the order of their draws, with the values of their requests by column.

    `owner`: the session of each request; None: each request is a session. `values`: columns x requests, NaN
    where missing. `round`, `part`, `fresh`, `origin`, `unit`: as in `Rows`.
    """

    draw: Ints
    arm: NDArray[np.bool_]
    w: Floats
    stage: Ints
    seq: Ints
    canary: Ints
    at_s: Floats
    owner: Ints | None
    values: Floats
    round: Ints
    part: Ints
    fresh: NDArray[np.bool_]
    origin: Ints
    unit: Ints

    def __len__(self) -> int:
        return len(self.draw)

    def arrays(self) -> list[NDArray[Any]]:
        """The fields in order, for a snapshot. Only where sessions own their requests."""
        return [getattr(self, name) for name in self.__slots__]

    @staticmethod
    def joined(parts: Sequence[Released]) -> Released:
        """The sessions of all parts, in order. Only where sessions own their requests."""
        owners, start = [], 0
        for part in parts:
            assert part.owner is not None
            owners.append(part.owner + start)
            start += len(part)
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=-1)
            for name in Released.__slots__
            if name != "owner"
        }
        return Released(**columns, owner=np.concatenate(owners))

    def by_round(self) -> Released:
        """The same sessions, with their round as their stage."""
        return replace(self, stage=self.round)

    def pick(self, which: Flags) -> Released:
        """The chosen sessions of several requests, in order; each has the requests that it owns."""
        if which.all():
            return self
        assert self.owner is not None
        chosen, inside = np.flatnonzero(which), which[self.owner]
        owner = (np.cumsum(which) - 1)[self.owner[inside]]
        return Released(
            self.draw[chosen],
            self.arm[chosen],
            self.w[chosen],
            self.stage[chosen],
            self.seq[chosen],
            self.canary[chosen],
            self.at_s[chosen],
            owner,
            self.values[:, inside],
            self.round[chosen],
            self.part[chosen],
            self.fresh[chosen],
            self.origin[chosen],
            self.unit[chosen],
        )

    def means(self, column: int) -> Floats:
        """Mean of a column over each session's requests; NaN: none has a value."""
        values = self.values[column]
        if self.owner is None:
            whole: Floats = values
            return whole
        present = ~np.isnan(values)
        owner, values = self.owner[present], values[present]
        count = np.bincount(owner, minlength=len(self)).astype(np.float64)
        total = np.bincount(owner, weights=values, minlength=len(self))
        return np.where(count > 0.0, total / np.maximum(count, 1.0), np.nan)

    def block(
        self, column: int, w: Floats | None = None, gap: Floats | None = None, *, single_values: bool = False
    ) -> UnitBlock:
        """The sessions with a value in a column. w, gap: of all sessions; w None: their own."""
        w = self.w if w is None else w
        values = self.values[column]
        present = ~np.isnan(values)
        if self.owner is None:
            if present.all():
                return UnitBlock(
                    self.draw, self.arm, w, values, ones(len(self)), self.seq, self.canary, self.at_s,
                    self.stage, gap, is_checked=True,
                )  # fmt: skip
            return self._block(np.flatnonzero(present), values, ones(len(self)), w, gap)
        owner, values = self.owner[present], values[present]
        count = np.bincount(owner, minlength=len(self)).astype(np.float64)
        mean = np.bincount(owner, weights=values, minlength=len(self)) / np.maximum(count, 1.0)
        has = np.flatnonzero(count > 0.0)
        block = self._block(has, mean, count, w, gap)
        if not single_values:
            return block
        places = np.cumsum(count > 0.0) - 1
        return replace(block, values=values, owner=places[owner], is_checked=True)

    def whole_block(self, y: Floats) -> UnitBlock:
        """All sessions, with their outcomes."""
        return self._block(np.arange(len(self)), y, ones(len(self)), self.w, None)

    def block_of(self, y: Floats, w: Floats | None = None) -> UnitBlock:
        """The sessions with an outcome `y`, NaN for none. w: None: their own."""
        rows = np.flatnonzero(~np.isnan(y))
        return self._block(rows, y, ones(len(self)), self.w if w is None else w, None)

    def known(self, column: int) -> Floats:
        """How many of each session's requests have a value in a column."""
        return self._summed(~np.isnan(self.values[column]))

    def answered(self, weight_column: int) -> Floats:
        """How many of each session's requests have an answer, by the weights of those that lack a value."""
        return self._summed(self.values[weight_column] <= 0.0)

    def block_with_missing(
        self,
        column: int,
        weight_column: int,
        w: Floats | None,
        gap: Floats | None,
        count: Counted,
        has_one: NDArray[np.bool_] | None = None,
    ) -> UnitBlock:
        """The sessions, where requests without a value count 0 in `y`.

        weight_column: the column of `judged.missing_weights`. Where unscored ones do not count, a session
        without any value has the mean weight of its requests. has_one: sessions that miss nothing as soon as
        they have one value; None: none.
        """
        w = self.w if w is None else w
        y, weight = self.values[column], self.values[weight_column]
        has, failed, unjudged = ~np.isnan(y), weight > 0.0, weight < 0.0
        n, values = self._summed(~np.isnan(weight)), self._summed(has)
        sums = self._summed(np.where(has, y, 0.0))
        weights = self._summed(np.where(failed, weight, 0.0))
        drawn = self._summed(unjudged) if count in ("unjudged", "sampled") else np.zeros(len(self))
        if count in ("failed", "sampled"):
            whole, missing = values + weights + drawn, weights + drawn
        elif count == "unjudged":
            whole, missing = values + drawn, drawn
        else:
            whole = n if count == "all" else n - self._summed(failed)
            if has_one is not None:
                failures = weights if count == "all" else 0.0
                whole = np.where(has_one & (values > 0.0), values + failures, whole)
            missing = whole - values
        rows = np.flatnonzero(whole > 0.0)
        whole = np.maximum(whole, 1e-12)
        block = self._block(rows, sums / whole, n, w, gap)
        if not missing.any():
            return block
        missing = (missing / whole)[rows]
        if count in ("failed", "sampled"):
            part = np.where(values + drawn > 0.0, 1.0, weights / np.maximum(n, 1.0))
            block = replace(block, missing=missing, weight=part[rows], is_checked=True)
            if not drawn.any():
                return block
            return replace(block, counted=((values + weights) / whole)[rows], is_checked=True)
        counted = (values + weights if count == "all" else values) / whole
        return replace(block, missing=missing, counted=counted[rows], is_checked=True)

    def _summed(self, of_requests: NDArray[Any]) -> Floats:
        """Sums over each session's requests."""
        if self.owner is None:
            return of_requests.astype(np.float64)
        weights = of_requests.astype(np.float64)
        return np.bincount(self.owner, weights=weights, minlength=len(self)).astype(np.float64)

    def _block(self, rows: Ints, y: Floats, n: Floats, w: Floats, gap: Floats | None) -> UnitBlock:
        return UnitBlock(
            self.draw[rows],
            self.arm[rows],
            w[rows],
            y[rows],
            n[rows],
            self.seq[rows],
            self.canary[rows],
            self.at_s[rows],
            self.stage[rows],
            None if gap is None else gap[rows],
            is_checked=True,
        )
