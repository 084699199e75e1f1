"""Which database is the newest: the one that gave the lease of a mark, and has its event."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from controller.auth import Identity, Role
from controller.store.backup import copy_database
from controller.store.lineage import adopt, leads_to, own_mark
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from serving.messages import DatabaseMark
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE

ADA = Identity("ada", Role.ADMIN)


def put_chat(store: SqlStore) -> None:
    store.put_service(ServiceRow("chat", "{}", STABLE, "s", 1.0), VersionRow("chat", STABLE, "{}", "{}", 1.0))


def lease(store: SqlStore, holder: str) -> int:
    """A new lease, as after the end of the one before."""
    store.release_lease(store.lease().token)
    found = store.acquire_lease(holder, ttl_s=5.0)
    assert found is not None
    return found.token


def mark(store: SqlStore) -> DatabaseMark:
    return own_mark(store.database, "chat")


def knows(store: SqlStore, noted: DatabaseMark) -> bool:
    return leads_to(store.database, "chat", noted)


def copy_of(path: Path, name: str) -> SqlStore:
    copy_database(path, path.with_name(name))
    return SqlStore(sqlite_url(path.with_name(name)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.mark.slow
def test_a_database_leads_to_every_mark_that_it_gave(bare_url: str) -> None:
    with closing(SqlStore(bare_url)) as store:
        put_chat(store)
        marks = [mark(store)]
        for holder in ("a", "b", "a"):
            lease(store, holder)
            marks.append(mark(store))
            store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=1.0)
            marks.append(mark(store))

        assert len(set(marks)) == len(marks)
        assert all(knows(store, one) for one in marks)
        other = DatabaseMark(7, "other", 900)
        assert not knows(store, other)
        adopt(store.database, [other])
        assert knows(store, other)
        assert lease(store, "c") == 8


def test_a_copy_knows_nothing_that_was_logged_after_it(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        lease(store, "a")
        with closing(copy_of(path, "copy.db")) as copy:
            assert knows(copy, mark(store))
            store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=1.0)
            assert not knows(copy, mark(store))

            # Nor once it has gone on by itself.
            lease(copy, "b")
            for _ in range(5):
                copy.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=2.0)
            assert not knows(copy, mark(store))
            assert not knows(store, mark(copy))


def test_other_events_of_the_same_numbers_under_the_same_lease_are_told_apart(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        lease(store, "a")
        with closing(copy_of(path, "copy.db")) as copy:
            store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=1.0)
            for _ in range(2):
                copy.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=2.0)

            assert not knows(copy, mark(store))
            assert not knows(store, mark(copy))


def test_two_copies_that_give_the_same_token_are_told_apart(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        with closing(copy_of(path, "copy.db")) as copy:
            assert lease(store, "a") == lease(copy, "b")

            assert not knows(copy, mark(store))
            assert not knows(store, mark(copy))


def test_a_copy_that_a_person_accepts_goes_on_and_the_other_stops(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        with closing(copy_of(path, "copy.db")) as copy:
            for holder in ("a", "b", "c"):
                lease(store, holder)
            adopt(copy.database, [mark(store)])

            assert knows(copy, mark(store))
            assert lease(copy, "d") > store.lease().token
            assert not knows(store, mark(copy))
            store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=1.0)
            assert not knows(copy, mark(store))  # the consent was to what was there


def test_a_database_of_an_earlier_release_begins_with_its_last_lease(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        lease(store, "a")
        with store.database.write() as db:
            db.exec_driver_sql("DELETE FROM canaryctl_meta WHERE name = 'leases'")
        noted = mark(store)
        lease(store, "b")

        assert knows(store, noted)


@pytest.mark.slow
def test_a_removal_moves_the_marks_of_the_services_that_stay(bare_url: str) -> None:
    """Its own table is gone, so a copy from before it was found by nothing."""
    with closing(SqlStore(bare_url)) as store:
        put_chat(store)
        docs = ServiceRow("docs", "{}", STABLE, "s", 1.0), VersionRow("docs", STABLE, "{}", "{}", 1.0)
        store.put_service(*docs)
        lease(store, "a")
        marks = [mark(store)]
        store.mark_removing("docs", ADA, at_s=1.0)
        marks.append(mark(store))
        store.remove_service("docs", at_s=2.0)
        marks.append(mark(store))
        store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=3.0)
        marks.append(mark(store))

        assert len(set(marks)) == len(marks)
        assert all(knows(store, one) for one in marks)


def test_a_copy_from_before_a_removal_does_not_know_it(path: Path) -> None:
    with closing(SqlStore(sqlite_url(path))) as store:
        put_chat(store)
        store.put_service(
            ServiceRow("docs", "{}", STABLE, "s", 1.0), VersionRow("docs", STABLE, "{}", "{}", 1.0)
        )
        lease(store, "a")
        with closing(copy_of(path, "copy.db")) as copy:
            store.remove_service("docs", at_s=2.0)

            assert not knows(copy, mark(store))
