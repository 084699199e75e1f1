"""Bets on means are fair where the null holds with equality, and can ruin nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.betting.means import MeanLoss, MeanProof
from evaluation.betting.stable_baseline import Stable
from tests.fakes.evidence_maker import unit_block

SHARES = st.floats(0.01, 0.99)
VALUES = st.floats(0.0, 1.0)


def factors(bettor: MeanLoss | MeanProof, arm: int, w: float, y: float, gap: float = 0.0) -> np.ndarray:
    block = unit_block(np.array([arm]), w, np.array([y]))
    block = replace(block, gap=np.array([gap])) if gap else block
    return np.exp(bettor.bets(block).log_factors[:, 0])


def learned(bettor: MeanLoss | MeanProof, mean: float) -> MeanLoss | MeanProof:
    stable = Stable(with_histogram=False)
    stable.learn(np.full(500, mean))
    bettor.end_epoch(stable)
    return bettor


@pytest.mark.parametrize("kind", ["loss", "proof"])
@settings(max_examples=25)
@given(w=SHARES, low=VALUES, high=VALUES, part=SHARES, known=VALUES, ratio=st.floats(1.0, 3.0))
def test_at_the_nulls_ratio_the_expected_factor_is_one(
    kind: str, w: float, low: float, high: float, part: float, known: float, ratio: float
) -> None:
    """Stable costs `low` or `high`; the canary `ratio` times its mean, always or, where that is above 1, as
    the parts of it that can be."""
    mean = (1 - part) * low + part * high
    if ratio * mean > 1.0:
        low, high, mean = low / ratio, high / ratio, mean / ratio
    bettor = MeanLoss(tolerance=ratio - 1.0) if kind == "loss" else MeanProof(ratio=ratio)
    learned(bettor, known)

    on_stable = (1 - part) * factors(bettor, 0, w, low) + part * factors(bettor, 0, w, high)
    expected = w * factors(bettor, 1, w, ratio * mean) + (1 - w) * on_stable

    np.testing.assert_allclose(expected, 1.0, rtol=1e-9)


@settings(max_examples=25)
@given(w=SHARES, y=VALUES, known=VALUES, ratio=st.floats(1.0, 3.0), gap=st.floats(-0.9, 0.9))
def test_no_unit_ruins_a_bet(w: float, y: float, known: float, ratio: float, gap: float) -> None:
    for bettor in (MeanLoss(tolerance=ratio - 1.0), MeanProof(ratio=ratio)):
        learned(bettor, known)
        for arm in (0, 1):
            assert (factors(bettor, arm, w, y, gap) > 0.05).all()


@settings(max_examples=25)
@given(w=SHARES, y=VALUES, known=SHARES, gap=st.floats(0.01, 0.9))
def test_what_only_one_arm_answers_never_helps_the_bet(w: float, y: float, known: float, gap: float) -> None:
    """More answers of the canary make harm no likelier, and fewer prove nothing sooner."""
    loss, proof = learned(MeanLoss(tolerance=0.1), known), learned(MeanProof(ratio=1.2), known)

    assert (factors(loss, 1, w, y, gap) <= factors(loss, 1, w, y) + 1e-12).all()
    assert (factors(proof, 1, w, y, -gap)[0] <= factors(proof, 1, w, y)[0] + 1e-12).all()
