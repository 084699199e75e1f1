"""Look-ups of the open route tables end in time while Ray's head hangs, and leave one thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from ray.exceptions import GetTimeoutError

from serving.actor_names import table_name
from serving.table import open_tables_ray
from serving.table.open_tables_ray import OpenTables


class Head:
    """Stands for Ray's head: hangs until it is released."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.asked = 0

    def list_named_actors(self) -> list[str]:
        self.asked += 1
        assert self.is_free.wait(60)
        return [table_name("chat"), "another's", table_name("a")]


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    head = Head()
    monkeypatch.setattr(open_tables_ray, "list_named_actors", head.list_named_actors)
    yield head
    head.is_free.set()


def test_a_head_that_hangs_is_not_waited_for(head: Head) -> None:
    """A rollback was not stored before the head had answered, a minute and more."""
    tables = OpenTables()

    for _ in range(3):
        with pytest.raises(GetTimeoutError):
            tables.services(0.01)

    assert head.asked == 1
    head.is_free.set()
    assert tables.services(60) == ("a", "chat")


def test_each_question_is_asked_anew(head: Head) -> None:
    tables = OpenTables()
    head.is_free.set()

    assert (tables.services(60), tables.services(60), head.asked) == (("a", "chat"), ("a", "chat"), 2)
