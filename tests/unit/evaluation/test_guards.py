"""Error guard: when it trips, with which action, and its stored state."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from evaluation.betting.unit_block import Flags, Floats
from evaluation.guards import (
    UNUSED,
    WEIGHTS,
    ErrorGuard,
    GuardAction,
    GuardLimits,
    GuardVerdict,
    coin_chance,
)
from tests.seeds import seeds


def outage(weight: float, length: int, *, users: int = 0, seed: int = 7) -> set[GuardAction]:
    """Actions of a guard before, during and after an outage of both arms, which fail alike. users: sticky
    ones; 0: each request is its own unit. length: in requests."""
    rng = np.random.default_rng(seed)
    row = np.arange(4500 + length)
    unit = rng.integers(0, users, len(row)) if users else row
    canary = (rng.random(users or len(row)) < weight)[unit]
    is_down = (row >= 1500) & (row < 1500 + length)
    failed = rng.random(len(row)) < np.where(is_down, 1.0, 0.01)
    guard, seen = ErrorGuard(), set()
    for name, is_canary, error in zip(unit.tolist(), canary.tolist(), failed.tolist(), strict=True):
        verdict = guard.add(unit=str(name), canary=is_canary, w=weight, error=error)
        if verdict is not None:
            seen.add(verdict.action)
    return seen


def rolled_back(canary: Flags, weights: Floats, failed: Flags) -> GuardVerdict | None:
    """The guard's first rollback; None: it never rolls back. Each request is its own unit."""
    guard = ErrorGuard()
    rows = zip(canary.tolist(), weights.tolist(), failed.tolist(), strict=True)
    for number, (is_canary, w, error) in enumerate(rows):
        verdict = guard.add(unit=str(number), canary=is_canary, w=w, error=error)
        if verdict is not None and verdict.action is GuardAction.ROLLBACK:
            return verdict
    return None


def with_staff(
    rest: float, *, share: float, failing: float = 0.01, outage: int = 0, seed: int = 0
) -> tuple[Flags, Floats, Flags]:
    """Arms, weights and failures of 12000 requests: the staff's at half, the others' at `rest`. Both arms
    fail alike: the staff's at a steady rate, and all of theirs for `outage` requests."""
    rng = np.random.default_rng([7, seed])
    staff = rng.random(12_000) < share
    weights = np.where(staff, 0.5, rest)
    is_down = staff & (np.arange(12_000) >= 6000) & (np.arange(12_000) < 6000 + outage)
    failed = rng.random(12_000) < np.where(staff, failing, 0.01)
    return rng.random(12_000) < weights, weights, failed | is_down


def feed(
    guard: ErrorGuard, *, canary: str, stable: str = "", first: int = 0, units: int = 10**6, w: float = 0.5
) -> GuardAction | None:
    """Action after the canary's requests and stable's, spread evenly before them; 'x' failed, 'r' rejected,
    '.' answered.

    first: number of the first unit. units: the canary's units, which come in turn.
    """
    given = 0
    for i, mark in enumerate(canary):
        until = (i + 1) * len(stable) // len(canary)
        for n in range(given, until):
            failed, rejected = stable[n] == "x", stable[n] == "r"
            guard.add(unit=f"stable {first + n}", canary=False, w=w, error=failed, rejected=rejected)
        failed, rejected = mark == "x", mark == "r"
        guard.add(unit=f"{(first + i) % units}", canary=True, w=w, error=failed, rejected=rejected)
        given = until
    verdict = guard.verdict()
    return verdict.action if verdict else None


def test_half_of_twenty_failing_beside_a_healthy_stable_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 180) is GuardAction.ROLLBACK


def test_beside_as_few_of_stable_chance_may_explain_ten_of_twenty() -> None:
    """The coin gives all ten failures to the canary in one of 3000 windows, and there are many windows."""
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 20) is GuardAction.HOLD
    assert feed(ErrorGuard(), canary="x." * 20, stable="." * 40) is GuardAction.ROLLBACK


@pytest.mark.slow
@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("weight", "length", "users"),
    [(0.01, 1000, 0), (0.01, 4000, 0), (0.02, 1000, 0), (0.05, 400, 0), (0.05, 400, 4000), (0.1, 200, 0)],
)
def test_the_end_of_a_shared_outage_is_no_fault_of_the_canary(weight: float, length: int, users: int) -> None:
    """Stable has healed before the canary's twenty units have: 28 to 40 of 40 identical versions."""
    assert outage(weight, length, users=users) == {GuardAction.HOLD}


@pytest.mark.slow
def test_a_fifth_of_both_arms_failing_for_long_never_rolls_back() -> None:
    """At 22 %, ten of twenty fail by chance after a few hundred requests: 32 of 40 identical versions."""
    rng = np.random.default_rng(8)
    guard = ErrorGuard()
    verdicts = [
        guard.add(unit=str(n), canary=bool(rng.random() < 0.1), w=0.1, error=bool(rng.random() < 0.22))
        for n in range(20_000)
    ]

    assert GuardAction.ROLLBACK not in {verdict.action for verdict in verdicts if verdict is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("rest", "failing", "outage"), [(0.02, 0.01, 2000), (0.02, 0.5, 0)])
def test_failures_of_clients_at_a_higher_weight_are_no_fault_of_the_canary(
    rest: float, failing: float, outage: int
) -> None:
    """The canary's window is mostly theirs, stable's mostly not: 40 of 40 identical versions."""
    for seed in range(3):
        assert rolled_back(*with_staff(rest, share=0.05, failing=failing, outage=outage, seed=seed)) is None


@pytest.mark.slow
def test_a_shared_outage_right_after_a_raise_is_no_fault_of_the_canary() -> None:
    """The window reaches back to the lower weight, where stable has most units: 40 of 40."""
    for seed in range(5):
        rng = np.random.default_rng([8, seed])
        weights = np.repeat([0.01, 0.5], [20_000, 160])
        is_down = (np.arange(20_160) >= 20_000) & (np.arange(20_160) < 20_040)
        assert rolled_back(rng.random(20_160) < weights, weights, is_down) is None


@seeds(3)
@pytest.mark.parametrize("rest", [0.02, 0.1, 0.5])
def test_a_dead_canary_is_rolled_back_beside_clients_at_a_higher_weight(rest: float, seed: int) -> None:
    canary, weights, failed = with_staff(rest, share=0.1, seed=seed)
    is_dead = canary & (np.cumsum(canary) > 200) & (np.cumsum(canary) <= 230)
    assert rolled_back(canary, weights, failed | is_dead) is not None


def test_the_chance_is_exact_given_the_units_of_each_weight() -> None:
    """By all assignments of eight units: three of the canary's four at one weight failed, one of stable's."""
    ways = hits = 0
    for strict in combinations([1, 1, 1, 1, 0, 0], 3):
        for loose in combinations([1, 0, 0, 0], 1):
            ways += 1
            hits += sum(strict) + sum(loose) >= 3

    chance = coin_chance({0.5: (3, 2), 0.1: (1, 1)}, {0.5: (3, 2), 0.1: (3, 0)})
    assert chance == pytest.approx(hits / ways)
    assert coin_chance({1.0: (20, 20), 0.1: (2, 0)}, {0.1: (9, 0)}) == 1.0


def test_units_at_more_weights_than_are_told_apart_tell_nothing() -> None:
    """Both arms keep them: a canary that fails at the other weights alone holds."""
    guard = ErrorGuard()
    for number in range(WEIGHTS):
        guard.add(unit=f"first {number}", canary=False, w=0.01 * (1 + number), error=False)
    assert feed(guard, canary="x" * 40, stable="." * 400, w=0.9) is GuardAction.HOLD

    for number in range(UNUSED):  # the first weights are not in use any more
        guard.add(unit=f"later {number}", canary=False, w=0.95, error=False)
    assert feed(guard, canary="x" * 40, stable="." * 400, w=0.9, first=1000) is GuardAction.ROLLBACK
    assert len(guard._weights) <= WEIGHTS
    assert ErrorGuard.from_mapping(guard.to_mapping()) == guard


def test_the_window_that_decides_is_the_one_that_is_shown() -> None:
    """Twenty units of 40 % stable's are too few; forty decide."""
    guard = ErrorGuard()
    feed(guard, canary="x" * 160, stable="." * 40)

    verdict = guard.verdict()
    assert verdict is not None
    assert verdict.action is GuardAction.ROLLBACK
    assert "of the canary's last 20 units" not in verdict.reason


def test_by_chance_stable_has_no_unit_among_twenty_at_a_high_weight() -> None:
    """A shared outage begins before stable's next unit: the units before it are no comparison."""
    guard = ErrorGuard()
    feed(guard, canary="." * 40, stable="." * 10, w=0.9)

    assert feed(guard, canary="x" * 20, first=100, w=0.9) is GuardAction.HOLD


def test_a_stored_guard_without_weights_is_read_and_its_units_tell_nothing() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 19, stable="." * 190)
    stored = guard.to_mapping()
    del stored["weights"], stored["older_parts"]
    for key in ("canary_units", "stable_units"):
        stored[key] = [unit[:4] for unit in stored[key]]  # type: ignore[attr-defined]
    restored = ErrorGuard.from_mapping({**stored, "older_units": []})

    assert feed(restored, canary="x", stable=".", first=19) is GuardAction.HOLD
    assert feed(restored, canary="x" * 20, stable="." * 200, first=200) is GuardAction.ROLLBACK


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("weight", "most"), [(0.01, 20), (0.5, 20), (0.75, 40), (0.9, 160)])
def test_a_dead_canary_is_rolled_back_soon_at_every_weight(weight: float, most: int) -> None:
    """From the start, and after many of its requests."""
    for before in (0, round(20_000 * weight)):
        rng = np.random.default_rng(9)
        guard, drawn = ErrorGuard(), 0
        while (verdict := guard.verdict()) is None or verdict.action is GuardAction.HOLD:
            canary, number = bool(rng.random() < weight), guard._requests
            drawn += canary
            error = bool(rng.random() < 0.01) or (canary and drawn > before)
            guard.add(unit=str(number), canary=canary, w=weight, error=error)
        assert drawn - before <= most * (2 if before else 1)


def test_nine_of_twenty_failing_is_left_to_the_statistics() -> None:
    assert feed(ErrorGuard(), canary="x" * 9 + "." * 11, stable="." * 20) is None


def test_one_client_that_always_fails_is_one_unit() -> None:
    """Sticky: it retries a hundred times, and is on the canary by its bucket."""
    guard = ErrorGuard()
    feed(guard, canary="." * 19, stable="." * 19)

    assert feed(guard, canary="x" * 100, first=50, units=1) is None


def test_units_count_by_their_last_request() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 20, stable="." * 20)

    assert feed(guard, canary="." * 20) is None


def test_a_canary_that_rejects_everything_rolls_back_after_twenty_units() -> None:
    guard = ErrorGuard()

    assert feed(guard, canary="r" * 20, stable="." * 20) is GuardAction.ROLLBACK
    assert guard.verdict() == GuardVerdict(
        "rejections",
        GuardAction.ROLLBACK,
        "20 of the canary's last 20 units were rejected (4xx), stable 0% in the same window",
    )


def test_clients_that_are_rejected_by_both_arms_hold() -> None:
    assert feed(ErrorGuard(), canary="r" * 20, stable="rr." * 7) is GuardAction.HOLD


def test_nineteen_units_are_too_few() -> None:
    assert feed(ErrorGuard(), canary="x" * 19, stable="." * 19) is None


def test_both_bad_holds_because_the_cause_is_shared() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="...x" * 40) is GuardAction.HOLD


def test_stable_under_half_as_bad_still_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x" * 20, stable="...x" * 40) is GuardAction.ROLLBACK


def test_stable_errors_before_the_window_do_not_excuse_the_canary() -> None:
    guard = ErrorGuard()
    for i in range(200):
        guard.add(unit=f"bad {i}", canary=False, w=0.5, error=True)

    assert feed(guard, canary="x" * 20, stable="." * 20) is GuardAction.ROLLBACK


def test_a_silent_stable_is_judged_by_its_last_requests() -> None:
    guard = ErrorGuard()
    for i in range(30):
        guard.add(unit=f"bad {i}", canary=False, w=0.5, error=True)

    assert feed(guard, canary="x" * 20) is GuardAction.HOLD


def test_without_any_stable_request_the_guard_rolls_back() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 20)

    verdict = guard.verdict()
    assert verdict is not None
    assert verdict.reason == "20 of the canary's last 20 units failed; stable answered nothing to compare"


def test_recovery_leaves_the_window() -> None:
    assert feed(ErrorGuard(), canary="x" * 10 + "." * 20, stable="." * 30) is None


def test_a_restored_guard_continues_like_the_original() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 12, stable="." * 12)
    restored = ErrorGuard.from_mapping(guard.to_mapping())

    later = {"canary": "x" * 8, "stable": "x" * 8, "first": 12}
    assert feed(restored, **later) == feed(guard, **later)  # type: ignore[arg-type]
    assert restored == guard


def test_a_malformed_guard_state_is_refused() -> None:
    with pytest.raises(ValueError, match="start a new guard"):
        ErrorGuard.from_mapping({"canary": 3})


@pytest.mark.parametrize("bad", [{"units": 0}, {"ratio": 0.0}, {"ratio": 1.5}])
def test_invalid_guard_limits_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="use"):
        GuardLimits(**bad)  # type: ignore[arg-type]
