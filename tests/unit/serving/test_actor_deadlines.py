"""Blocking calls of Ray under the one deadline of their operation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import GetTimeoutError

from serving.actor_calls_ray import ActorHandles, Deadline, Patience


class HangingHead:
    """Ray's head does not answer until `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []

    def get_actor(self, name: str, namespace: str | None = None) -> object:
        self.asked.append(name)
        self.go.wait(30)
        if name == "none":
            raise ValueError("no such actor")
        return ("handle", name, namespace)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingHead]:
    one = HangingHead()
    monkeypatch.setattr(ray, "get_actor", one.get_actor)
    yield one
    one.go.set()


def test_calls_that_block_one_after_another_share_one_deadline() -> None:
    never = threading.Event()
    began_s = time.monotonic()
    deadline = Deadline(0.05)
    for _ in range(5):
        with pytest.raises(GetTimeoutError, match=r"Ray did not answer within 0\.05 s"):
            deadline.run(lambda: never.wait(30))
    never.set()

    assert time.monotonic() - began_s < 5


def test_the_calls_own_error_and_result_come_through() -> None:
    def fails() -> None:
        raise TimeoutError("its own")

    deadline = Deadline(10)
    with pytest.raises(TimeoutError, match="its own"):
        deadline.run(fails)

    assert deadline.run(lambda: 7) == 7


def test_a_hanging_look_up_is_given_up_in_time_and_leaves_one_thread(head: HangingHead) -> None:
    handles = ActorHandles("ns")
    for _ in range(20):
        with pytest.raises(GetTimeoutError):
            handles.within("table", Deadline(0.001))

    assert head.asked == ["table"]


def test_a_look_up_that_hung_is_used_when_it_has_answered(head: HangingHead) -> None:
    handles = ActorHandles("ns")
    with pytest.raises(GetTimeoutError):
        handles.within("table", Deadline(0.001))
    head.go.set()

    assert handles.within("table", Deadline(10)) == ("handle", "table", "ns")
    assert head.asked == ["table"]


async def test_the_event_loop_goes_on_while_a_look_up_hangs(head: HangingHead) -> None:
    handles = ActorHandles("ns")
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await handles.get("table")
    head.go.set()

    assert await handles.get("table") == ("handle", "table", "ns")
    assert head.asked == ["table"]


async def test_an_actor_that_does_not_exist_is_looked_up_again_each_time(head: HangingHead) -> None:
    head.go.set()
    handles = ActorHandles("ns")
    for _ in range(2):
        with pytest.raises(ValueError, match="no such actor"):
            await handles.get("none")

    assert head.asked == ["none", "none"]


def test_a_forgotten_handle_is_looked_up_anew(head: HangingHead) -> None:
    head.go.set()
    handles = ActorHandles("ns")
    handles.within("table", Deadline(10))
    handles.within("table", Deadline(10))
    handles.forget("table")
    handles.within("table", Deadline(10))

    assert head.asked == ["table", "table"]


@pytest.mark.slow
def test_after_an_operation_in_vain_the_next_wait_briefly_until_one_is_answered() -> None:
    never = threading.Event()
    patience = Patience(0.01)
    waited_s: list[float] = []

    def hang(deadline: Deadline) -> None:
        waited_s.append(deadline.left_s)
        deadline.run(lambda: never.wait(30))

    for _ in range(25):  # services of one controller
        with pytest.raises(GetTimeoutError):
            patience.run(0.2, hang)
    never.set()
    patience.run(0.2, lambda deadline: None)
    patience.run(0.2, lambda deadline: waited_s.append(deadline.left_s))

    assert waited_s[0] > 0.1
    assert max(waited_s[1:25]) <= 0.01
    assert waited_s[25] > 0.1
