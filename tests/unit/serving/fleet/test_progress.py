"""An engine that has requests and makes no step has stalled."""

from __future__ import annotations

from serving.fleet.progress import STALL_S, Progress


def checked(progress: Progress, *, since_s: float, until_s: float, unfinished: int) -> list[float]:
    """Check every half second; the times at which it had stalled."""
    times = [since_s + 0.5 * index for index in range(int((until_s - since_s) * 2) + 1)]
    return [now_s for now_s in times if progress.is_stalled(unfinished, now_s)]


def test_an_engine_with_requests_and_without_a_step_stalls_after_a_minute() -> None:
    progress = Progress(now_s=0.0)

    assert checked(progress, since_s=0.5, until_s=100.0, unfinished=1)[0] == STALL_S


def test_an_idle_engine_never_stalls_and_its_idle_time_does_not_count() -> None:
    progress = Progress(now_s=0.0)
    idle = checked(progress, since_s=0.0, until_s=500.0, unfinished=0)
    busy = checked(progress, since_s=500.5, until_s=700.0, unfinished=3)

    assert (idle, busy[0]) == ([], 500.0 + STALL_S)


def test_each_step_begins_the_minute_anew_and_a_late_one_ends_the_stall() -> None:
    progress = Progress(now_s=0.0)
    checked(progress, since_s=0.5, until_s=50.0, unfinished=1)
    progress.step(50.2)
    before = checked(progress, since_s=50.5, until_s=109.5, unfinished=1)
    stalled = progress.is_stalled(1, 110.5)
    progress.step(111.0)

    assert (before, stalled, progress.is_stalled(1, 111.0)) == ([], True, False)


def test_a_process_that_was_frozen_itself_blames_no_engine() -> None:
    progress = Progress(now_s=0.0)
    checked(progress, since_s=0.5, until_s=5.0, unfinished=1)

    assert not progress.is_stalled(1, 500.0)
