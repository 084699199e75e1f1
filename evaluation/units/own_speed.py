"""Stable's own speed: did it become slower by the canary? The coin cannot tell, where both share hardware.

Two things must be true. Stable is slower now, in its last values, than before the canary; and it became so
when the canary's weight rose: the first values of a stage are slower than the last ones before it. What
changes within a stage, while the canary's weight stays, is not by the canary: longer prompts, a busy hour.
And a hold ends when stable is as fast again.

Levels of few values are noisy, more so where slow requests come in bursts; so both count less one
standard error. It is measured: by how much levels of successive values within a stage differ.

Only requests that a coin assigned are compared, each of stable's by the inverse of its P(stable): so clients
with a weight of their own, who leave stable when the canary begins, count as much as before it.
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.unit_block import Floats
from evaluation.units.sessions import Rows

RECENT = 250  # values of one half of what is recent: of more, a smooth drift of slow traffic is a rise
MIN_VALUES = 200  # effective ones, before two levels are compared


class OwnSpeed:
    """Levels of stable's logarithms: before the canary, recent ones, and the first of the present stage.

    A level is four sums: of weights, weights times logarithms, squared weights, and the number of values.
    """

    __state__ = ("before", "recent", "entry", "stage", "base", "risen", "run", "run_level", "spread", "rises")

    def __init__(self) -> None:
        self.before: Floats = np.zeros((2, 4))  # the older half, the newer one
        self.recent: Floats = np.zeros((2, 4))
        self.entry: Floats = np.zeros(4)
        self.stage = -1  # before the canary
        self.base = float("nan")  # level just before the present stage
        self.risen = 0.0  # sum of the rises at the beginning of earlier stages
        self.rises = 0  # how many stages began
        self.run: Floats = np.zeros(4)  # the present RECENT values of a stage, for the noise
        self.run_level = float("nan")  # level of those before them in the same stage
        self.spread: Floats = np.zeros(2)  # half the squared differences of successive levels; how many

    def seed(self, values: Floats) -> None:
        """Learn stable's values from before the rollout, in order."""
        known = values[np.isfinite(values)]
        _add_recent(self.before, known, np.ones(len(known)))
        self._add_to_runs(known, np.ones(len(known)))

    def learn(self, rows: Rows, values: Floats) -> None:
        """Learn requests in order. values: NaN or infinite where there is none to compare."""
        stable = ~rows.arm & np.isfinite(values)
        early = stable & (rows.logged_w == 0.0)
        if early.any():
            self.seed(values[early])
        drawn = np.flatnonzero(stable & (rows.logged_w > 0.0) & (rows.logged_w < 1.0))
        if len(drawn) == 0:
            return
        starts = np.flatnonzero(np.diff(rows.stage[drawn], prepend=self.stage) != 0)
        for start, stop in zip([0, *starts], [*starts, len(drawn)], strict=True):
            part = drawn[start:stop]
            if len(part) == 0:
                continue
            if rows.stage[part[0]] != self.stage:
                self._enter(int(rows.stage[part[0]]))
            weights = 1.0 / (1.0 - rows.logged_w[part])
            first = part[: max(RECENT - int(self.entry[3]), 0)]
            self.entry = _added(self.entry, values[first], weights[: len(first)])
            _add_recent(self.recent, values[part], weights)
            self._add_to_runs(values[part], weights)

    def slowdown(self) -> float:
        """By which factor stable is slower than before the canary, as far as its weight's rises explain, less
        one standard error of each; at least 1, and 1 while values are few."""
        now = _level(self.recent) - _level(self.before)
        if math.isnan(now):
            return 1.0
        rise = _level(self.entry[None, :]) - self.base
        risen = self.risen + (0.0 if math.isnan(rise) else rise)
        noise = math.sqrt(self.spread[0] / self.spread[1]) if self.spread[1] > 1.0 else 0.0
        # Of RECENT values. A level of two halves has half its variance, and a rise is of one half less two.
        now, risen = now - noise, risen - noise * math.sqrt(1.5 * max(self.rises, 1))
        return math.exp(max(min(now, risen), 0.0))

    def _enter(self, stage: int) -> None:
        rise = _level(self.entry[None, :]) - self.base
        self.risen += 0.0 if math.isnan(rise) else rise
        level = _level(self.before if self.stage < 0 else self.recent)
        if not (self.stage >= 0 and math.isnan(level)):
            self.base = level
        self.entry = np.zeros(4)
        self.stage = stage
        self.rises += 1
        self.run, self.run_level = np.zeros(4), math.nan

    def _add_to_runs(self, values: Floats, weights: Floats) -> None:
        """Add values of the present stage; each RECENT of them are a level to compare with the one before."""
        start = 0
        while start < len(values):
            stop = min(len(values), start + RECENT - int(self.run[3]))
            self.run = _added(self.run, values[start:stop], weights[start:stop])
            if self.run[3] >= RECENT:
                level = _level(self.run[None, :])
                if not math.isnan(level - self.run_level):
                    self.spread = self.spread + np.array([(level - self.run_level) ** 2 / 2.0, 1.0])
                self.run, self.run_level = np.zeros(4), level
            start = stop


def _added(sums: Floats, values: Floats, weights: Floats) -> Floats:
    """The sums with more values, in row order."""
    logs = np.log(np.maximum(values, 1e-9))
    terms = np.stack((weights, weights * logs, weights * weights, np.ones(len(values))))
    path: Floats = np.add.accumulate(np.concatenate((sums[:, None], terms), axis=1), axis=1)
    return path[:, -1].copy()


def _add_recent(halves: Floats, values: Floats, weights: Floats) -> None:
    """Add values to the newer half; once that is full, it becomes the older one."""
    start = 0
    while start < len(values):
        stop = min(len(values), start + RECENT - int(halves[1, 3]))
        halves[1] = _added(halves[1], values[start:stop], weights[start:stop])
        if halves[1, 3] >= RECENT:
            halves[0], halves[1] = halves[1], 0.0
        start = stop


def _level(parts: Floats) -> float:
    """Mean logarithm; not a number while the values are fewer than MIN_VALUES equally weighted ones."""
    total, logs, squares, _ = parts.sum(axis=0).tolist()
    if total * total < MIN_VALUES * squares or total == 0.0:
        return math.nan
    return float(logs / total)
