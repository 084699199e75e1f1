"""A database of other services than this cluster serves, or from before a removal: none is begun from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from controller.errors import OlderDatabase, Unreachable
from controller.runtime.newest_database import NewestDatabase, is_newest
from controller.store.backup import copy_database
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import now_served, older_copy
from controller.wiring.now_served import Served
from serving.messages import DatabaseMark, SplitStatus
from tests.database_rig import sqlite_url
from tests.fakes.rollouts import STABLE


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class _Cluster:
    """The route tables of one cluster, each of stable alone."""

    def __init__(self) -> None:
        self.marks: dict[str, DatabaseMark | None] = {}
        self.silent: set[str] = set()

    def observe(self, service: str) -> SplitStatus | None:
        if service not in self.marks or service in self.silent:
            return None
        return SplitStatus(1, 1, "", STABLE, None, 0, True, "acknowledged", mark=self.marks[service])

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        assert instead_of == self.marks[service]
        self.marks[service] = mark
        return True

    def names(self) -> list[str]:
        return list(self.marks)

    def open(self, store: SqlStore, *services: str) -> None:
        """Serve them from this database."""
        for name in services:
            row = ServiceRow(name, "{}", STABLE, "s", 1.0), VersionRow(name, STABLE, "{}", "{}", 1.0)
            store.put_service(*row)
        token = next_token(store)
        for name in services:
            self.marks[name] = None
            self.tick(store, name, token)

    def tick(self, store: SqlStore, service: str, token: int) -> None:
        NewestDatabase(service, store.database, self, self.names).require(token)


def next_token(store: SqlStore) -> int:
    store.release_lease(store.lease().token)
    lease = store.acquire_lease("a", ttl_s=5.0)
    assert lease is not None
    return lease.token


def found_before_start(cluster: _Cluster, url: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    tables = tuple(Served(name, cluster.observe(name)) for name in cluster.marks)
    monkeypatch.setattr(now_served, "read_tables", lambda settings, service, **_: tables)
    settings: Any = type("S", (), {"database_url": url})
    return [one.line for one in older_copy.older_copies(settings)]


@pytest.mark.slow
def test_a_copy_from_before_a_removal_loads_nothing_again(
    tmp_path: Path, ending: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of the removed service is gone; it was loaded and published again."""
    store = ending.enter_context(closing(SqlStore(sqlite_url(tmp_path / "state.db"))))
    cluster = _Cluster()
    cluster.open(store, "chat", "docs")
    copy_database(tmp_path / "state.db", tmp_path / "copy.db")
    del cluster.marks["chat"]
    store.remove_service("chat", at_s=3.0, token=store.lease().token)
    cluster.tick(store, "docs", store.lease().token)
    copy = ending.enter_context(closing(SqlStore(sqlite_url(tmp_path / "copy.db"))))
    token = next_token(copy)

    for name in ("chat", "docs"):
        with pytest.raises(OlderDatabase, match="the route table of docs"):
            cluster.tick(copy, name, token)
        assert is_newest(copy.database, name, cluster.observe, cluster.names) is False
    (line,) = found_before_start(cluster, sqlite_url(tmp_path / "copy.db"), monkeypatch)
    assert line.startswith("docs: ")


@pytest.mark.slow
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_database_of_other_services_begins_none_beside_them(
    tmp_path: Path, ending: ExitStack, monkeypatch: pytest.MonkeyPatch, is_marked: bool
) -> None:
    """As staging's, under a wrong CANARYCTL_DATABASE_URL: two databases acted on one cluster."""
    own = ending.enter_context(closing(SqlStore(sqlite_url(tmp_path / "own.db"))))
    other = ending.enter_context(closing(SqlStore(sqlite_url(tmp_path / "other.db"))))
    cluster = _Cluster()
    cluster.open(own, "chat")
    row = ServiceRow("docs", "{}", STABLE, "s", 1.0), VersionRow("docs", STABLE, "{}", "{}", 1.0)
    other.put_service(*row)
    token = next_token(other)
    if is_marked:
        cluster.marks["docs"] = None  # of an earlier release

    with pytest.raises(OlderDatabase, match="not acting on docs: the route table of chat was set"):
        cluster.tick(other, "docs", token)
    assert is_newest(other.database, "docs", cluster.observe, cluster.names) is False
    url = sqlite_url(tmp_path / "other.db")
    (line,) = found_before_start(cluster, url, monkeypatch)
    assert line == f"chat: users get {STABLE} by the route table, and this database has no chat"

    settings: Any = type("S", (), {"database_url": url})
    older_copy.accept(settings, older_copy.older_copies(settings))
    cluster.tick(other, "docs", next_token(other))
    assert found_before_start(cluster, url, monkeypatch) == []


def test_a_new_service_waits_until_every_other_table_answers(tmp_path: Path, ending: ExitStack) -> None:
    store = ending.enter_context(closing(SqlStore(sqlite_url(tmp_path / "state.db"))))
    cluster = _Cluster()
    cluster.open(store, "chat")
    cluster.silent.add("chat")

    with pytest.raises(Unreachable, match="the route table of chat does not answer"):
        cluster.tick(store, "docs", store.lease().token)
    assert is_newest(store.database, "docs", cluster.observe, cluster.names) is None
    cluster.silent.clear()
    cluster.tick(store, "docs", store.lease().token)
