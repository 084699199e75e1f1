"""Error guard: when it trips, with which action, and its stored state."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.guards import ErrorGuard, GuardAction, GuardLimits, GuardVerdict


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
        verdict = guard.add(unit=str(name), canary=is_canary, error=error)
        if verdict is not None:
            seen.add(verdict.action)
    return seen


def feed(
    guard: ErrorGuard, *, canary: str, stable: str = "", first: int = 0, units: int = 10**6
) -> GuardAction | None:
    """Action after the canary's requests and stable's, spread evenly before them; 'x' failed, 'r' rejected,
    '.' answered.

    first: number of the first unit. units: the canary's units, which come in turn.
    """
    given = 0
    for i, mark in enumerate(canary):
        until = (i + 1) * len(stable) // len(canary)
        for n in range(given, until):
            guard.add(
                unit=f"stable {first + n}", canary=False, error=stable[n] == "x", rejected=stable[n] == "r"
            )
        guard.add(unit=f"{(first + i) % units}", canary=True, error=mark == "x", rejected=mark == "r")
        given = until
    verdict = guard.verdict()
    return verdict.action if verdict else None


def test_half_of_twenty_failing_beside_a_healthy_stable_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 180) is GuardAction.ROLLBACK


def test_beside_as_few_of_stable_chance_may_explain_ten_of_twenty() -> None:
    """The coin gives all ten failures to the canary in one of 3000 windows, and there are many windows."""
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 20) is GuardAction.HOLD
    assert feed(ErrorGuard(), canary="x." * 20, stable="." * 40) is GuardAction.ROLLBACK


@pytest.mark.parametrize(
    ("weight", "length", "users"),
    [(0.01, 1000, 0), (0.01, 4000, 0), (0.02, 1000, 0), (0.05, 400, 0), (0.05, 400, 4000), (0.1, 200, 0)],
)
def test_the_end_of_a_shared_outage_is_no_fault_of_the_canary(weight: float, length: int, users: int) -> None:
    """Stable has healed before the canary's twenty units have: 28 to 40 of 40 identical versions."""
    assert outage(weight, length, users=users) == {GuardAction.HOLD}


def test_a_fifth_of_both_arms_failing_for_long_never_rolls_back() -> None:
    """At 22 %, ten of twenty fail by chance after a few hundred requests: 32 of 40 identical versions."""
    rng = np.random.default_rng(8)
    guard = ErrorGuard()
    verdicts = [
        guard.add(unit=str(n), canary=bool(rng.random() < 0.1), error=bool(rng.random() < 0.22))
        for n in range(20_000)
    ]

    assert GuardAction.ROLLBACK not in {verdict.action for verdict in verdicts if verdict is not None}


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
            guard.add(unit=str(number), canary=canary, error=error)
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
        guard.add(unit=f"bad {i}", canary=False, error=True)

    assert feed(guard, canary="x" * 20, stable="." * 20) is GuardAction.ROLLBACK


def test_a_silent_stable_is_judged_by_its_last_requests() -> None:
    guard = ErrorGuard()
    for i in range(30):
        guard.add(unit=f"bad {i}", canary=False, error=True)

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
