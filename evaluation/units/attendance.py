"""Attendance: who of all drawn units had a later session in a round, and who stayed away.

Kept: for each class of tosses, and bucket of units in it, how many units each arm got, and the later sessions
of the present round; by channel, the harm of earlier rounds (`HarmSoFar`). So the memory grows with the
classes (`toss_classes.MAX_CLASSES` at most) and with the units that came back at the present weight, not with
all that were ever drawn.

Only classes of the present weight count. A unit seen again at a new weight is drawn again or, if it was on
the canary, of no class any more: with the change, its earlier class ends for both arms at once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.everyone import LOOKS, Everyone, EveryoneChannel, surprise
from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate, Sampling
from evaluation.units.judged import judged_probability
from evaluation.units.later_blocks import BUCKETS, judged_block
from evaluation.units.released import Released
from evaluation.units.sessions import Rows
from evaluation.units.toss_classes import ORIGINS
from evaluation.units.units import ROUND_SESSIONS

MIN_SESSIONS = 16  # later sessions in a round: fewer cannot show anything
FIRST_LOOK = 2  # session lengths after a round's beginning: the first sessions have closed
SHAPE_AT = np.array([0.5, 0.75, 0.9, 0.97])  # shares of the values of both arms: how often a unit is above

assert LOOKS == ROUND_SESSIONS  # a look after each session length, the last one when all have closed


class Attendance:
    """Units drawn, by class and arm, and the later sessions of the present round in one lane."""

    __state__ = (
        "start_s",
        "counts",
        "p",
        "rounds",
        "logged",
        "weight",
        "kept",
        "begun",
        "look",
        "seq",
        "canary",
    )

    def __init__(self, *, session_s: float) -> None:
        self._length_s = session_s
        self.start_s = float("nan")  # of the first round: the first toss
        self.counts: Ints = np.zeros(0, dtype=np.int64)  # by origin
        self.p: Floats = np.zeros(0)  # P(canary) by class, and its round
        self.rounds: Ints = np.zeros(0, dtype=np.int64)
        self.logged: Floats = np.zeros(0)  # weight, by class
        self.weight = float("nan")  # of the last toss
        self._parts: list[Released] = []
        self.begun: dict[int, int] = {}  # later sessions by round
        self.look = FIRST_LOOK  # number of the next one: session lengths after the first toss
        self.seq = -1  # of the last row
        self.canary = 0

    @property
    def kept(self) -> list[NDArray[Any]]:
        """The later sessions kept, as plain arrays, for a snapshot; empty: none."""
        joined = self._joined()
        return [] if joined is None else joined.arrays()

    @kept.setter
    def kept(self, arrays: list[NDArray[Any]]) -> None:
        self._parts = [Released(*arrays)] if arrays else []

    def count(self, rows: Rows) -> None:
        """Count the tosses among requests, in order."""
        self.seq, self.canary = int(rows.seq[-1]), int(rows.canary[-1])
        for round_ in rows.round[rows.firsts & (rows.round > 0)].tolist():
            self.begun[round_] = self.begun.get(round_, 0) + 1
        tossed = np.flatnonzero(_tosses(rows))
        if len(tossed) == 0:
            return
        origin = rows.origin[tossed]
        size = max(int(origin.max()) // ORIGINS + 1, len(self.p))
        added = np.bincount(origin, minlength=ORIGINS * size)
        added[: len(self.counts)] += self.counts
        self.counts = added
        p, rounds, logged = np.zeros(size), np.zeros(size, dtype=np.int64), np.zeros(size)
        known = slice(len(self.p))
        p[known], rounds[known], logged[known] = self.p, self.rounds, self.logged
        logged[origin // ORIGINS] = rows.logged_w[tossed]
        self.weight = float(rows.logged_w[tossed[-1]])
        p[origin // ORIGINS] = rows.w[tossed]
        rounds[origin // ORIGINS] = 1 + (rows.at_s[tossed] - self.start_s) // (
            ROUND_SESSIONS * self._length_s
        )
        self.p, self.rounds, self.logged = p, rounds, logged

    def add(self, released: Released) -> None:
        """Keep later sessions until their round's last look."""
        if len(released):
            self._parts.append(released)

    def next_s(self) -> float:
        """The time of the next look; not a number before the first toss."""
        return self._time_of(self.look)

    def due_in(self, rows: Rows) -> tuple[list[tuple[int, int]], int]:
        """The looks to make among requests: before which row, and the look; and the look that comes next.

        A look is skipped while few later sessions of its round have begun. (With a look each ten minutes,
        slow traffic would be fed row by row.)
        """
        at_s = rows.at_s
        if np.isnan(self.start_s) and (tossed := _tosses(rows)).any():
            self.start_s = float(at_s[np.argmax(tossed)])
        if not self.next_s() < at_s[-1]:
            return [], self.look
        looks = np.arange(self.look, int((at_s[-1] - self.start_s) / self._length_s) + 2)
        times = self.start_s + looks * self._length_s
        looks, times = looks[times < at_s[-1]], times[times < at_s[-1]]
        first = np.flatnonzero(rows.firsts & (rows.round > 0))
        rounds = 1 + (looks - FIRST_LOOK) // LOOKS
        before = np.array([self.begun.get(int(round_), 0) for round_ in rounds])
        since = np.searchsorted(at_s[first], times, side="right")
        since = since - np.searchsorted(rows.round[first], rounds, side="left")
        made = np.flatnonzero(before + np.maximum(since, 0) >= MIN_SESSIONS)
        stops = np.searchsorted(at_s, times, side="right")
        return list(zip(stops[made].tolist(), looks[made].tolist(), strict=True)), int(looks[-1]) + 1

    def due_before(self, before_s: float) -> tuple[list[int], int]:
        """The looks to make before a time, when all earlier requests were fed, and the one after them."""
        known = sorted(round_ for round_, begun in self.begun.items() if begun >= MIN_SESSIONS)
        looks = [FIRST_LOOK + LOOKS * (round_ - 1) + look for round_ in known for look in range(LOOKS)]
        made = [look for look in looks if look >= self.look and self._time_of(look) < before_s]
        following = max([self.look, *(look + 1 for look in made)])
        if np.isfinite(before_s) and not np.isnan(self.start_s):
            following = max(following, int((before_s - self.start_s) / self._length_s) - 1)
            while self._time_of(following) < before_s:
                following += 1
        return made, following

    def begin(self, look: int) -> None:
        """Come to a look, and forget the rounds that have had their last."""
        self.look = look
        round_ = self.round_and_look()[0]
        self.begun = {number: begun for number, begun in self.begun.items() if number >= round_}
        joined = self._joined()
        if joined is not None and joined.round[0] < round_:
            joined = joined.pick(joined.round >= round_)
            self._parts = [joined] if len(joined) else []

    def _time_of(self, look: int) -> float:
        return self.start_s + look * self._length_s

    def round_and_look(self) -> tuple[int, int]:
        """Round and number, from 1, of the next look."""
        passed = self.look - FIRST_LOOK
        return 1 + passed // LOOKS, 1 + passed % LOOKS

    def parts_of_round(self, round_: int) -> list[Released]:
        """The later sessions of a round that have closed, by part."""
        joined = self._joined()
        if joined is None:
            return []
        joined = joined.pick(joined.round == round_)
        return [joined.pick(joined.part == part) for part in np.unique(joined.part)]

    def current(self) -> NDArray[np.bool_]:
        """By origin: whether units were drawn at the present weight by the end of the look's round."""
        is_current = (self.logged == self.weight) & (self.rounds <= self.round_and_look()[0])
        current: NDArray[np.bool_] = np.repeat(is_current, ORIGINS) & (self.counts > 0)
        return current

    def chances(self, origins: Ints) -> Floats:
        """P(canary) by origin."""
        return self.p[origins // ORIGINS]

    def groups(self, origins: Ints, part: int) -> Ints:
        """By origin, a number for its class and for the block of this part that is judged in this round.

        Both were known before the coin. Where conversations end before a judged block, on both arms, nobody
        of its group comes: they say nothing, and add no noise.
        """
        classes, buckets = np.divmod(origins // 2, BUCKETS)
        groups: Ints = (classes << part) + _judged_blocks(self.round_and_look()[0], part)[buckets]
        return groups

    def _joined(self) -> Released | None:
        if len(self._parts) > 1:
            self._parts = [Released.joined(self._parts)]
        return self._parts[0] if self._parts else None


@lru_cache(maxsize=32)
def _judged_blocks(round_: int, part: int) -> Ints:
    """The judged block of a part, by bucket."""
    return np.array([judged_block(bucket, round_, part) for bucket in range(BUCKETS)], dtype=np.int64)


def _tosses(rows: Rows) -> NDArray[np.bool_]:
    """Which requests are tosses of a class."""
    is_toss: NDArray[np.bool_] = (rows.origin >= 0) & rows.firsts & (rows.round == 0)
    return is_toss


def look_at(
    attendance: Attendance,
    channel: EveryoneChannel,
    returned: Released,
    block: UnitBlock,
    harm: Floats,
    sampling: Sampling,
) -> None:
    """Make a look that is due: all units of the present weight, with their harm in the rounds so far.

    returned: the round's later sessions of one part. block: of those that have a value, at least one, with
    their harm (K x n). Whoever stayed away has harm 1; where a judge samples, for the part that would have
    been judged. A session without a value says nothing of this round.
    """
    so_far, ways, part = channel.so_far, len(harm), int(returned.part[0])
    current = attendance.current()
    with_value = np.searchsorted(returned.draw, block.draw)
    weights, harms = np.zeros(len(returned)), np.zeros((ways, len(returned)))
    weights[with_value] = 1.0 if block.weight is None else block.weight
    harms[:, with_value] = harm
    share: Floats = np.full(len(current), float(np.sum(weights)) / len(returned))
    if sampling.canary != sampling.stable:
        share = np.where(np.arange(len(current)) % 2 == 1, sampling.canary, sampling.stable)

    came = (returned.origin >= 0) & current[np.maximum(returned.origin, 0)]
    kept = current[so_far.origin] & so_far.without(returned.unit[came])
    unit = np.concatenate((returned.unit[came], so_far.unit[kept]))
    known = np.concatenate((returned.origin[came], so_far.origin[kept]))
    others = attendance.counts - np.bincount(known, minlength=len(current))
    away = np.flatnonzero(current & (others > 0))
    origin = np.concatenate((known, away))
    base = so_far.base_of(ways, len(current))
    above = so_far.above_of(unit, known, ways)
    everyone = Everyone(
        group=attendance.groups(origin, part),
        p=judged_probability(sampling, attendance.chances(origin)),
        arm=origin % 2 == 1,
        harm=np.concatenate((harms[:, came], np.ones((ways, len(origin) - int(came.sum())))), axis=1),
        weight=np.concatenate((weights[came], share[origin[int(came.sum()) :]])),
        units=np.concatenate((np.ones(len(known)), others[away].astype(np.float64))),
        before=base[:, origin] + np.concatenate((above, np.zeros((ways, len(away)))), axis=1),
    )
    round_, look = attendance.round_and_look()
    wanted = channel.wanted(round_, look)
    means = everyone.means()
    excess = everyone.excess(means)
    channel.look(
        surprise(everyone, excess),
        wanted,
        seq=attendance.seq,
        canary=attendance.canary,
        at_s=attendance.next_s(),
    )
    if look == LOOKS and len(origin):
        origins = np.flatnonzero(current)
        mean = means[:, attendance.groups(origins, part)]
        base[:, origins] += share[origins] * (1.0 - mean)
        so_far.keep(unit, known, excess[:, : len(unit)], base)


def harm_of(block: UnitBlock, gate: Gate, failures: float) -> Floats:
    """Harm of each unit, by way of measuring it, K x n: equal on both arms at the gate's tolerance, and at
    most about 1, which is the worst.

    failures: tolerated ratio of unanswered requests, for a shape.
    """
    tolerated = 1.0 + gate.tolerance
    match gate.kind:
        case Kind.SCORE:
            return (1.0 - block.y - gate.tolerance * block.arm)[None, :]
        case Kind.RATE | Kind.MEAN:
            missing = 0.0 if block.missing is None else block.missing
            return (np.where(block.arm, block.y, np.minimum(tolerated * block.y, 1.0)) + missing)[None, :]
        case Kind.PERCENTILE:
            return block.y[None, :]
        case Kind.SHAPE:
            return _slow_parts(block, tolerated, failures)


def _slow_parts(block: UnitBlock, tolerated: float, failures: float) -> Floats:
    """Share of each unit's values above each of some percentiles of both arms' values."""
    owner = np.arange(len(block)) if block.owner is None else block.owner
    values = block.y if block.values is None else block.values
    on_canary = block.arm[owner]
    values = np.where(on_canary, values / tolerated, values)
    answered = np.isfinite(values)
    if not answered.any():
        return np.zeros((len(SHAPE_AT), len(block)))
    limits = np.quantile(values[answered], SHAPE_AT, method="inverted_cdf")
    count = np.bincount(owner, minlength=len(block))
    rows = []
    for limit in limits:
        above = (values > limit).astype(np.float64)
        mean = float(np.mean(above[answered]))
        above[~answered & on_canary] = mean + (1.0 - mean) / failures
        rows.append(np.bincount(owner, weights=above, minlength=len(block)) / np.maximum(count, 1))
    return np.stack(rows)
