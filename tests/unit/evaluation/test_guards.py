"""Error guard: when it trips, with which action, and its stored state."""

from __future__ import annotations

import pytest

from evaluation.guards import ErrorGuard, GuardAction, GuardLimits


def feed(guard: ErrorGuard, *, canary: str, stable: str = "") -> GuardAction | None:
    """Action after requests of both arms in turn, 'x' failed and '.' answered."""
    for i in range(max(len(canary), len(stable))):
        for arm, marks in ((False, stable), (True, canary)):
            if i < len(marks):
                guard.add(canary=arm, error=marks[i] == "x")
    verdict = guard.verdict()
    return verdict.action if verdict else None


def test_half_of_twenty_failing_beside_a_healthy_stable_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="." * 20) is GuardAction.ROLLBACK


def test_nine_of_twenty_failing_is_left_to_the_statistics() -> None:
    assert feed(ErrorGuard(), canary="x" * 9 + "." * 11, stable="." * 20) is None


def test_nineteen_requests_are_too_few() -> None:
    assert feed(ErrorGuard(), canary="x" * 19, stable="." * 19) is None


def test_both_bad_holds_because_the_cause_is_shared() -> None:
    assert feed(ErrorGuard(), canary="x." * 10, stable="...x" * 10) is GuardAction.HOLD


def test_stable_under_half_as_bad_still_rolls_back() -> None:
    assert feed(ErrorGuard(), canary="x" * 20, stable="...x" * 10) is GuardAction.ROLLBACK


def test_stable_errors_before_the_window_do_not_excuse_the_canary() -> None:
    guard = ErrorGuard()
    for _ in range(200):
        guard.add(canary=False, error=True)

    assert feed(guard, canary="x" * 20, stable="." * 20) is GuardAction.ROLLBACK


def test_a_silent_stable_is_judged_by_its_last_requests() -> None:
    guard = ErrorGuard()
    for _ in range(30):
        guard.add(canary=False, error=True)

    assert feed(guard, canary="x" * 20) is GuardAction.HOLD


def test_without_any_stable_request_the_guard_rolls_back() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 20)

    verdict = guard.verdict()
    assert verdict is not None
    assert verdict.reason == "20 of the last 20 canary requests failed; stable answered nothing to compare"


def test_recovery_leaves_the_window() -> None:
    assert feed(ErrorGuard(), canary="x" * 10 + "." * 20, stable="." * 30) is None


def test_a_restored_guard_continues_like_the_original() -> None:
    guard = ErrorGuard()
    feed(guard, canary="x" * 12, stable="." * 12)
    restored = ErrorGuard.from_mapping(guard.to_mapping())

    assert feed(restored, canary="x" * 8, stable="x" * 8) == feed(guard, canary="x" * 8, stable="x" * 8)
    assert restored == guard


def test_a_malformed_guard_state_is_refused() -> None:
    with pytest.raises(ValueError, match="start a new guard"):
        ErrorGuard.from_mapping({"canary": 3})


@pytest.mark.parametrize("bad", [{"error_requests": 0}, {"error_ratio": 0.0}, {"error_ratio": 1.5}])
def test_invalid_guard_limits_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="use"):
        GuardLimits(**bad)  # type: ignore[arg-type]
