"""Error guard: when it trips, with which action, and its stored state."""

from __future__ import annotations

import pytest

from evaluation.guards import ErrorGuard, GuardAction, GuardLimits, GuardVerdict


def feed(
    guard: ErrorGuard, *, canary: str, stable: str = "", first: int = 0, units: int = 10**6
) -> GuardAction | None:
    """Action after requests of both arms in turn, 'x' failed, 'r' rejected, '.' answered.

    first: number of the first unit. units: the canary's units, which come in turn.
    """
    for i in range(max(len(canary), len(stable))):
        for arm, marks in ((False, stable), (True, canary)):
            if i < len(marks):
                unit = f"{arm} {(first + i) % units if arm else first + i}"
                guard.add(unit=unit, canary=arm, error=marks[i] == "x", rejected=marks[i] == "r")
    verdict = guard.verdict()
    return verdict.action if verdict else None


def test_half_of_twenty_failing_beside_a_healthy_stable_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 20) is GuardAction.ROLLBACK


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
    assert feed(ErrorGuard(), canary="x." * 10, stable="...x" * 10) is GuardAction.HOLD


def test_stable_under_half_as_bad_still_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x" * 20, stable="...x" * 10) is GuardAction.ROLLBACK


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
