"""The limit that a session's requests are compared with: that of its draw, whatever is learned meanwhile.

A percentile's limit is learned from stable's values, row by row. If a session's later rows had the newest
one, it would have learned the unit's own earlier values if the unit is on stable, and not if it is on the
canary: a slow user would raise the limit for himself on one arm alone. So it would not be known before the
coin. (Of twins whose users differ in speed, the canary had 1.1 times as many requests above it as stable with
ten turns, and 1.3 times with a hundred; with `session_requests: 100` that rolled back 3 of 11.)

Rejected: to learn a unit's values once its session is released. That is behind every earlier one, so one slow
conversation would hold back what is known of all others, for as long as a session at least.

Not mended by this: a later session (`units/later_blocks.py`) has the limit of its own beginning, which has
learned the unit's first session if it is on stable. (Of twins whose users differ by a standard deviation of
1 in the logarithm, with ten requests each: the canary's exceedances are 1.03 to 1.17 times stable's, the more
the less others ask in the 20 minutes between.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from evaluation.betting.histogram import NO_STEPS, Steps
from evaluation.betting.unit_block import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Of each row: its number, that of its session's first one, its time, and whether it begins a session of
    several requests."""

    seq: Ints
    draw: Ints
    at_s: Floats
    begins: Flags


@dataclass(frozen=True, slots=True)
class Limits:
    """What the rows of an epoch are compared with. edges: as of `Exceedance`. steps: of its values."""

    edges: Floats = field(default_factory=lambda: np.empty(0))
    steps: Steps = NO_STEPS


class SessionLimits:
    """The limits of this epoch, and of earlier ones in which sessions began that may be open.

    Bounded by the epochs in the length of a session, of `LONGEST_WAIT` rows each; where each request is its
    own unit, only that of now is kept.
    """

    __state__ = ("first_seq", "ended_s", "edges", "steps", "is_begun")

    def __init__(self, session_s: float) -> None:
        self._session_s = session_s
        self.first_seq: Ints = np.full(1, -1, dtype=np.int64)  # row of each epoch, the last of which is now
        self.ended_s: Floats = np.array([np.inf])
        self.edges: Floats = np.empty((0, 1))  # by edge and epoch
        self._steps: list[Steps] = [NO_STEPS]
        self.is_begun = False  # a session began in this epoch

    @property
    def steps(self) -> list[tuple[Floats, bool, Floats]]:
        """The steps of each epoch as plain values, for a snapshot."""
        return [(steps.points, steps.is_mixed, steps.lows) for steps in self._steps]

    @steps.setter
    def steps(self, rows: list[tuple[Floats, bool, Floats]]) -> None:
        self._steps = [Steps(*row) for row in rows]

    def set(self, limits: Limits) -> None:
        """Replace those of now, before any row had them."""
        edges = limits.edges[:, None]
        self.edges = np.concatenate((self.edges[:, :-1], edges), axis=1) if len(self.edges) else edges
        self._steps[-1] = limits.steps

    def note(self, rows: RowOrder | None, which: slice = slice(None)) -> None:
        """Note whether sessions begin in rows of this epoch. rows: None: each is its own unit."""
        self.is_begun = self.is_begun or (rows is not None and bool(rows.begins[which].any()))

    def begin(self, limits: Limits, first_seq: int, now_s: float) -> None:
        """End the epoch, and begin one with these limits. Forgets those that no open session has."""
        ended = np.append(self.ended_s[:-1], now_s)
        kept = ended + self._session_s >= now_s
        kept[-1] = self.is_begun
        self.first_seq = np.append(self.first_seq[kept], first_seq)
        self.ended_s = np.append(ended[kept], np.inf)
        self.edges = np.concatenate((self.edges[:, kept], limits.edges[:, None]), axis=1)
        self._steps = [steps for steps, is_kept in zip(self._steps, kept.tolist(), strict=True) if is_kept]
        self._steps.append(limits.steps)
        self.is_begun = False

    def epochs_of(self, rows: RowOrder | None, which: slice, count: int) -> Ints:
        """The epoch of the draw of each of `count` rows. rows: None: each is its own unit, of now."""
        if rows is None:
            return np.full(count, len(self.first_seq) - 1)
        index: Ints = np.searchsorted(self.first_seq, rows.draw[which], side="right") - 1
        return np.maximum(index, 0)

    def steps_of(self, epochs: Ints) -> list[tuple[Steps, Flags]]:
        """The steps of some rows by the rows' epochs, where there are any: which rows have which."""
        found = []
        for epoch in np.unique(epochs).tolist():
            if len(self._steps[epoch].points):
                found.append((self._steps[epoch], epochs == epoch))
        return found
