"""Database of the store: what is refused, file modes, every error, a crash between any two statements."""

from __future__ import annotations

import inspect
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from controller.auth import Identity, Role
from controller.errors import BadInput, Unreachable
from controller.rollout.journal import hold, log, notices
from controller.rollout.observation import CommandKind
from controller.rollout.state import Departure, DepartureStep, HoldKind
from controller.store import schema as t
from controller.store.ab import AbStore
from controller.store.database import POSTGRESQL_CONNECTION, Database, translated
from controller.store.file_systems import file_system
from controller.store.rows import AbOutcome, AbRow, ServiceRow, VersionRow
from controller.store.sql import SqlStore
from serving.loopback import free_ports
from tests.database_rig import PostgresServer, sqlite_url
from tests.fakes.rollouts import CANARY, STABLE, a_rollout, with_log_line

ADA = Identity("ada", Role.ADMIN)
CHAT = ServiceRow("chat", "{}", STABLE, "s3cret", 1.0)
VERSION = VersionRow("chat", STABLE, "{}", "{}", 1.0)
TEST = AbRow("ab-1", "chat", "r-00000001", "{}", 1.0, None)
MOVED = replace(
    with_log_line(a_rollout(), "moved", 2.0),
    departure=Departure(STABLE, CANARY, DepartureStep.SHIFT, 2.0, 2.0),
)

# A call of every public method. Those of `WRITES` change rows, in this order on an empty database.
WRITES: dict[str, Callable[[SqlStore, AbStore], object]] = {
    "put_service": lambda store, ab: store.put_service(CHAT, VERSION),
    "put_version": lambda store, ab: store.put_version(replace(VERSION, id="v-0000000009")),
    "put_token": lambda store, ab: store.put_token("digest", ADA, at_s=1.0, origin="host:/file"),
    "acquire_lease": lambda store, ab: store.acquire_lease("a", ttl_s=60.0),
    "renew_lease": lambda store, ab: store.renew_lease(1, ttl_s=90.0),
    "create_rollout": lambda store, ab: store.create_rollout(
        a_rollout(),
        request="{}",
        at_s=1.0,
        version=replace(VERSION, id=CANARY),
        ab_test=TEST,
    ),
    "append_command": lambda store, ab: store.append_command(
        "r-00000001", CommandKind.PAUSE, ADA, reason="", at_s=1.0
    ),
    "commit": lambda store, ab: store.commit(MOVED, (), expected_version=0, evidence=b"e", token=1),
    "ab.append": lambda store, ab: ab.append(
        "ab-1", [AbOutcome(1, True, 0.5, 1.0, 2.0)], first=0, resume_seq=3, settled_through_s=2.0
    ),
    "ab.end": lambda store, ab: ab.end("ab-1", at_s=3.0),
    "release_lease": lambda store, ab: store.release_lease(1),
    "forget_tokens": lambda store, ab: store.forget_tokens(ADA, origin="host:/file"),
}
# On a database with a service alone.
REMOVALS: dict[str, Callable[[SqlStore, AbStore], object]] = {
    "set_keys": lambda store, ab: store.set_keys("chat", lambda _: "{}", ADA, keys=("clients",), at_s=1.0),
    "mark_removing": lambda store, ab: store.mark_removing("chat", ADA, at_s=1.0),
    "remove_service": lambda store, ab: store.remove_service("chat", at_s=1.0),
}
READS: dict[str, Callable[[SqlStore, AbStore], object]] = {
    "load": lambda store, ab: store.load("r-00000001"),
    "running": lambda store, ab: store.running(),
    "commands": lambda store, ab: store.commands("r-00000001", after_seq=0),
    "evidence": lambda store, ab: store.evidence("r-00000001"),
    "request": lambda store, ab: store.request("r-00000001"),
    "rollout": lambda store, ab: store.rollout("r-00000001"),
    "rollouts": lambda store, ab: store.rollouts("chat"),
    "canaries": lambda store, ab: store.canaries("chat", limit=9),
    "attempts": lambda store, ab: store.attempts("chat", CANARY),
    "latest_attempt": lambda store, ab: store.latest_attempt("chat", CANARY),
    "services": lambda store, ab: store.services(),
    "service": lambda store, ab: store.service("chat"),
    "version": lambda store, ab: store.version("chat", STABLE),
    "served": lambda store, ab: store.served("chat"),
    "events": lambda store, ab: store.events("chat"),
    "last_event": lambda store, ab: store.last_event("chat"),
    "lease": lambda store, ab: store.lease(),
    "identity": lambda store, ab: store.identity("digest"),
    "ab.newest": lambda store, ab: ab.newest("chat"),
    "ab.outcomes": lambda store, ab: ab.outcomes("ab-1"),
}
CALLS = {**WRITES, **REMOVALS, **READS}


@pytest.fixture
def store(database_url: str) -> Iterator[SqlStore]:
    sql = SqlStore(database_url, clock=lambda: 100.0)
    yield sql
    sql.close()


# --- what is refused


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "virtiofs", "fuse.sshfs", "fuse.juicefs"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_network_file_system_is_refused_with_its_name_and_a_remedy(
    tmp_path: Path, kind: str, is_link: bool
) -> None:
    mounts, shared = tmp_path / "mounts", tmp_path / "shared"
    shared.mkdir()
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {shared} {kind} rw 0 0\n")
    path = shared / "state.db"
    if is_link:
        path = tmp_path / "state.db"
        path.symlink_to(shared / "state.db")

    with pytest.raises(BadInput, match=rf"network file system \({kind}\).*PostgreSQL"):
        SqlStore(f"sqlite:///{path}", mounts=mounts)

    assert not (shared / "state.db").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "fuseblk", "overlay", "fuse.ntfs-3g"])
def test_a_local_file_system_is_taken(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda {tmp_path} {kind} rw 0 0\n")

    SqlStore(f"sqlite:///{tmp_path / 'state.db'}", mounts=mounts).close()


@pytest.mark.parametrize("place", ["mysql://x/y", "sqlite://", "no url"])
def test_an_unsupported_database_is_refused(place: str) -> None:
    with pytest.raises(BadInput, match=r"use sqlite:///FILE"):
        SqlStore(place)


def test_a_url_that_cannot_be_parsed_is_not_repeated() -> None:
    with pytest.raises(BadInput) as refused:
        SqlStore("postgresql//ann:s3cret@host/x")

    assert "s3cret" not in str(refused.value)


def test_a_file_that_is_not_a_database_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("this text is not a database, and long enough to show it" * 100)

    with pytest.raises(Unreachable, match=r"state\.db does not answer: file is not a database; restore"):
        SqlStore(f"sqlite:///{tmp_path / 'state.db'}")


# --- file modes


@pytest.mark.parametrize("exists", [False, True])
def test_a_sqlite_file_is_readable_by_its_owner_only(tmp_path: Path, exists: bool) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "state.db"
    url = f"sqlite:///{path}"
    if exists:
        before = SqlStore(url)
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            (tmp_path / name).chmod(0o644)
        store = SqlStore(url)
        before.close()
    else:
        store = SqlStore(url)
    store.put_service(CHAT, VERSION)

    modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    store.close()
    names = ("state.db", "state.db-wal", "state.db-shm", "state.db.id")
    assert modes == dict.fromkeys(names, 0o600)


# --- errors


def test_every_public_method_is_called_below() -> None:
    public = {
        prefix + name
        for prefix, kind in (("", SqlStore), ("ab.", AbStore))
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }

    assert public - {"close"} == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_tables_that_are_missing_are_reported_as_unreachable(store: SqlStore, name: str) -> None:
    t.metadata.drop_all(store.database._engine)

    with pytest.raises(Unreachable, match="restore the database"):
        CALLS[name](store, AbStore(store.database))


@pytest.mark.integration
def test_a_server_that_stops_is_reported_and_used_again_once_it_runs(postgres: PostgresServer) -> None:
    store = SqlStore(postgres.empty_database())
    ab, failures = AbStore(store.database), {}
    postgres.stop()
    for name, call in CALLS.items():
        try:
            call(store, ab)
        except Unreachable as exc:
            failures[name] = str(exc)
    postgres.start()

    assert set(failures) == set(CALLS)
    assert all(text.endswith("check that it runs and may be written") for text in failures.values())
    assert store.services() == ()
    store.close()


@pytest.mark.integration
def test_of_several_hosts_the_one_that_answers_is_used(postgres: PostgresServer) -> None:
    [silent] = free_ports(1)
    url = postgres.empty_database().replace("@", f"@127.0.0.1:{silent},")
    store = SqlStore(url)

    assert store.services() == ()
    store.close()


@pytest.mark.integration
def test_a_server_that_stands_still_is_unreachable_within_a_bounded_time(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal of the lease waited 95 s, and with it every command and the end of the controller."""
    from controller.store.postgresql import BoundedConnection

    monkeypatch.setattr(BoundedConnection, "answer_s", 0.5)
    monkeypatch.setitem(POSTGRESQL_CONNECTION, "connect_timeout", "2")
    store = SqlStore(postgres.empty_database())
    lease = store.acquire_lease("a", ttl_s=60.0)
    assert lease is not None
    raised: list[Exception] = []

    def renew() -> None:
        try:
            store.renew_lease(lease.token, ttl_s=60.0)
        except Unreachable as exc:
            raised.append(exc)

    with postgres.frozen():
        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        thread.join(30.0)
        is_done = not thread.is_alive()

    assert (is_done, len(raised)) == (True, 1)
    assert store.renew_lease(lease.token, ttl_s=60.0)
    store.close()


def _turn_read_only(database: Database) -> None:
    """Every pooled connection becomes one to a server that takes no writes, and answers on."""
    for engine in (database._engine, database._leads):
        with engine.begin() as db:
            db.execute(sa.text("SET default_transaction_read_only = on"))


@pytest.mark.integration
@pytest.mark.parametrize("attributes", ["", "?target_session_attrs=any"])
def test_a_pool_leaves_a_server_that_has_become_a_standby(postgres: PostgresServer, attributes: str) -> None:
    """After a switchover, every write and the lease failed until the controller was restarted."""
    store = SqlStore(postgres.empty_database() + attributes)
    lease = store.acquire_lease("a", ttl_s=60.0)
    assert lease is not None
    _turn_read_only(store.database)

    with pytest.raises(Unreachable, match="it is a standby, or set to read only: lead the address"):
        store.renew_lease(lease.token, ttl_s=60.0)

    store.put_service(CHAT, VERSION)  # the other pool: what it read came from the standby, too
    assert store.renew_lease(lease.token, ttl_s=60.0)
    store.close()


@pytest.mark.integration
def test_a_standby_is_read_and_never_opened_to_write(postgres: PostgresServer) -> None:
    url = postgres.empty_database()
    SqlStore(url).close()
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as db:
        db.execute(sa.text("ALTER DATABASE postgres SET default_transaction_read_only = on"))
    try:
        with pytest.raises(Unreachable, match="session is read-only; it is a standby"):
            SqlStore(url)
        reader = SqlStore(url, may_migrate=False, may_create=False)
        assert reader.services() == ()
        reader.close()
    finally:
        with server.connect() as db:
            db.execute(sa.text("SET default_transaction_read_only = off"))
            db.execute(sa.text("ALTER DATABASE postgres RESET default_transaction_read_only"))
        server.dispose()


@pytest.mark.slow
def test_a_locked_service_stops_neither_the_lease_nor_another_service(postgres: PostgresServer) -> None:
    """A frozen process that held one service's row took the lease from all of them."""
    store = SqlStore(postgres.empty_database())
    for name in ("a", "b"):
        version = VersionRow(name, STABLE, "{}", "{}", 1.0)
        store.put_service(ServiceRow(name, "{}", STABLE, "s", 1.0), version)
        store.create_rollout(a_rollout(f"r-0000000{name}", service=name), request="{}", at_s=1.0)
    lease = store.acquire_lease("ctl", ttl_s=5.0)
    assert lease is not None

    def commit(name: str) -> None:
        state = a_rollout(f"r-0000000{name}", service=name)
        store.commit(state, (), expected_version=0, evidence=None, token=lease.token)

    with store.database._engine.begin() as holder:
        holder.execute(sa.text("SELECT 1 FROM services WHERE name = 'a' FOR UPDATE"))
        waiting = threading.Thread(target=lambda: commit("a"), daemon=True)
        waiting.start()
        ends_at_s = time.monotonic() + 60
        while not _waits_for_a_lock(store) and time.monotonic() < ends_at_s:
            time.sleep(0.01)
        began_s = time.monotonic()
        is_renewed = store.renew_lease(lease.token, ttl_s=5.0)
        commit("b")
        took_s = time.monotonic() - began_s
    waiting.join(20.0)

    assert (is_renewed, took_s < 4.0, waiting.is_alive()) == (True, True, False)
    store.close()


def _waits_for_a_lock(store: SqlStore) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with store.database.read() as db:
        return bool(db.execute(sa.text(query)).scalar_one())


def test_the_lease_is_renewed_while_every_other_connection_waits(tmp_path: Path) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))
    lease = store.acquire_lease("a", ttl_s=5.0)
    assert lease is not None
    with ExitStack() as held:
        for _ in range(15):  # as many as the pool holds
            held.enter_context(store.database._engine.connect())
        assert store.renew_lease(lease.token, ttl_s=5.0)

    store.close()


@pytest.mark.parametrize("name", [*WRITES, *REMOVALS])
def test_a_full_or_read_only_file_is_reported_as_unreachable(tmp_path: Path, name: str) -> None:
    store = SqlStore(sqlite_url(tmp_path / "state.db"))

    def refuse_writes(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    for engine in (store.database._engine, store.database._leads):
        sa.event.listen(engine, "checkout", refuse_writes)

    with pytest.raises(Unreachable, match="attempt to write a readonly database; make the file"):
        CALLS[name](store, AbStore(store.database))
    store.close()


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\x1b"])
def test_text_that_no_database_holds_is_stored_without_the_character(store: SqlStore, text: str) -> None:
    store.put_service(CHAT, VERSION)
    store.create_rollout(a_rollout(), request="{}", at_s=1.0)

    store.append_command("r-00000001", CommandKind.PAUSE, ADA, reason=f"a{text}b", at_s=1.0)

    assert store.commands("r-00000001", after_seq=0)[0].reason == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["\ud800", "\x00"])
def test_a_state_with_text_that_no_database_holds_is_committed(store: SqlStore, text: str) -> None:
    """The log line kept the rollback from being committed, for ever."""
    store.put_service(CHAT, VERSION)
    state = a_rollout()
    store.create_rollout(state, request="{}", at_s=1.0)
    state = hold(log(state, 2.0, f"a{text}b"), HoldKind.PAUSE, f"a{text}b", 2.0, page=True)

    store.commit(state, notices(state), expected_version=0, evidence=None)

    stored = store.load(state.id)
    assert stored is not None
    assert {stored.state.log[-2].text, stored.state.holds[0].reason} == {"a\N{REPLACEMENT CHARACTER}b"}
    assert store.events("chat")[-2].text == "a\N{REPLACEMENT CHARACTER}b"
    assert "\N{REPLACEMENT CHARACTER}" in str(stored.pending[0])


def test_a_log_line_that_the_database_refuses_is_committed_in_ascii(
    store: SqlStore,
) -> None:
    """Such as one outside the encoding of a LATIN1 database."""
    store.put_service(CHAT, VERSION)
    state = a_rollout()
    store.create_rollout(state, request="{}", at_s=1.0)

    def refuse(connection: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "too long…" in (parameters.values() if isinstance(parameters, dict) else parameters):
            raise UnicodeEncodeError("latin-1", "…", 0, 1, "not in the encoding")

    sa.event.listen(store.database._engine, "before_cursor_execute", refuse)
    store.commit(log(state, 2.0, "too long…"), (), expected_version=0, evidence=None)

    assert store.events("chat")[-1].text == "too long\\u2026"


def test_a_number_that_no_database_holds_is_bad_input(store: SqlStore) -> None:
    with pytest.raises(BadInput, match="cannot hold this"):
        store.events("chat", after_seq=10**30)


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (sa.exc.OperationalError("x", {}, Exception("database is locked")), "keeps it busy; try again"),
        (sa.exc.OperationalError("x", {}, Exception("database or disk is full")), "free disk space"),
        (sa.exc.TimeoutError("QueuePool limit"), "has no free connection"),
        (sa.exc.InternalError("x", {}, Exception("odd")), "does not answer: odd; check that it runs"),
        (
            sa.exc.OperationalError("x", {}, Exception("disk I/O error")),
            "disk I/O error; free disk space, as a reader needs some too; if there is some, check the disk",
        ),
        (sa.exc.IntegrityError("x", {}, Exception("NOT NULL")), "refuses a row"),
        (sa.exc.NoResultFound(), "lacks a row"),
    ],
)
def test_a_foreign_error_has_a_reason_and_a_remedy(foreign: Exception, words: str) -> None:
    ours = translated(foreign, "sqlite:///x")

    assert isinstance(ours, Unreachable)
    assert words in str(ours)


def test_a_wrong_call_of_ours_is_no_error_of_the_database() -> None:
    assert translated(sa.exc.ArgumentError("a bug"), "sqlite:///x") is None


def test_an_error_shows_no_value_of_a_row(store: SqlStore) -> None:
    t.metadata.drop_all(store.database._engine)

    with pytest.raises(Unreachable) as raised:
        store.put_service(CHAT, VERSION)

    text, error = "", raised.value.__cause__
    while error is not None:
        text, error = f"{text}{error}", error.__cause__
    assert "INSERT INTO services" in text
    assert CHAT.secret not in text


# --- a crash between any two statements


class Crash(Exception):
    """The process ends here."""


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    with database.read() as db:
        return {
            table.name: sorted((tuple(row) for row in db.execute(sa.select(table))), key=str)
            for table in t.metadata.sorted_tables
        }


def crash_at(store: SqlStore, statement: int) -> Callable[[], None]:
    """Make the statement of this number raise Crash; returns a function that ends that."""
    count = 0

    def listen(*_: object) -> None:
        nonlocal count
        count += 1
        if count == statement:
            raise Crash

    sa.event.listen(store.database._engine, "before_cursor_execute", listen)
    return lambda: sa.event.remove(store.database._engine, "before_cursor_execute", listen)


def prepare(store: SqlStore, ab: AbStore, name: str) -> None:
    """Bring the database to where `name` is called: before it in `WRITES`, or a service alone."""
    for before in WRITES if name in WRITES else ("put_service", "lease"):
        if before == name:
            return
        CALLS[before](store, ab)


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("name", [*WRITES, *REMOVALS])
def test_a_crash_between_any_two_statements_leaves_all_or_nothing(store: SqlStore, name: str) -> None:
    ab = AbStore(store.database)
    prepare(store, ab, name)
    before = contents(store.database)

    for statement in range(1, 40):
        restore = crash_at(store, statement)
        try:
            CALLS[name](store, ab)
        except Crash:
            restore()
            assert contents(store.database) == before
            continue
        restore()
        break
    else:
        raise AssertionError("more than 40 statements")

    assert contents(store.database) != before


def test_a_mount_of_the_host_whose_path_is_no_text_keeps_nobody_from_the_database(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_bytes(b"/dev/sdb1 /media/ann/B\xfccher ext4 rw 0 0\n/dev/sda1 / xfs rw 0 0\n")

    assert file_system(tmp_path, mounts) == "xfs"
