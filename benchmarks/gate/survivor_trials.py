"""Trials of users who stay or leave by what they get: those whom an arm fails leave for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gate.growing import Traffic
from benchmarks.gate.trials import NO_PROOF, PRESETS, Row, Share, Trial, decide, seed_of, stays_goals
from benchmarks.gate.world_columns import Columns

W = 0.3
TURNS = 3.0  # of a visit
LEAVES = 0.8  # of the users who met a failure, after the visit
QUALITY_WEIGHT = 8.0


@dataclass(frozen=True, slots=True)
class Survivors:
    """Measure: the decision on users who come back each hour, as far as they have not left.

    `hard`: share of users with hard prompts, who wait `slow` times as long for answers of mean quality
    `hard_quality`, on both arms. `fails`: share of their requests that stable fails; the canary fails 1 %, or
    as many if `alike`. `loss`: of the canary's quality from the second hour on. `back`: P(a visit in an
    hour).
    """

    name: str
    hard: float = 0.15
    fails: float = 0.35
    slow: float = 3.0
    hard_quality: float = 0.5
    alike: bool = False
    loss: float = 0.0
    back: float = 0.8
    users: int = 4000
    hours: int = 5

    def __call__(self, rep: int) -> Row:
        """One repetition."""
        traffic = Traffic(self.columns(seed_of(self.name, rep)))
        return {"rep": rep, **{preset: decide(traffic, preset, NO_PROOF).word for preset in PRESETS}}

    def columns(self, seed: Sequence[int]) -> Columns:
        """The requests of one run, in order of time."""
        rng = np.random.default_rng(list(seed))
        is_hard, arm = rng.random(self.users) < self.hard, rng.random(self.users) < W
        stays = np.ones(self.users, dtype=np.bool_)
        hours: list[Columns] = []
        for hour in range(self.hours):
            visits = np.flatnonzero(stays & ((hour == 0) | (rng.random(self.users) < self.back)))
            turns = 1 + rng.poisson(TURNS - 1.0, len(visits))
            user = np.repeat(visits, turns)
            start = np.repeat(rng.uniform(0.0, 2400.0, len(visits)), turns)
            hard, on_canary = is_hard[user], arm[user]
            failed = rng.random(len(user)) < np.where(hard & (self.alike | ~on_canary), self.fails, 0.01)
            latency = rng.lognormal(np.log(800.0), 0.5, len(user)) * np.where(hard, self.slow, 1.0)
            mean = np.where(hard, self.hard_quality, 0.75)
            quality = rng.beta(QUALITY_WEIGHT * mean, QUALITY_WEIGHT * (1.0 - mean))
            quality = np.maximum(quality - self.loss * (on_canary & (hour > 0)), 0.0)
            stays[user[failed & (rng.random(len(user)) < LEAVES)]] = False
            hours.append(
                {
                    "t_s": 3600.0 * hour + start + rng.uniform(0.0, 400.0, len(user)),
                    "unit": user,
                    "arm": on_canary.astype(np.int64),
                    "error": failed.astype(np.float64),
                    "rejected": np.zeros(len(user)),
                    "latency_ms": np.where(failed, 20.0, latency),
                    "quality": np.where(failed, np.nan, quality),
                    "hallucinated": np.where(failed, np.nan, rng.random(len(user)) < 0.03),
                }
            )
        columns: Columns = {name: np.concatenate([part[name] for part in hours]) for name in hours[0]}
        order = np.argsort(columns["t_s"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        size = len(order)
        return {
            **columns,
            "w": np.full(size, W),
            "assigned_by": np.full(size, "sticky"),
            "request_id": np.arange(size),
        }


def survivor_trials() -> list[Trial]:
    """A canary that keeps users by repairing failures stays; harm to those who come back is found."""
    trials = []
    for name, says, measure in (
        (
            "keeps users with slow prompts",
            "stable fails 35 % of these, and they leave; the canary's later requests are slower, none by it",
            Survivors("keeps users with slow prompts"),
        ),
        (
            "keeps users with hard prompts",
            "stable fails 35 % of these, and they leave; the canary's later answers are worse, none by it",
            Survivors("keeps users with hard prompts", slow=1.0, hard_quality=0.4),
        ),
        (
            "users leave both arms alike",
            "stable's failures on both arms",
            Survivors("users leave both arms alike", alike=True),
        ),
    ):
        goals = stays_goals()
        trials.append(Trial(name, "stays", says, measure, goals))
    for back, loss in ((0.8, 0.1), (0.5, 0.2)):
        name = f"quality -{loss:g} from the second hour on, users come back with {back:.0%}"
        measure = Survivors(name, alike=True, fails=0.01, loss=loss, back=back)
        found = frozenset({"rollback"})
        goals = {p: Share(p, found, 0.9, 0.95, at_least=True) for p in PRESETS}
        says = "4000 users, four hours of harm; whoever stays away counts as the worst, on both arms"
        trials.append(Trial(name, "power", says, measure, goals, runs=200))
    return trials
