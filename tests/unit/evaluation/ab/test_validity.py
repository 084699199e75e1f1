"""A broken experiment is called so: a lost side, outcomes that hang on the side. A healthy one is not."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.ab.validity import AbValidity
from evaluation.betting.wealth import Decision


def fed(is_b: np.ndarray, w: float, has_outcome: np.ndarray, *, cut: int | None = None) -> AbValidity:
    """All units, in pieces of `cut`."""
    made = AbValidity()
    for start in range(0, len(is_b), cut or len(is_b)):
        part = slice(start, start + (cut or len(is_b)))
        made.add(is_b[part], np.full(len(is_b[part]), w), has_outcome[part])
    return made


@pytest.mark.parametrize("w", [0.5, 0.1])
@pytest.mark.parametrize("graded", [1.0, 0.3])
def test_a_healthy_test_is_not_called_invalid(w: float, graded: float) -> None:
    called = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        called += fed(rng.random(1000) < w, w, rng.random(1000) < graded).reason() is not None

    assert called <= 3


def test_a_side_that_loses_a_tenth_of_its_units_breaks_the_split() -> None:
    rng = np.random.default_rng(1)
    is_b = rng.random(20_000) < 0.5
    kept = is_b[~(is_b & (rng.random(20_000) < 0.1))]

    reason = fed(kept, 0.5, np.ones(len(kept))).reason()
    assert reason is not None
    assert reason.startswith("B has 47.")
    assert "the split is 50.0%" in reason


@pytest.mark.parametrize(("on_a", "on_b"), [(1.0, 0.9), (0.1, 0.2)])
def test_outcomes_that_hang_on_the_side_are_found(on_a: float, on_b: float) -> None:
    rng = np.random.default_rng(2)
    is_b = rng.random(6000) < 0.5

    reason = fed(is_b, 0.5, rng.random(6000) < np.where(is_b, on_b, on_a)).reason()
    assert reason == "outcomes are missing more often on one side; grade both sides alike"


def test_however_the_units_are_cut_the_evidence_is_the_same() -> None:
    rng = np.random.default_rng(3)
    is_b, has = rng.random(900) < 0.5, rng.random(900) < 0.5

    whole, pieces = fed(is_b, 0.5, has), fed(is_b, 0.5, has, cut=7)
    assert [(one.peak, one.log_e) for one in decisions(whole)] == [
        (one.peak, one.log_e) for one in decisions(pieces)
    ]


def decisions(validity: AbValidity) -> list[Decision]:
    channels = [validity._split, *(presence.channel for presence in validity._presence)]
    return [channel.decision for channel in channels]


def test_silence_is_said_and_is_no_fault_of_the_test() -> None:
    rng = np.random.default_rng(4)

    silent = fed(rng.random(150) < 0.5, 0.5, np.zeros(150))
    assert silent.reason() is None
    assert silent.missing_outcomes() == "no value in 150 requests"


def test_a_unit_without_a_coin_is_refused() -> None:
    with pytest.raises(ValueError, match="outside \\(0, 1\\)"):
        AbValidity().add([True], [1.0], [True])
