"""The lock of a device while an engine loads: one holder, always released."""

from __future__ import annotations

import pytest

from serving.fleet.load_queue import CLAIM_S, HELD_S, LoadQueue

GPU = ("node/gpu0",)
BOTH = ("node/gpu0", "node/gpu1")


class Clocked:
    """A queue and its clock, past the grace of a start."""

    def __init__(self) -> None:
        self.queue = LoadQueue(now_s=0.0)
        self.now_s = CLAIM_S

    def ask(self, replica: str, places: tuple[str, ...] = GPU, *, is_loading: bool = False) -> bool:
        return self.queue.on_report(replica, places, is_loading=is_loading, now_s=self.now_s)

    @property
    def holders(self) -> set[str]:
        return set(self.queue.holders(now_s=self.now_s))


@pytest.fixture
def clocked() -> Clocked:
    return Clocked()


def test_one_replica_loads_on_a_device_and_the_next_when_it_reports_no_claim(clocked: Clocked) -> None:
    first, second = clocked.ask("a"), clocked.ask("b")
    clocked.ask("a", (), is_loading=False)

    assert (first, second, clocked.ask("b"), clocked.holders) == (True, False, True, {"b"})


def test_a_dead_replica_that_waited_never_gets_the_device(clocked: Clocked) -> None:
    clocked.ask("a")
    clocked.ask("dead")  # and reports nothing from now on
    clocked.ask("a", ())

    assert clocked.holders == set()
    clocked.now_s += CLAIM_S + 0.1
    assert (clocked.ask("c"), clocked.holders) == (True, {"c"})


def test_the_claim_of_a_dead_replica_holds_up_the_next_for_three_seconds_at_most(clocked: Clocked) -> None:
    clocked.ask("a")
    clocked.ask("dead")
    clocked.ask("c")
    clocked.ask("a", ())
    at_once = clocked.ask("c")
    clocked.now_s += CLAIM_S + 0.1

    assert (at_once, clocked.ask("c")) == (False, True)


def test_a_lost_release_is_made_up_by_the_next_report(clocked: Clocked) -> None:
    clocked.ask("a")
    clocked.now_s += 0.5
    clocked.ask("a", is_loading=True)
    clocked.ask("a", ())  # it has loaded; no other message says so

    assert clocked.ask("b")


def test_a_lost_answer_is_repeated_to_the_holder(clocked: Clocked) -> None:
    assert (clocked.ask("a"), clocked.ask("a")) == (True, True)


def test_a_holder_whose_load_blocks_its_reports_keeps_the_device_for_three_minutes(clocked: Clocked) -> None:
    clocked.ask("a")
    clocked.now_s += HELD_S - 1
    early = clocked.ask("b")
    clocked.now_s += 1.1

    assert (early, clocked.ask("b")) == (False, True)


def test_a_lost_holder_is_released_at_once(clocked: Clocked) -> None:
    clocked.ask("a")
    clocked.queue.release("a")

    assert clocked.ask("b")


def test_a_claim_of_two_devices_is_not_starved_by_later_claims_of_one(clocked: Clocked) -> None:
    clocked.ask("a", GPU)
    clocked.ask("wide", BOTH)
    narrow = clocked.ask("late", ("node/gpu1",))
    clocked.ask("a", ())

    assert (narrow, clocked.ask("wide", BOTH), clocked.ask("late", ("node/gpu1",))) == (False, True, False)


def test_devices_that_do_not_overlap_load_at_once(clocked: Clocked) -> None:
    assert (clocked.ask("a", GPU), clocked.ask("b", ("node/gpu1",))) == (True, True)


def test_a_restarted_queue_takes_over_a_load_under_way_before_it_grants() -> None:
    queue = LoadQueue(now_s=100.0)
    early = queue.on_report("b", GPU, is_loading=False, now_s=100.1)
    queue.on_report("a", GPU, is_loading=True, now_s=100.5)
    after = queue.on_report("b", GPU, is_loading=False, now_s=100.0 + CLAIM_S)
    queue.on_report("a", (), is_loading=False, now_s=104.0)

    assert (early, after) == (False, False)
    assert queue.on_report("b", GPU, is_loading=False, now_s=104.1)
