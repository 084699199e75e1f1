"""Validity of A/B tests: lost units of one side, and outcomes missing by side, are INVALID."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.ab.validity import AbValidity
from evaluation.betting.wealth import Decision


def fed(is_b: np.ndarray, w: float, has_outcome: np.ndarray, *, cut: int | None = None) -> AbValidity:
    """The tests after all units, added in blocks of `cut`."""
    validity = AbValidity()
    for start in range(0, len(is_b), cut or len(is_b)):
        part = slice(start, start + (cut or len(is_b)))
        validity.add(is_b[part], np.full(len(is_b[part]), w), has_outcome[part])
    return validity


@pytest.mark.calibration
@pytest.mark.parametrize("w", [0.5, 0.1])
@pytest.mark.parametrize("graded", [1.0, 0.3])
def test_a_healthy_test_is_not_called_invalid(w: float, graded: float) -> None:
    invalid = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        invalid += fed(rng.random(1000) < w, w, rng.random(1000) < graded).reason() is not None

    assert invalid <= 3


def test_losing_a_tenth_of_one_side_is_a_sample_ratio_mismatch() -> None:
    rng = np.random.default_rng(1)
    is_b = rng.random(20_000) < 0.5
    remaining = is_b[~(is_b & (rng.random(20_000) < 0.1))]

    reason = fed(remaining, 0.5, np.ones(len(remaining))).reason()
    assert reason is not None
    assert reason.startswith("B has 47.")
    assert "the split is 50.0%" in reason


@pytest.mark.parametrize(("on_a", "on_b"), [(1.0, 0.9), (0.1, 0.2)])
def test_outcomes_missing_by_side_are_invalid(on_a: float, on_b: float) -> None:
    rng = np.random.default_rng(2)
    is_b = rng.random(6000) < 0.5

    reason = fed(is_b, 0.5, rng.random(6000) < np.where(is_b, on_b, on_a)).reason()
    assert reason is not None
    assert reason.startswith("outcomes are missing more often on one side; grade both sides alike, or, where")


@pytest.mark.slow
def test_blocks_do_not_change_the_validity_tests() -> None:
    rng = np.random.default_rng(3)
    is_b, has = rng.random(900) < 0.5, rng.random(900) < 0.5

    whole, pieces = fed(is_b, 0.5, has), fed(is_b, 0.5, has, cut=7)
    assert [(d.peak, d.log_e) for d in decisions(whole)] == [(d.peak, d.log_e) for d in decisions(pieces)]


def decisions(validity: AbValidity) -> list[Decision]:
    channels = [validity._split, *(presence.channel for presence in validity._presence)]
    return [channel.decision for channel in channels]


def test_missing_outcomes_are_reported_and_the_test_stays_valid() -> None:
    rng = np.random.default_rng(4)

    silent = fed(rng.random(150) < 0.5, 0.5, np.zeros(150))
    assert silent.reason() is None
    assert silent.missing_outcomes() == "no value in 150 requests"


def test_a_unit_without_a_coin_is_refused() -> None:
    with pytest.raises(ValueError, match="outside \\(0, 1\\)"):
        AbValidity().add([True], [1.0], [True])
