"""Properties of the choice of replicas: scaling moves few keys, and only to or from one replica."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import STABLE, Arm, Replica, RouteTable
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.preferred import preferred, score
from serving.router.router import RouterCore
from serving.router.types import Assignment

ports = st.lists(st.integers(1, 65_535), min_size=1, max_size=12, unique=True)


def replicas(numbers: list[int]) -> list[Replica]:
    return [Replica(f"http://10.0.0.1:{number}") for number in numbers]


def asked(urls: list[str], key: str) -> str:
    """The replica that an idle router asks first."""
    arm = Arm("v-1", tuple(Replica(url) for url in urls))
    table = RouteTable("chat", 1, 1, 1, "", "", 0, arm, None)
    router = RouterCore("chat", router="r")
    router.on_table(table, sent_s=1.0)
    chosen = Attempts(router, table, Assignment(STABLE, 0.0, None, "", key, "sticky", None)).begin()
    assert chosen is not None
    return chosen[1].url


@pytest.mark.slow
@given(numbers=ports, key=st.text(max_size=20), more=st.integers(65_536, 70_000))
@settings(max_examples=200)
def test_a_new_replica_changes_a_keys_order_only_by_its_own_place(
    numbers: list[int], key: str, more: int
) -> None:
    before = preferred(replicas(numbers), key)
    after = preferred(replicas([*numbers, more]), key)
    [new] = replicas([more])

    assert [one for one in after if one != new] == before[: len(after) - (new in after)]


@pytest.mark.slow
@given(numbers=ports, key=st.text(max_size=20), seed=st.randoms(use_true_random=False))
def test_the_order_of_the_list_does_not_matter(numbers: list[int], key: str, seed: object) -> None:
    shuffled = list(numbers)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]

    assert preferred(replicas(shuffled), key) == preferred(replicas(numbers), key)


@pytest.mark.slow
def test_one_more_replica_takes_its_share_of_the_keys_and_moves_no_other() -> None:
    n, keys = 4, 4000
    urls = [f"http://10.0.0.{number}:8000" for number in range(n)]
    more = [*urls, "http://10.0.0.9:8000"]
    moved = [(asked(urls, f"u-{i}"), asked(more, f"u-{i}")) for i in range(keys)]
    changed = [after for before, after in moved if before != after]

    p = 1 / (n + 1)
    assert abs(len(changed) - keys * p) < 4.5 * math.sqrt(keys * p * (1 - p))
    assert set(changed) == {more[-1]}


@pytest.mark.slow
def test_every_replica_gets_its_share_of_the_keys() -> None:
    n, keys = 5, 5000
    urls = [f"http://10.0.0.{number}:8000" for number in range(n)]
    counts = [0] * n
    for i in range(keys):
        counts[urls.index(asked(urls, f"u-{i}"))] += 1

    assert all(abs(count - keys / n) < 4.5 * math.sqrt(keys / n * (1 - 1 / n)) for count in counts)


def test_the_less_loaded_of_a_keys_two_replicas_is_asked() -> None:
    numbers = [1, 2, 3, 4]
    first, second = preferred(replicas(numbers), "alice")
    busy = [Replica(one.url, in_flight=9 if one == first else 0) for one in replicas(numbers)]
    table = RouteTable("chat", 1, 1, 1, "", "", 0, Arm("v-1", tuple(busy)), None)
    router = RouterCore("chat", router="r")
    router.on_table(table, sent_s=1.0)
    chosen = Attempts(router, table, Assignment(STABLE, 0.0, None, "", "alice", "sticky", None)).begin()

    assert chosen is not None
    assert chosen[1].url == second.url


def test_the_score_has_its_reference_value() -> None:
    assert score(0, 1) == 6238072747940578789
