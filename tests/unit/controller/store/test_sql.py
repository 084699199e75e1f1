"""SQL store beyond the port `Store`: services, log, lease, tokens, databases that are refused, migration."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.errors import BadInput, Conflict, RolloutRunning, StaleWrite, UnknownService, Unreachable
from controller.rollout.plan import VersionRef
from controller.rollout.state import Departure, DepartureStep, Phase
from controller.store import schema as store_schema
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line

POSTGRES = os.environ.get("CANARYCTL_TEST_POSTGRES")
CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)
VERSION = VersionRow("chat", STABLE, "{}", "{}", 1.0)


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite" or POSTGRES is None:
        return f"sqlite:///{tmp_path / 'state.db'}"
    store_schema.metadata.drop_all(sa.create_engine(POSTGRES))
    return POSTGRES


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    sql = SqlStore(url)
    yield sql
    sql.close()


def test_a_second_process_sees_what_the_first_committed(store: SqlStore, url: str) -> None:
    store.put_service(CHAT, VERSION)
    second = SqlStore(url)

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


def test_the_lease_has_one_holder_until_it_expires(store: SqlStore) -> None:
    assert store.acquire_lease("a", now_s=100.0, ttl_s=5.0) is not None

    assert store.acquire_lease("b", now_s=104.9, ttl_s=5.0) is None
    assert store.acquire_lease("b", now_s=105.0, ttl_s=5.0) is not None


def test_the_fencing_token_rises_with_every_holder(store: SqlStore) -> None:
    first = store.acquire_lease("a", now_s=100.0, ttl_s=5.0)
    assert first is not None
    store.release_lease(first.token)
    second = store.acquire_lease("a", now_s=100.0, ttl_s=5.0)

    assert second is not None
    assert second.token == first.token + 1


def test_a_lost_lease_cannot_be_renewed(store: SqlStore) -> None:
    first = store.acquire_lease("a", now_s=100.0, ttl_s=5.0)
    assert first is not None
    assert store.renew_lease(first.token, now_s=104.0, ttl_s=5.0)
    store.acquire_lease("b", now_s=110.0, ttl_s=5.0)

    assert not store.renew_lease(first.token, now_s=111.0, ttl_s=5.0)


def test_a_lease_from_a_clock_that_was_set_back_is_void(store: SqlStore) -> None:
    store.acquire_lease("a", now_s=5000.0, ttl_s=5.0)

    assert store.acquire_lease("b", now_s=100.0, ttl_s=5.0) is not None


def test_a_token_identifies_its_owner(store: SqlStore) -> None:
    store.put_token("digest", Identity("ada", Role.VIEWER), at_s=1.0)

    assert store.identity("digest") == Identity("ada", Role.VIEWER)
    assert store.identity("another") is None


def test_a_removed_service_keeps_its_history(store: SqlStore) -> None:
    store.put_service(CHAT, VERSION)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)
    store.remove_service("chat", at_s=2.0)

    assert (store.services(), len(store.rollouts("chat"))) == ((), 1)
    assert store.events("chat")[-1].text == "service removed"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused_with_its_name_and_a_remedy(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")

    with pytest.raises(BadInput, match=rf"network file system \({kind}\).*PostgreSQL"):
        SqlStore(f"sqlite:///{tmp_path / 'state.db'}", mounts=mounts)

    assert not (tmp_path / "state.db").exists()


@pytest.mark.parametrize("place", ["mysql://x/y", "sqlite://", "no url"])
def test_an_unsupported_database_is_refused(place: str) -> None:
    with pytest.raises(BadInput, match=r"use sqlite:///FILE"):
        SqlStore(place)


def test_a_file_that_is_not_a_database_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this text is not a database, and long enough to show it" * 100)

    with pytest.raises(Unreachable, match=r"state\.db does not open: file is not a database"):
        SqlStore(f"sqlite:///{tmp_path / 'state.db'}")


def test_a_database_of_a_newer_canaryctl_is_refused(url: str) -> None:
    store = SqlStore(url)
    with store._writes.begin() as db:
        db.execute(sa.update(store_schema.meta).values(value="99"))
    store.close()

    with pytest.raises(BadInput, match="schema 99, this canaryctl reads 2"):
        SqlStore(url)


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


def test_a_database_of_the_first_schema_is_migrated(store: SqlStore, url: str) -> None:
    with_attempts(store, 60)
    with store._writes.begin() as db:
        db.execute(sa.text("DROP INDEX attempts_of_a_version"))
        db.execute(sa.text("ALTER TABLE rollouts DROP COLUMN canary"))
        db.execute(sa.update(store_schema.meta).values(value="1"))

    SqlStore(url).close()
    again = SqlStore(url)

    found = again.latest_attempt("chat", CANARY)
    indexes = sa.inspect(again._engine).get_indexes("rollouts")
    again.close()
    assert found is not None
    assert found.id == "r-00000000"
    assert "attempts_of_a_version" in {index["name"] for index in indexes}
