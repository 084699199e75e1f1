"""Work beside the callers: bounded, one of a key at a time, and never `running` where nothing runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controller.background import MAX_LATE, Background


class Threads:
    """Threads that a test lets end, or that the system does not have."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []
        self.has_none = False
        self.now_s = 0.0

    def start(self, work: Callable[[], None]) -> None:
        if self.has_none:
            raise RuntimeError("can't start new thread")
        self.held.append(work)

    def background(self, at_once: int = 2) -> Background:
        return Background("test", limit_s=10.0, at_once=at_once, start=self.start, clock=lambda: self.now_s)


def nothing() -> None:
    pass


def test_one_of_a_key_runs_at_a_time_and_a_limited_number_of_all() -> None:
    threads = Threads()
    work = threads.background()

    begun = [work.begin(key, nothing) is not None for key in ("a", "a", "b", "c")]
    threads.held[0]()

    assert begun == [True, False, True, False]
    assert work.begin("c", nothing) is not None


def test_where_no_thread_can_be_started_nothing_runs_and_the_next_try_begins() -> None:
    threads = Threads()
    work = threads.background(at_once=1)
    threads.has_none = True
    assert work.begin("a", nothing) is None

    threads.has_none = False

    assert work.begin("a", nothing) is not None


def test_work_that_hangs_gives_its_place_and_its_key_back_and_is_seen_to_be_late() -> None:
    threads = Threads()
    work = threads.background(at_once=1)
    hung = work.begin("a", nothing)
    assert hung is not None
    assert (hung.is_late, work.begin("a", nothing)) == (False, None)

    threads.now_s = 10.0

    assert hung.is_late
    assert work.begin("a", nothing) is not None


def test_no_more_than_some_hung_threads_are_left_behind() -> None:
    threads = Threads()
    work = threads.background(at_once=1)
    for _ in range(MAX_LATE):
        assert work.begin("a", nothing) is not None
        threads.now_s += 10.0
    assert work.begin("a", nothing) is None

    threads.held[0]()  # its file system answers again

    assert work.begin("a", nothing) is not None


def test_work_that_fails_has_ended() -> None:
    def fails() -> None:
        raise ValueError("why")

    threads = Threads()
    work = threads.background(at_once=1)
    job = work.begin("a", fails)
    with pytest.raises(ValueError, match="why"):
        threads.held[0]()

    assert job is not None
    assert (job.has_ended, work.begin("a", nothing) is not None) == (True, True)
