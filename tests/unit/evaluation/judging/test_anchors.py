"""Anchors: an unchanged judge is hardly ever called changed, and a changed one soon is."""

from __future__ import annotations

import random

import pytest

from evaluation.judging.anchors import MAX_MOMENTS, AnchorWatch, RateChange

ADMITTED = (0.2, 0.05)  # of an admitted judge: misses, false alarms


def drifts_after(
    seed: int, after: tuple[float, float], *, at: int, count: int, alpha: float = 0.01
) -> int | None:
    """After how many anchors the watch says that the judge drifted, whose error rates change `at` one."""
    rng, watch = random.Random(seed), AnchorWatch(alpha)
    for n in range(count):
        is_bad = n % 2 == 0
        is_wrong = rng.random() < (ADMITTED if n < at else after)[0 if is_bad else 1]
        if watch.add(is_bad=is_bad, called_bad=is_bad is not is_wrong) is not None:
            return n
    return None


def test_an_unchanged_judge_is_not_called_changed() -> None:
    assert [drifts_after(seed, ADMITTED, at=0, count=300) for seed in range(8)] == [None] * 8


@pytest.mark.parametrize("after", [(0.5, 0.5), (0.2, 0.6), (0.9, 0.05)])
def test_a_changed_judge_is_found_and_not_before(after: tuple[float, float]) -> None:
    for seed in range(3):
        found = drifts_after(seed, after, at=200, count=500)
        assert found is not None
        assert found >= 200


def test_a_judge_that_has_become_better_is_another_judge_too() -> None:
    watch = AnchorWatch()
    for n in range(400):
        watch.add(is_bad=True, called_bad=n % 6 > 0)
    for _ in range(400):
        watch.add(is_bad=True, called_bad=True)
    assert watch.drift is not None
    assert watch.drift.startswith("the judge drifted: bad answers that it passes went from 17% to 0%")


@pytest.mark.parametrize(
    ("wrong", "is_bad", "said"), [(0.6, True, "passes are"), (0.3, False, "calls bad are")]
)
def test_a_judge_that_never_was_as_admitted_is_named(wrong: float, is_bad: bool, said: str) -> None:
    """One that can only compare with a reference is blind to live answers, and to anchors from the first."""
    for seed in range(5):
        rng, watch = random.Random(seed), AnchorWatch()
        for _ in range(150):
            watch.add(is_bad=is_bad, called_bad=is_bad is not (rng.random() < wrong))
        assert watch.drift is not None
        assert said in watch.drift


@pytest.mark.slow
def test_a_judge_just_good_enough_is_not_named() -> None:
    limit = (0.2, 0.1)
    assert [drifts_after(seed, limit, at=0, count=400) for seed in range(100, 108)] == [None] * 8


def test_what_was_said_stays() -> None:
    watch = AnchorWatch()
    for n in range(200):
        watch.add(is_bad=False, called_bad=n >= 100)
    said = watch.drift
    for _ in range(500):
        watch.add(is_bad=False, called_bad=False)
    assert said is not None
    assert watch.drift == said


def test_the_moments_are_bounded() -> None:
    rate = RateChange()
    for n in range(20_000):
        rate.add(n % 7 == 0)
    assert len(rate.moments) < MAX_MOMENTS
    assert rate.log_e < 0


def test_thinning_never_adds_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one that keeps all moments; the change is at the second, which the first thinning keeps."""
    whole, thinned = RateChange(), RateChange()
    for n in range(400):
        is_event = n >= 16 and n % 2 == 0
        monkeypatch.setattr("evaluation.judging.anchors.MAX_MOMENTS", 1000)
        whole.add(is_event)
        monkeypatch.setattr("evaluation.judging.anchors.MAX_MOMENTS", 8)
        thinned.add(is_event)
        assert thinned.log_e <= whole.log_e + 1e-12
    assert whole.change_at == 16
    assert len(thinned.moments) < 8
    assert sum(1 / (number * (number + 1)) for _, _, number in thinned.moments) < 1


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="is outside"):
        AnchorWatch(alpha)


@pytest.mark.calibration
def test_an_unchanged_judge_is_called_changed_in_at_most_its_alpha() -> None:
    """At alpha 0.2: in 40 runs 8 are expected at most, and 17 come with probability under 0.001."""
    found = [drifts_after(seed, ADMITTED, at=0, count=400, alpha=0.2) for seed in range(40)]
    assert sum(one is not None for one in found) <= 16
