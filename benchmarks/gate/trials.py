"""Trials: claims about the gate, each with its traffic, its number of runs and its limit.

A trial is measured run by run (`measure(rep)` is a pure function of the trial's name and the repetition) and
judged by its goals over all runs. Decisions are those of the presets as shipped, restarts included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from zlib import crc32

from scipy.stats import binom

from benchmarks.gate.growing import GrowingBacktest, Traffic
from benchmarks.gate.world_columns import columns_of
from benchmarks.gate.worlds import World
from evaluation.offline.backtest import BacktestResult, run
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict

Group = Literal["stays", "promoted", "not proven", "power"]
Row = dict[str, int | str | None]  # one repetition: `rep`, and a decision or canary requests by column
PRESETS = ("strict", "default")


ENOUGH_RUNS = 400
ROLLBACK_LIMIT, ROLLBACK_USUAL = 0.016, 0.01  # shares of twins that may be harmed, and that usually are
UNITS = {"per request": False, "sticky": True}


def most_allowed(runs: int, limit: float, usual: float) -> int:
    """How many of the runs may go wrong. In few runs, what the promised share `usual` may cause by chance."""
    if runs >= ENOUGH_RUNS:
        return math.floor(limit * runs + 1e-9)
    return int(binom.ppf(0.975, runs, usual))


@dataclass(frozen=True, slots=True)
class Share:
    """Goal: the share of runs whose `column` is one of `of` is at most, or at least, `limit`.

    `usual`: the share that the gate promises; what is allowed in fewer than the planned runs follows from it.
    """

    column: str
    of: frozenset[str]
    limit: float
    usual: float
    at_least: bool = False

    def judge(self, rows: Sequence[Row], planned: int) -> tuple[str, bool]:
        """The figure, and whether the goal is reached."""
        values = [row[self.column] for row in rows if self.column in row]
        n, count = len(values), sum(value in self.of for value in values)
        if n == 0:
            return "", False
        if self.at_least:
            is_reached = n - count <= most_allowed(n, 1.0 - self.limit, 1.0 - self.usual)
        else:
            is_reached = count <= most_allowed(n, self.limit, self.usual)
        return f"{count / n:.1%}", is_reached

    @property
    def text(self) -> str:
        """The limit, for the table."""
        return f"{'at least' if self.at_least else 'at most'} {self.limit:.1%}"


@dataclass(frozen=True, slots=True)
class Quantile:
    """Goal: this quantile of `column` is at most `limit` canary requests; a run without it is infinite."""

    column: str
    limit: float
    q: float = 0.5

    def judge(self, rows: Sequence[Row], planned: int) -> tuple[str, bool]:
        """The figure, and whether the goal is reached."""
        values = [row[self.column] for row in rows if self.column in row]
        known = sorted(value for value in values if isinstance(value, int))
        index = max(math.ceil(self.q * len(values)) - 1, 0)
        if index >= len(known):
            return (f"{len(known) / len(values):.0%} found" if values else ""), False
        return f"{known[index]}", known[index] <= self.limit

    @property
    def text(self) -> str:
        """The limit, for the table."""
        names = {0.5: "median", 1.0: "every run"}
        return f"{names.get(self.q, f'p{self.q * 100:g}')} at most {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Goal: the median of `column` is at most `limit` times that of `than`; a run without it is infinite."""

    column: str
    than: str
    limit: float

    def judge(self, rows: Sequence[Row], planned: int) -> tuple[str, bool]:
        """The figures, and whether the goal is reached."""
        medians = []
        for column in (self.column, self.than):
            values = [row[column] for row in rows if column in row]
            known = sorted(value for value in values if isinstance(value, int))
            index = max(math.ceil(0.5 * len(values)) - 1, 0)
            medians.append(known[index] if index < len(known) else math.inf)
        ours, theirs = medians
        return f"{ours:g} / {theirs:g}", ours <= self.limit * theirs < math.inf

    @property
    def text(self) -> str:
        """The limit, for the table."""
        return f"at most {self.limit:g}x"


Goal = Share | Quantile | Ratio


@dataclass(frozen=True, slots=True)
class Trial:
    """One claim. `says`: the claim in one line. `measure`: one repetition. `runs`: of the full benchmark.

    `skipped`: why it cannot be measured yet; empty: it can.
    """

    name: str
    group: Group
    says: str
    measure: Callable[[int], Row]
    goals: Mapping[str, Goal]  # by the heading of its figure
    runs: int = 1000
    quick_runs: int = 20
    skipped: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Of the number of repetitions and the table."""
        return "trial"


def seed_of(name: str, rep: int) -> list[int]:
    """The seed of a repetition: of the trial's name alone."""
    return [crc32(name.encode()), rep]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a preset decided: promote, rollback, invalid or undecided; after how many canary requests (None:
    it has not); and the metrics by which it rolled back."""

    word: str
    canary: int | None
    metrics: frozenset[str]


def decide(
    traffic: Traffic, preset: str, stage: StagePlan, *, canary_requests: int | None = None
) -> Decision:
    """The decision of a preset, as shipped, on one stage with this traffic. canary_requests: of its beginning
    alone; None: all."""
    backtest = GrowingBacktest(traffic, GatePolicy.named(preset), stage)
    backtest.grow(len(traffic) if canary_requests is None else traffic.rows_of(canary_requests))
    return decision_of(backtest.result(), stage)


def decision_of(result: BacktestResult, stage: StagePlan) -> Decision:
    """The decision of a backtest of one stage."""
    is_decided = result.decision in ("rollback", "promote")
    failed = [r for r in result.gates if r.side == "rollback" and r.verdict is Verdict.FAIL]
    canary = max(result.canary_requests, stage.min_canary) if result.decision == "promote" else None
    if result.decision == "rollback":
        canary = result.canary_requests
    assert is_decided == (canary is not None)
    return Decision(result.decision, canary, frozenset(r.metric for r in failed))


#: The first rung as shipped, on a stage of at least 500 canary requests.
FIRST_RUNG = StagePlan(0.05, 500)
#: Nothing to prove: only whether the canary stays.
NO_PROOF = StagePlan(0.5, 0, {})
HARMED = frozenset({"rollback", "invalid"})


def stays_goals() -> dict[str, Goal]:
    """By preset, that no more twins are harmed than the gate promises."""
    return {preset: Share(preset, HARMED, ROLLBACK_LIMIT, ROLLBACK_USUAL) for preset in PRESETS}


#: Weights that the runs of a twin go through, and its drawn requests.
WEIGHTS = (0.1, 0.25, 0.5)
TWIN_ROWS = 5000


@dataclass(frozen=True, slots=True)
class Stays:
    """Measure: what each preset decides on a world, at 10, 25 and 50 % in turn. `by`: only rollbacks of these
    metrics count, and no INVALID; empty: any rollback, and INVALID."""

    name: str
    world: World
    presets: tuple[str, ...] = PRESETS
    by: tuple[str, ...] = ()
    rows: int = field(default=TWIN_ROWS, repr=False)  # drawn requests; not in the repr, as of `World`

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        w = WEIGHTS[rep % len(WEIGHTS)]
        world = replace(self.world, w=w, canary_requests=round(self.rows * w))
        traffic = Traffic(columns_of(world, seed_of(self.name, rep)))
        row: Row = {"rep": rep}
        for preset in self.presets:
            decision = decide(traffic, preset, NO_PROOF)
            row[preset] = decision.word
            if self.by:
                row[preset] = "rollback" if decision.metrics & set(self.by) else "undecided"
        return row


@dataclass(frozen=True, slots=True)
class Better:
    """Measure: whether a strictly better canary stays, and is promoted within 10,000 canary requests.

    The first rung as shipped, at the world's weight. Undecided runs go on to the next length.
    """

    name: str
    world: World

    LENGTHS = (1250, 4000, 10_000)
    DEFAULT_REPS = 400  # of the runs, those that are decided under `default` as well

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        traffic = Traffic(columns_of(self.world, seed_of(self.name, rep)))
        row: Row = {"rep": rep}
        for preset in PRESETS if rep < self.DEFAULT_REPS else PRESETS[:1]:
            backtest = GrowingBacktest(traffic, GatePolicy.named(preset), FIRST_RUNG)
            for length in self.LENGTHS:
                backtest.grow(traffic.rows_of(length))
                decision = decision_of(backtest.result(), FIRST_RUNG)
                if decision.word != "undecided":
                    break
            row[preset], row[f"{preset}_at"] = decision.word, decision.canary
        return row


@dataclass(frozen=True, slots=True)
class NotProven:
    """Measure: whether the last of the world's stages proves margins that the canary does not keep."""

    name: str
    world: World
    margins: Mapping[str, float]
    floor: float = 0.0005

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        columns = columns_of(self.world, seed_of(self.name, rep))
        policy = GatePolicy.default().only(*self.world.metrics)
        stage = StagePlan(self.world.w, 0, self.margins, self.floor)
        result = run(columns, policy, stages=(stage,) * self.world.stages)
        # Only the proof is in question: a rollback before it would hide a false one.
        return {"rep": rep, "proven": "promote" if set(self.margins) <= set(result.proofs) else "undecided"}


@dataclass(frozen=True, slots=True)
class Found:
    """Measure: canary requests at each preset's rollback, counted from the first with the canary's own
    behaviour; None: not found, or found before."""

    name: str
    world: World
    presets: tuple[str, ...] = PRESETS

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        columns = columns_of(replace(self.world, stages=2), seed_of(self.name, rep))
        is_late = (columns.pop("stage") == 1) & (columns["arm"] == 1)
        onset = int(columns["arm"][: int(is_late.argmax())].sum())
        traffic = Traffic(columns)
        row: Row = {"rep": rep}
        for preset in self.presets:
            decision = decide(traffic, preset, NO_PROOF)
            row[preset] = decision.word
            after = (decision.canary or 0) - onset
            row[f"{preset}_at"] = after if decision.word == "rollback" and after >= 0 else None
        return row
