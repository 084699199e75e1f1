"""The test of everyone who was drawn: how often identical versions are found worse, over several rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.betting.everyone import LOOKS, Everyone, EveryoneChannel, surprise

pytestmark = pytest.mark.calibration
RUNS, ROUNDS, ALPHA = 1000, 6, 0.05


def is_found(rng: np.random.Generator, *, users: int, p: float, comes: float, is_score: bool) -> bool:
    """Whether the last look of some round finds the canary worse. Two thirds of the users are of one class, a
    third of another with `p / 2`; `comes`: who comes back in a round."""
    group = (np.arange(users) % 3 == 2).astype(np.int64)
    chance = np.where(group == 1, p / 2, p)
    arm, before, channel = rng.random(users) < chance, np.zeros((1, users)), EveryoneChannel()
    channel.decision.limit = math.log(1.0 / ALPHA)
    for round_ in range(1, ROUNDS + 1):
        harm = 1.0 - rng.beta(6, 2, users) if is_score else (rng.random(users) < 0.01) * 1.0
        look = Everyone(
            group=group,
            p=chance,
            arm=arm,
            harm=np.where(rng.random(users) < comes, harm, 1.0)[None, :],
            weight=np.ones(users),
            units=np.ones(users),
            before=before,
        )
        before = look.excess(look.means())
        if surprise(look, before) >= channel.wanted(round_, LOOKS):
            return True
    return False


@pytest.mark.parametrize("is_score", [True, False])
@pytest.mark.parametrize(
    ("users", "p", "comes"),
    [(40, 0.5, 0.5), (60, 0.02, 0.3), (300, 0.98, 0.8), (300, 0.1, 0.1), (1500, 0.25, 0.7)],
)
def test_identical_versions_are_found_worse_at_most_as_often_as_promised(
    users: int, p: float, comes: float, is_score: bool
) -> None:
    """The last looks of six rounds may spend 43 % of alpha; also with few users, ties, and rare coins."""
    found = sum(
        is_found(np.random.default_rng(seed), users=users, p=p, comes=comes, is_score=is_score)
        for seed in range(RUNS)
    )

    spent = ALPHA * 0.5 * (1.0 - 1.0 / (ROUNDS + 1))
    assert found <= stats.binom.ppf(0.999, RUNS, spent)
