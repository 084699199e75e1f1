"""State folder: the admin token that is valid, and the database that is remembered."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller.auth import Identity, Role, admin_token, token_digest
from controller.errors import BadInput, Unreachable
from controller.private_file import write_private
from controller.settings import Settings, load_settings
from controller.store.sql import SqlStore
from controller.wiring.state_folder import EXPIRES_S, RENEW_S, RETRY_S, AdminToken, remember_database
from tests.database_rig import sqlite_url
from tests.fakes.plane import FakeClock

CLOCK = SimpleNamespace(now_s=lambda: 1.0)
ADMIN = Identity("admin", Role.ADMIN)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    sql = SqlStore(sqlite_url(tmp_path / "state.db"))
    yield sql
    sql.close()


@pytest.fixture
def token(tmp_path: Path, store: SqlStore) -> AdminToken:
    return started(tmp_path, store)


def started(home: Path, store: SqlStore, clock: Any = CLOCK) -> AdminToken:
    """As a controller that has just started; what is due is done at once."""
    token = AdminToken(home, store, clock, start=lambda work: work())
    token.store()
    return token


def test_the_token_of_the_file_is_valid(tmp_path: Path, token: AdminToken) -> None:
    assert token.identity(token_digest(admin_token(tmp_path))) == ADMIN


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_rotated_file_makes_the_old_token_invalid(
    tmp_path: Path, store: SqlStore, token: AdminToken, is_restarted: bool
) -> None:
    old = token_digest(admin_token(tmp_path))
    (tmp_path / "admin.token").unlink()
    new = token_digest(admin_token(tmp_path))

    if is_restarted:
        token = started(tmp_path, store)

    assert (token.identity(old), token.identity(new)) == (None, ADMIN)


def test_a_token_that_was_written_by_hand_is_valid_at_once(tmp_path: Path, token: AdminToken) -> None:
    write_private(tmp_path / "admin.token", "chosen-by-a-person")

    assert token.identity(token_digest("chosen-by-a-person")) == ADMIN


def test_a_token_that_an_earlier_release_stored_becomes_invalid(tmp_path: Path, store: SqlStore) -> None:
    store.put_token("old", ADMIN, at_s=1.0)

    AdminToken(tmp_path, store, CLOCK).store()

    assert store.identity("old") is None


def test_the_tokens_of_another_host_and_of_people_stay_valid(store: SqlStore, token: AdminToken) -> None:
    ada = Identity("ada", Role.OPERATOR)
    store.put_token("elsewhere", ADMIN, at_s=1.0, origin="other-host:/home/canary/admin.token")
    store.put_token("ada", ada, at_s=1.0)

    token.store()

    assert (store.identity("elsewhere"), store.identity("ada")) == (ADMIN, ada)


def test_the_database_is_remembered_for_its_owner_only(tmp_path: Path) -> None:
    url = "postgresql+psycopg://ann:s3cret@db/canary"
    given = {"CANARYCTL_HOME": str(tmp_path), "CANARYCTL_DATABASE_URL": url}
    remember_database(load_settings(given))

    later = load_settings({"CANARYCTL_HOME": str(tmp_path)})

    assert (later.database_url, stat.S_IMODE(later.database_path.stat().st_mode)) == (url, 0o600)
    assert "s3cret" not in repr(later)


def test_a_relative_path_is_remembered_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    remember_database(Settings(home=tmp_path, database_url="sqlite:///state.db"))

    assert load_settings({"CANARYCTL_HOME": str(tmp_path)}).database_url == f"sqlite:///{tmp_path}/state.db"


def test_a_variable_overrides_the_remembered_database(tmp_path: Path) -> None:
    remember_database(Settings(home=tmp_path, database_url="sqlite:///a"))
    given = {"CANARYCTL_HOME": str(tmp_path), "CANARYCTL_DATABASE_URL": "sqlite:///b"}

    assert load_settings(given).database_url == "sqlite:///b"


def test_the_token_of_a_controller_that_was_replaced_expires(tmp_path: Path, store: SqlStore) -> None:
    """A new container has a new folder: the tokens of all before it stayed valid for ever."""
    clock = FakeClock()
    for name in ("gone", "here"):
        (tmp_path / name).mkdir()
    gone, here = (started(tmp_path / name, store, clock) for name in ("gone", "here"))
    of_gone, of_here = (token_digest(admin_token(tmp_path / name)) for name in ("gone", "here"))

    clock.advance(6 * 86_400.0)
    before = (here.identity(of_gone), here.identity(of_here))
    clock.advance(2 * 86_400.0)

    assert before == (ADMIN, ADMIN)
    assert (here.identity(of_gone), here.identity(of_here)) == (None, ADMIN)
    assert gone.identity(of_gone) == ADMIN  # it only had no request for a week


def test_containers_with_one_host_name_and_path_have_tokens_of_their_own(
    tmp_path: Path, store: SqlStore
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    first = AdminToken(home, store, CLOCK)
    first.store()
    digest = token_digest(admin_token(home))
    home.rename(tmp_path / "other-container")
    home.mkdir()

    AdminToken(home, store, CLOCK).store()

    assert store.identity(digest) == ADMIN


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_database_that_cannot_be_written_keeps_the_stored_token_valid(
    tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour after the disk was full the API refused reads too."""
    clock = FakeClock()
    token = started(tmp_path, store, clock)

    def refuses(*_: object, **__: object) -> None:
        raise Unreachable("database or disk is full")

    monkeypatch.setattr(store, "put_token", refuses)
    clock.advance(RENEW_S + 1)

    assert token.identity(token_digest(admin_token(tmp_path))) == ADMIN
    clock.advance(EXPIRES_S)
    assert token.identity(token_digest(admin_token(tmp_path))) == ADMIN  # its own controller is not replaced


def test_no_request_waits_for_a_renewal_that_hangs(
    tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 40 requests waited for the lock of the one before, 10 s a write, `/healthz` behind them."""
    clock, is_free, writes = FakeClock(), threading.Event(), list[str]()
    token = AdminToken(tmp_path, store, clock)
    token.store()
    real = store.put_token

    def hangs(digest: str, *given: Any, **more: Any) -> None:
        writes.append(digest)
        assert is_free.wait(60)
        real(digest, *given, **more)

    monkeypatch.setattr(store, "put_token", hangs)
    clock.advance(RENEW_S + 1)
    old = token_digest(admin_token(tmp_path))
    try:
        before = [token.identity(old) for _ in range(5)]
        write_private(tmp_path / "admin.token", "chosen-by-a-person")
        new = token_digest("chosen-by-a-person")
        after = (token.identity("nobody's"), token.identity(old), token.identity(new))
        ends_at_s = time.monotonic() + 60
        while not writes and time.monotonic() < ends_at_s:  # the thread that writes may begin late
            time.sleep(0.01)
        n_writes = len(writes)
    finally:
        is_free.set()

    assert (before, after, n_writes) == ([ADMIN] * 5, (None, None, ADMIN), 1)
    while store.identity(new) is None and time.monotonic() < ends_at_s:
        assert token.identity(old) is None
        time.sleep(0.01)
    assert (store.identity(old), store.identity(new)) == (None, ADMIN)


def test_a_renewal_that_failed_is_tried_again_later_alone(
    tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, writes = FakeClock(), list[str]()
    token = started(tmp_path, store, clock)

    def refuses(digest: str, *_: object, **__: object) -> None:
        writes.append(digest)
        raise Unreachable("database is locked")

    monkeypatch.setattr(store, "put_token", refuses)
    clock.advance(RENEW_S + 1)
    for _ in range(3):
        token.identity("nobody's")
    clock.advance(RETRY_S + 1)
    token.identity("nobody's")

    assert len(writes) == 2


def test_a_token_is_void_also_when_the_file_was_broken_in_between(
    tmp_path: Path, store: SqlStore, token: AdminToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = token_digest(admin_token(tmp_path))
    no_text(tmp_path / "admin.token")
    token.identity("nobody's")

    def refuses(*_: object, **__: object) -> None:
        raise Unreachable("database is locked")

    monkeypatch.setattr(store, "put_token", refuses)
    write_private(tmp_path / "admin.token", "chosen-by-a-person")

    assert (token.identity(token_digest("chosen-by-a-person")), token.identity(old)) == (ADMIN, None)


def one_character(path: Path) -> None:
    path.write_text("x")


@pytest.mark.parametrize("damage", [no_text, a_folder, one_character])
def test_a_broken_token_file_keeps_no_other_token_from_being_valid(
    tmp_path: Path, store: SqlStore, token: AdminToken, damage: Callable[[Path], None]
) -> None:
    ada = Identity("ada", Role.OPERATOR)
    store.put_token("ada", ada, at_s=1.0)
    damage(tmp_path / "admin.token")

    assert token.identity("ada") == ada
    assert token.identity(token_digest("x")) is None
    with pytest.raises(BadInput, match="remove it, and the controller writes another"):
        admin_token(tmp_path)


@pytest.mark.parametrize("held", [b"", b"x", b"\xff\xfe" * 20, None])
def test_a_token_is_void_once_its_file_is_broken_or_gone(
    tmp_path: Path, store: SqlStore, token: AdminToken, held: bytes | None
) -> None:
    """So people revoke one that has leaked; it was valid for as long as the database had it."""
    path = tmp_path / "admin.token"
    old = token_digest(admin_token(tmp_path))
    assert token.identity(old) == ADMIN
    if held is None:
        path.unlink()
    else:
        path.write_bytes(held)

    assert token.identity(old) is None
    assert store.identity(old) is None  # for no other controller either
    if held is None:
        assert token.identity(token_digest(admin_token(tmp_path))) == ADMIN


def test_a_token_that_comes_back_is_valid_again(tmp_path: Path, token: AdminToken) -> None:
    path = tmp_path / "admin.token"
    old, text = token_digest(admin_token(tmp_path)), path.read_text()
    path.write_text("")
    assert token.identity(old) is None

    write_private(path, text.strip())

    assert token.identity(old) == ADMIN


def test_a_renewal_whose_thread_cannot_be_started_is_made_by_a_later_request(
    tmp_path: Path, store: SqlStore
) -> None:
    """It was never made again: after seven days other controllers took the token for void."""
    clock, has_threads = FakeClock(), [True]

    def start(work: Callable[[], None]) -> None:
        if not has_threads[0]:
            raise RuntimeError("can't start new thread")
        work()

    token = AdminToken(tmp_path, store, clock, start=start)
    token.store()
    digest = token_digest(admin_token(tmp_path))
    clock.advance(RENEW_S + 1.0)
    has_threads[0] = False
    assert token.held(digest) == ADMIN

    has_threads[0] = True
    clock.advance(1.0)
    token.held(digest)

    assert store.identity(digest, since_s=clock.now_s() - 0.5) == ADMIN
