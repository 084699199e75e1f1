"""Turns of long work: the event loop does all else between them."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from serving.router import turns as turns_of
from serving.router.turns import Reading, Turns, take_in_turns


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_takes_its_turn_and_the_loop_goes_on_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_of, "TURN_S", 1e-9)  # spent after one
    turns, done = Turns(), list[str]()

    def one() -> None:
        done.append("one")
        turns.join(one)

    turns.join(one)
    turns.join(lambda: done.append("two"))
    for _ in range(4):
        await turns_of_the_loop(1)
        done.append("-")

    assert done == ["one", "-", "two", "-", "one", "-", "one", "-"]


async def test_steps_are_taken_a_turns_time_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_of, "TURN_S", 1e-9)  # spent after one
    done = list[str]()

    def steps() -> Iterator[None]:
        for name in ("one", "two", "three"):
            done.append(name)
            yield

    take_in_turns(Turns(), steps())
    for _ in range(4):
        await turns_of_the_loop(1)
        done.append("-")

    assert done == ["one", "-", "two", "-", "three", "-", "-"]


async def test_turns_go_by_client_however_many_connections_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 connections of one client each was before another client's request: it took over a second."""
    monkeypatch.setattr(turns_of, "TURN_S", 1e-9)  # spent after one
    turns, done = Turns(), list[str]()

    def hog(number: int) -> None:
        done.append("hog")
        turns.join(works[number], client="a")

    works = [partial(hog, number) for number in range(400)]
    for work in works:
        turns.join(work, client="a")
    await turns_of_the_loop(50)
    turns.join(lambda: done.append("other"), client="b")
    before = len(done)
    await turns_of_the_loop(4)

    assert "other" in done[before : before + 3]


async def test_next_is_who_has_had_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, done = Turns(), list[str]()
    monkeypatch.setattr(turns_of, "TURN_S", 9.0)
    for name, cost_s in (("costly", 1.0), ("cheap", 0.1)):
        for _ in range(3):
            turns.join(partial(done.append, name), cost_s, client=name)
    await turns_of_the_loop(2)

    assert done == ["costly", "cheap", "cheap", "cheap", "costly", "costly"]


async def test_who_has_waited_long_is_not_behind_one_who_joins_during_its_turn() -> None:
    turns, done = Turns(), list[str]()

    def again() -> None:
        done.append("old")
        if len(done) < 9:
            turns.join(again, 1.0, client="old")
        if len(done) == 5:
            for _ in range(9):
                turns.join(partial(done.append, "new"), 1.0, client="new")

    turns.join(again, 1.0, client="old")
    await turns_of_the_loop(30)

    assert done[5:9] == ["new", "old", "new", "old"]


async def test_who_comes_again_when_answered_pays_for_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two such were forgiven all that they cost: a third one's backlog got 78 pieces of 4000."""
    monkeypatch.setattr(turns_of, "TURN_S", 1.0)
    monkeypatch.setattr(
        "serving.router.turns.time.perf_counter", lambda: 0.0
    )  # costs are what they are said to be
    turns, spent_s, loop = Turns(), {"a": 0.0, "b": 0.0, "many": 0.0}, asyncio.get_running_loop()

    def piece(client: str, cost_s: float) -> None:
        spent_s[client] += cost_s
        loop.call_soon(turns.join, partial(piece, client, cost_s), cost_s, client)

    for client in ("a", "b"):
        piece(client, 1.25)
    for _ in range(40):
        piece("many", 0.0625)
    await turns_of_the_loop(400)

    assert min(spent_s.values()) > 0.8 * max(spent_s.values())


async def test_nothing_is_kept_of_those_whose_turn_would_have_come() -> None:
    turns = Turns()
    for number in range(100):
        turns.join(lambda: None, 1.0, client=str(number))
    await turns_of_the_loop(200)

    assert (turns._waiting, turns._order, turns._turn) == ({}, [], None)


async def test_what_is_kept_of_ever_new_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_of, "KEPT", 10)
    turns, most = Turns(), 0
    for _ in range(2):
        turns.join(lambda: None, 1.0, client="old")
    for number in range(100):
        turns.join(lambda: None, 1.0, client=str(number))
        await turns_of_the_loop(1)
        most = max(most, len(turns._order))

    assert most <= 12


async def test_who_waits_already_does_not_join_twice() -> None:
    turns, done = Turns(), list[int]()

    def parse() -> None:
        done.append(1)

    turns.join(parse)
    turns.join(parse)
    await turns_of_the_loop(3)

    assert done == [1]


async def test_an_error_in_one_does_not_end_the_turns_of_the_others() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    turns, done = Turns(), list[int]()

    def fail() -> None:
        raise ValueError

    turns.join(fail)
    turns.join(lambda: done.append(1))
    await turns_of_the_loop(3)

    assert done == [1]


async def test_a_large_read_takes_a_share_of_the_turn_in_which_it_is_allowed() -> None:
    sockets = [FakeSocket() for _ in range(20)]
    turns = Turns()
    for one in sockets:
        Reading(one, turns).came()
    paused, most = [sum(not one.is_read for one in sockets)], 0
    while paused[-1]:
        await turns_of_the_loop(1)
        paused.append(sum(not one.is_read for one in sockets))
        most = max(most, paused[-2] - paused[-1])

    assert paused[0] == 20
    assert most <= turns_of.TURN_S / turns_of.READ_S + 1


async def test_a_socket_is_read_when_its_turn_has_come_and_its_owner_does_not_hold_it() -> None:
    socket, turns = FakeSocket(), Turns()
    reading = Reading(socket, turns)
    reading.came()
    reading.hold(True)
    await turns_of_the_loop(2)
    assert not socket.is_read
    reading.came()
    reading.hold(False)
    assert not socket.is_read
    await turns_of_the_loop(2)
    assert socket.is_read
    assert socket.changes == ["pause", "resume"]


class FakeSocket:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.is_read, self.changes = True, list[str]()

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_read = False
        self.changes.append("pause")

    def resume_reading(self) -> None:
        self.is_read = True
        self.changes.append("resume")


async def test_a_few_are_free_in_each_turn_of_the_loop() -> None:
    turns = Turns()
    first = [turns.is_free() for _ in range(turns_of.AT_ONCE + 2)]
    await turns_of_the_loop(1)

    assert first == [True] * turns_of.AT_ONCE + [False] * 2
    assert turns.is_free()


def test_the_time_of_a_turn_is_read_in_one_place() -> None:
    """Tests replace this clock by a virtual one; another one made records of equal arms differ under load."""
    room = Path(turns_of.__file__).parent
    readers = {path.name for path in room.rglob("*.py") if "perf_counter" in path.read_text()}

    assert readers == {"turns.py"}
