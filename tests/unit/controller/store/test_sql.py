"""SQL store beyond the port `Store`: services, versions, log, order, lease, tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.auth import Identity, Role
from controller.errors import Conflict, RolloutRunning, StaleWrite, UnknownService
from controller.rollout.plan import VersionRef
from controller.rollout.state import Departure, DepartureStep, Phase
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line

CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)
VERSION = VersionRow("chat", STABLE, "{}", "{}", 1.0)
ADA = Identity("ada", Role.ADMIN)


class Ticking:
    """The shared clock of leases, set by the test."""

    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


@pytest.fixture
def clock() -> Ticking:
    return Ticking()


@pytest.fixture
def store(database_url: str, clock: Ticking) -> Iterator[SqlStore]:
    sql = SqlStore(database_url, clock=clock)
    yield sql
    sql.close()


def test_a_second_process_sees_what_the_first_committed(store: SqlStore, database_url: str) -> None:
    store.put_service(CHAT, VERSION)
    second = SqlStore(database_url)

    assert second.service("chat") == CHAT
    second.close()


def test_an_unknown_service_is_refused_with_the_known_ones(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)

    with pytest.raises(UnknownService, match=r"service caht does not exist; there are: chat"):
        store.service("caht")


def test_a_version_stored_again_gets_its_new_path(store: SqlStore) -> None:
    store.put_version(VERSION)
    store.put_version(replace(VERSION, spec='{"other": 1}'))

    assert store.version("chat", STABLE) == replace(VERSION, spec='{"other": 1}')


def test_the_version_in_production_keeps_its_path(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.put_version(replace(VERSION, spec='{"other": 1}'))

    assert store.version("chat", STABLE) == VERSION


def test_an_existing_service_is_not_created_again(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)

    with pytest.raises(Conflict, match=r"chat was created by someone else meanwhile"):
        store.put_service(replace(CHAT, secret="another"), VERSION)
    assert store.service("chat") == CHAT


def test_a_plan_for_a_removed_service_creates_no_rollout(store: SqlStore) -> None:
    with pytest.raises(Conflict, match=r"chat was removed meanwhile; canaryctl up"):
        store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.put_service(CHAT, VERSION)
    store.mark_removing("chat", Identity("ada", Role.ADMIN), at_s=1.0)

    with pytest.raises(Conflict, match=r"chat was removed meanwhile"):
        store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    assert store.rollouts("chat") == ()


def test_a_plan_for_another_stable_creates_no_rollout(store: SqlStore) -> None:
    store.put_service(replace(CHAT, stable="v-0000000009"), VERSION)

    with pytest.raises(Conflict, match=r"chat serves v-0000000009 now, the plan was made for .*deploy again"):
        store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    assert store.rollouts("chat") == ()


def test_a_service_with_a_running_rollout_is_not_marked_for_removal(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)

    with pytest.raises(RolloutRunning, match=r"r-00000001 running; end it first"):
        store.mark_removing("chat", Identity("ada", Role.ADMIN), at_s=1.0)
    assert not store.service("chat").removing


@pytest.mark.slow
def test_a_commit_updates_the_stable_version_of_the_service(store: SqlStore) -> None:
    state = a_rollout()
    store.put_service(CHAT, VERSION)
    store.create_rollout(state, request="{}", at_s=1.0)
    leaving = replace(state, departure=Departure(STABLE, CANARY, DepartureStep.SHIFT, 2.0, 2.0))

    store.commit(leaving, (), expected_version=0, evidence=None)

    assert store.service("chat").stable == CANARY


def test_a_refused_commit_changes_neither_stable_nor_log(store: SqlStore) -> None:
    state = a_rollout()
    store.put_service(CHAT, VERSION)
    store.create_rollout(state, request="{}", at_s=1.0)
    before = store.events("chat")
    leaving = replace(state, departure=Departure(STABLE, CANARY, DepartureStep.SHIFT, 2.0, 2.0))

    with pytest.raises(StaleWrite):
        store.commit(with_log_line(leaving, "x", 3.0), (), expected_version=7, evidence=None)

    assert (store.service("chat").stable, store.events("chat")) == (STABLE, before)


def test_each_log_line_becomes_one_event(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    state = a_rollout()
    store.create_rollout(state, request="{}", at_s=1.0)
    one = with_log_line(state, "one", 2.0)
    store.commit(one, (), expected_version=0, evidence=None)

    store.commit(
        with_log_line(with_log_line(one, "two", 3.0), "three", 3.0), (), expected_version=1, evidence=None
    )

    texts = [event.text for event in store.events("chat")]
    assert texts[-3:] == ["one", "two", "three"]
    assert len(texts) == 1 + state.log_count + 3  # the first is the service's own


def test_events_are_returned_after_the_given_one(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.commit(with_log_line(a_rollout(), "b", 2.0), (), expected_version=0, evidence=None)
    created, begun, _ = store.events("chat")

    after = [store.events("chat", after_seq=event.seq) for event in (created, begun)]
    assert [[event.text for event in events] for events in after] == [[begun.text, "b"], ["b"]]


def test_history_is_newest_first(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.put_service(replace(CHAT, name="other"), replace(VERSION, service="other"))
    store.create_rollout(a_rollout("r-00000001", service="other"), request="{}", at_s=1.0)
    for n in (2, 3):
        state = a_rollout(f"r-0000000{n}")
        store.create_rollout(state, request="{}", at_s=float(n))
        store.commit(replace(state, phase=Phase.FAILED), (), expected_version=0, evidence=None)

    assert [row.id for row in store.rollouts("chat")] == ["r-00000003", "r-00000002"]


def test_exactly_one_of_many_concurrent_writers_creates_a_rollout(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    refused: list[str] = []

    def deploy(n: int) -> None:
        try:
            store.create_rollout(a_rollout(f"r-0000000{n}"), request="{}", at_s=float(n))
        except RolloutRunning:
            refused.append(f"r-0000000{n}")

    threads = [threading.Thread(target=deploy, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(refused), len(store.running())) == (5, 1)


def test_the_lease_has_one_holder_until_it_expires(store: SqlStore, clock: Ticking) -> None:
    assert store.acquire_lease("a", ttl_s=5.0) is not None

    clock.at_s = 104.9
    assert store.acquire_lease("b", ttl_s=5.0) is None
    clock.at_s = 105.0
    assert store.acquire_lease("b", ttl_s=5.0) is not None


def test_the_fencing_token_rises_with_every_holder(store: SqlStore) -> None:
    first = store.acquire_lease("a", ttl_s=5.0)
    assert first is not None
    store.release_lease(first.token)
    second = store.acquire_lease("a", ttl_s=5.0)

    assert second is not None
    assert second.token == first.token + 1


def test_a_lost_lease_cannot_be_renewed(store: SqlStore, clock: Ticking) -> None:
    first = store.acquire_lease("a", ttl_s=5.0)
    assert first is not None
    clock.at_s = 104.0
    assert store.renew_lease(first.token, ttl_s=5.0)
    clock.at_s = 110.0
    store.acquire_lease("b", ttl_s=5.0)

    assert not store.renew_lease(first.token, ttl_s=5.0)


def test_a_released_lease_cannot_be_renewed(store: SqlStore, clock: Ticking) -> None:
    """One thread of a controller renewed what another had just released, and nobody led until it lapsed."""
    first = store.acquire_lease("a", ttl_s=5.0)
    assert first is not None
    store.release_lease(first.token)

    assert not store.renew_lease(first.token, ttl_s=5.0)


def test_a_lapsed_lease_may_be_renewed(store: SqlStore, clock: Ticking) -> None:
    first = store.acquire_lease("a", ttl_s=5.0)
    assert first is not None
    clock.at_s += 60.0

    assert store.renew_lease(first.token, ttl_s=5.0)


def test_a_lease_from_a_clock_that_was_set_back_is_void(store: SqlStore, clock: Ticking) -> None:
    clock.at_s = 5000.0
    store.acquire_lease("a", ttl_s=5.0)

    clock.at_s = 100.0
    assert store.acquire_lease("b", ttl_s=5.0) is not None


def test_a_token_identifies_its_owner(store: SqlStore) -> None:
    store.put_token("digest", Identity("ada", Role.VIEWER), at_s=1.0)

    assert store.identity("digest") == Identity("ada", Role.VIEWER)
    assert store.identity("another") is None


def test_a_removed_service_keeps_its_history(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.create_rollout(replace(a_rollout(), phase=Phase.FAILED), request="{}", at_s=1.0)
    store.remove_service("chat", at_s=2.0)

    assert (store.services(), len(store.rollouts("chat"))) == ((), 1)
    assert store.events("chat")[-1].text == "service removed"


def with_attempts(store: SqlStore, count: int) -> None:
    """Store one rolled-back attempt of CANARY, then `count` of other versions."""
    store.put_service(CHAT, VERSION)
    for index in range(count + 1):
        state = a_rollout(f"r-{index:08}")
        if index:
            state = replace(state, canary=VersionRef(f"v-other{index:05}"))
        store.create_rollout(state, request="{}", at_s=float(index))
        ended = replace(state, phase=Phase.ROLLED_BACK)
        store.commit(ended, (), expected_version=0, evidence=None)


@pytest.mark.slow
def test_an_attempt_is_found_among_any_number_of_others(store: SqlStore) -> None:
    with_attempts(store, 120)

    found = store.latest_attempt("chat", CANARY)

    assert found is not None
    assert (found.id, store.latest_attempt("chat", "v-never"), store.latest_attempt("x", CANARY)) == (
        "r-00000000", None, None,
    )  # fmt: skip


def test_the_newer_of_two_attempts_is_returned(store: SqlStore) -> None:
    with_attempts(store, 1)
    store.create_rollout(a_rollout("r-00000009"), request="{}", at_s=9.0)

    found = store.latest_attempt("chat", CANARY)

    assert found is not None
    assert found.id == "r-00000009"
