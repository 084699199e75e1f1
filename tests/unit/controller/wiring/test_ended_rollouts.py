"""The end of rollouts without a controller: also of one that this release cannot read, and all or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.rollout.observation import CommandKind
from controller.settings import Settings
from controller.store import schema as t
from controller.store.lineage import leads_to
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from controller.wiring import older_copy
from controller.wiring.ended_rollouts import end_rollouts
from controller.wiring.older_copy import OlderCopy
from controller.wiring.takedown import forget_services
from serving.messages import DatabaseMark
from tests.fakes.rollouts import STABLE, a_rollout

COPIES = tuple(OlderCopy(name, "x", DatabaseMark(9, "other", 5, "abc")) for name in ("chat", "docs"))


@pytest.fixture
def store(bare_url: str) -> Iterator[SqlStore]:
    """Two services with a rollout each, that of docs by another release."""
    with closing(SqlStore(bare_url)) as store:
        for name, rollout in (("chat", "r-1"), ("docs", "r-2")):
            row = ServiceRow(name, "{}", STABLE, "s", 1.0), VersionRow(name, STABLE, "{}", "{}", 1.0)
            store.put_service(*row)
            store.create_rollout(a_rollout(rollout, service=name), request="{}", at_s=1.0)
        store.append_command("r-1", CommandKind.PAUSE, Identity("ada", Role.ADMIN), reason="", at_s=2.0)
        with store.database.write() as db:
            unread = sa.update(t.rollouts).where(t.rollouts.c.id == "r-2").values(state='{"format": 999}')
            db.execute(unread)
        yield store


def settings_of(store_url: str, home: Path) -> Settings:
    return Settings(home=home, database_url=store_url)


@pytest.mark.slow
def test_a_database_with_an_unreadable_rollout_is_accepted(
    store: SqlStore, bare_url: str, tmp_path: Path
) -> None:
    """It failed half-way: the other service's rollout was ended, and nothing accepted."""
    older_copy.accept(settings_of(bare_url, tmp_path), COPIES)

    assert store.running() == ()
    assert leads_to(store.database, "chat", DatabaseMark(9, "other", 5, "abc"))
    (row,) = store.rollouts("docs", limit=1)
    assert (row.ended_at_s is not None, row.state) == (True, '{"format": 999}')


@pytest.mark.slow
def test_of_a_database_that_fails_meanwhile_nothing_is_accepted(
    store: SqlStore, bare_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = end_rollouts

    def failing(db: sa.Connection, service: str, why: str, **options: Any) -> None:
        if service == "docs":
            raise OSError("the power went")
        end(db, service, why, **options)

    monkeypatch.setattr(older_copy, "end_rollouts", failing)
    with pytest.raises(OSError, match="the power went"):
        older_copy.accept(settings_of(bare_url, tmp_path), COPIES)

    assert store.running() == ("r-1", "r-2")
    assert not leads_to(store.database, "chat", DatabaseMark(9, "other", 5, "abc"))


@pytest.mark.slow
def test_services_with_an_unreadable_rollout_are_taken_down(
    store: SqlStore, bare_url: str, tmp_path: Path
) -> None:
    assert forget_services(settings_of(bare_url, tmp_path))

    assert list(store.services()) == []
    assert store.running() == ()
