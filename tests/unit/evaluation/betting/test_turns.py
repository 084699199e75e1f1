"""Lengths of conversations: a difference between the arms is found, also where the means are equal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from evaluation.betting.sample_ratio import TurnsBet
from evaluation.betting.wealth import Channel, Decision
from evaluation.stream import Stream
from tests.fakes.evidence_maker import unit_block

Law = Callable[[np.random.Generator, int], np.ndarray]
ALPHA = 0.01


def usual(rng: np.random.Generator, size: int) -> np.ndarray:
    return 1 + rng.poisson(2.0, size)


def one_or_five(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.choice([1, 5], size)


def three(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full(size, 3)


def one(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.ones(size, dtype=np.int64)


def bet(stable: Law, canary: Law, seed: int = 0, sessions: int = 800, w: float = 0.25) -> Decision:
    """The decision after so many sessions, of which the first hundred are from before the canary."""
    rng = np.random.default_rng(seed)
    weight = np.where(np.arange(sessions) < 100, 0.0, w)
    arm = rng.random(sessions) < weight
    turns = np.where(arm, canary(rng, sessions), stable(rng, sessions))
    stream = Stream(with_histogram=False)
    stream.channels = [Channel(TurnsBet(max_turns=10), limit=math.log(1.0 / ALPHA), restart_share=0.3)]
    stream.feed(replace(unit_block(arm, weight, np.zeros(sessions)), n=turns.astype(float)))
    return stream.channels[0].decision


@pytest.mark.parametrize(
    ("stable", "canary"),
    [
        (usual, one_or_five),
        (one_or_five, usual),
        (usual, three),
        (three, one_or_five),
        (one, usual),
    ],
)
def test_conversations_of_another_spread_are_found(stable: Law, canary: Law) -> None:
    assert bet(stable, canary).is_reached


@pytest.mark.parametrize("law", [usual, one_or_five, three])
def test_equal_conversations_seldom_seem_to_differ(law: Law) -> None:
    assert sum(bet(law, law, seed, sessions=400).is_reached for seed in range(4)) <= 1
