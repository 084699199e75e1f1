"""The store's database, SQLite or PostgreSQL: its connections, transactions and errors.

Invariants: every error of the database leaves here as one of ours, by one table, and shows neither a password
nor a row's values; a SQLite file is read and written by its owner alone, and refused on a network file
system, because WAL needs shared memory.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from controller.errors import BadInput, CanaryctlError, Unreachable
from controller.store.database_url import parsed_url
from controller.store.file_systems import file_system, is_on_network
from controller.store.foreign_database import require_free_names, require_own_file
from controller.store.migrations import is_current, migrate, stored_schema
from controller.store.read_only import configure_reader, may_only_read, mode_of
from controller.store.same_database import (
    Loss,
    SameFile,
    Sameness,
    SameServerDatabase,
    gone_or_empty,
    never_create,
    require_content,
    require_same,
)
from controller.store.sqlite_files import all_files, sqlite_file
from controller.store.turns import Turn, Turns
from controller.store.write_ahead_log import keep_logs_apart, note_log
from serving.clock import boot_s

MOUNTS = Path("/proc/self/mounts")
BUSY_TIMEOUT_MS = 10_000
# Without these a host that vanished would keep a query, and with it a rollback, waiting for hours.
POSTGRESQL_CONNECTION: Mapping[str, str | None] = {
    "connect_timeout": "5",
    "prepare_threshold": None,  # a pooler's next transaction may be of another connection, which has none
    "options": "-c lock_timeout=10s -c statement_timeout=60s -c idle_in_transaction_session_timeout=10s",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# A demoted primary answers on, as a standby. What only reads may read a standby.
WRITER_CONNECTION = {"target_session_attrs": "read-write"}
# Of what renews the lease, for which 5 s are left (`runtime/runner.py`).
LEASE_CONNECTION = {
    "options": "-c lock_timeout=2s -c statement_timeout=3s -c idle_in_transaction_session_timeout=3s",
}

# From foreign errors to ours: the first row that matches. Conflicts that are foreseen are caught at their
# statement; the rows for text and numbers are input that no database can hold. What is missing (a wrong call
# of SQLAlchemy) is a bug of ours and stays one.
ERRORS: tuple[tuple[type[Exception], type[CanaryctlError], str], ...] = (
    (sa.exc.DataError, BadInput, "cannot hold this value"),
    (UnicodeError, BadInput, "cannot hold this text"),
    (OverflowError, BadInput, "cannot hold this number"),
    (sa.exc.TimeoutError, Unreachable, "has no free connection"),
    (sa.exc.IntegrityError, Unreachable, "refuses a row"),
    (sa.exc.ProgrammingError, Unreachable, "has other tables than this canaryctl expects"),
    (sa.exc.DBAPIError, Unreachable, "does not answer"),
    (sa.exc.DisconnectionError, Unreachable, "does not answer"),
    (sa.exc.PendingRollbackError, Unreachable, "lost the connection"),
    (sa.exc.ResourceClosedError, Unreachable, "lost the connection"),
    (sa.exc.NoResultFound, Unreachable, "lacks a row that this canaryctl expects"),
    (sqlite3.Error, Unreachable, "does not answer"),
)
# What to do about it, by a part of the database's own words.
REMEDIES: tuple[tuple[str, str], ...] = (
    ("locked", "another process keeps it busy; try again"),
    ("lock timeout", "another process keeps it busy; try again"),
    ("is full", "free disk space"),
    ("No space left", "free disk space"),
    # What SQLite says where it cannot make the memory that readers and writers share.
    ("disk I/O", "free disk space, as a reader needs some too; if there is some, check the disk"),
    ("readonly", "make the file and its folder writable"),
    ("startup parameter", "a pooler (pgbouncer) stands there: give the address of PostgreSQL itself"),
    ("read-only", "it is a standby, or set to read only: lead the address to the primary"),
    ("unable to open", "check that it exists, and that it and its folder may be read and written"),
    ("no such", "restore the database"),
    ("does not exist", "restore the database"),
    ("malformed", "restore the database"),
    ("not a database", "restore the database, or use another file"),
)


class Database:
    """Connections to one database whose schema is the newest. Safe to use from several threads."""

    def __init__(
        self,
        url: str,
        *,
        mounts: Path = MOUNTS,
        clock: Callable[[], float] | None = None,
        may_migrate: bool = True,
        may_create: bool = True,
    ) -> None:
        """Open the database, creating or migrating it. Raises BadInput for a URL or a path that cannot hold
        the state and for a newer schema, Unreachable when no database answers or a copy has another's log.

        clock: of leases, in seconds, instead of the database's own. may_migrate False: raises Unreachable
        for a database that would have to be migrated. may_create False: raises LostDatabase where there is
        none, or one without any of our tables.
        """
        path = sqlite_file(url)
        self.is_read_only = path is not None and not may_migrate and may_only_read(path)
        if path is not None:
            if not may_create:
                require_content(path)
            keep_logs_apart(path)
            require_own_file(path)
        connection = {**POSTGRESQL_CONNECTION, **(WRITER_CONNECTION if may_migrate else {})}
        self._engine = _engine(url, mounts, connection, reads=self.is_read_only)
        self._writes = self._engine.execution_options(canaryctl_writes=True)
        # Leadership never waits for a connection: every other one may be in use, waiting for a lock.
        leads = _engine(
            url, mounts, {**connection, **LEASE_CONNECTION}, {"pool_size": 2}, reads=self.is_read_only
        )
        if leads.dialect.name == "sqlite":
            sa.event.listen(leads, "connect", _leave_checkpoints)
        self._leads = leads.execution_options(canaryctl_writes=True)
        self._renews = leads.execution_options(canaryctl_writes=True, canaryctl_durable=False)
        self.turns = Turns()  # of the writers of a SQLite file
        self._clock = clock
        self._place = str(path) if path is not None else shown_url(self._engine.url)
        self._same: Sameness | None = None
        if path is None:
            self._same = server = SameServerDatabase(self._place)
            server.watch(self._engine)
            server.watch(self._leads)
        if leads.dialect.driver == "psycopg":
            from controller.store.postgresql import leave_read_only

            leave_read_only((self._engine, self._leads))
        try:
            with self.read() as db:
                is_newest = is_current(db)
                if not is_newest and stored_schema(db) == 0:
                    require_free_names(db, self._place)
                    if not may_create:
                        raise gone_or_empty(self._place)
            if not is_newest and not may_migrate:
                raise Unreachable(
                    f"database {shown_url(self._engine.url)} has an older schema; a controller migrates it: "
                    "canaryctl up"
                )
            if not is_newest:
                self._migrate()
            if path is not None:
                self._same = SameFile(path)
                if not self.is_read_only:
                    note_log(path)
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> Loss | None:
        """How the database was lost since it was opened, as far as is known without asking it; None: it was
        not."""
        return self._same.lost if self._same is not None else None

    def _migrate(self) -> None:
        with self.write() as db:
            if db.dialect.driver != "psycopg":
                migrate(db)
                return
            from controller.store import postgresql

            postgresql.wait_without_limit(db)
            migrate(db)
            postgresql.wait_bounded(db)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()
        self._leads.dispose()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that reads. Raises Unreachable, BadInput."""
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def write(self, turn: Turn = Turn.ROUTINE) -> Iterator[sa.Connection]:
        """A transaction that writes; takes SQLite's write lock at its start. Raises Unreachable, BadInput."""
        with self._in_turn(turn), self._transaction(self._writes) as connection:
            yield connection

    @contextmanager
    def lead(self, *, is_durable: bool = True) -> Iterator[sa.Connection]:
        """As `write`, for the lease alone: on connections of its own. It waits for a lock of PostgreSQL for
        2 s at most, and in SQLite for the one write that runs.

        is_durable False: SQLite does not wait for the disk. What was written is seen at once by every
        process, and may be lost with the host's power. Raises Unreachable, BadInput.
        """
        engine = self._leads if is_durable else self._renews
        with self._in_turn(Turn.LEASE), self._transaction(engine) as connection:
            yield connection

    def _in_turn(self, turn: Turn) -> AbstractContextManager[None]:
        if self._engine.dialect.name != "sqlite":
            return nullcontext()
        return self.turns.take(turn, timeout_s=BUSY_TIMEOUT_MS / 1000)

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """Raises LostDatabase, and commits nothing, where the database is not the one that was opened."""
        with self._translated():
            self._require_same()
            with engine.begin() as connection:
                yield connection
                self._require_same()

    def _require_same(self) -> None:
        # Of PostgreSQL, a new connection tells; what it told last must not keep the next from being opened.
        if isinstance(self._same, SameFile):
            require_same(self._same, self._place)

    def now_s(self, db: sa.Connection) -> float:
        """The clock that all hosts of this database share, in seconds; its zero means nothing.

        PostgreSQL: the server's. SQLite is for one host: that host's boot time, which no one can set back.
        """
        if self._clock is not None:
            return self._clock()
        if db.dialect.name == "sqlite":
            return boot_s()
        return float(db.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except CanaryctlError:
            raise
        except Exception as exc:
            ours = translated(exc, shown_url(self._engine.url))
            if ours is None:
                raise
            raise ours from exc


def translated(exc: Exception, place: str) -> CanaryctlError | None:
    """Our error for a foreign one, by `ERRORS`; None: it is not a database's."""
    for foreign, ours, what in ERRORS:
        if isinstance(exc, foreign):
            reason = (str(getattr(exc, "orig", None) or exc).splitlines() or [type(exc).__name__])[0]
            if ours is BadInput:
                return BadInput(f"database {place} {what}: {reason}; change it")
            remedy = next(
                (text for part, text in REMEDIES if part in reason), "check that it runs and may be written"
            )
            return Unreachable(f"database {place} {what}: {reason}; {remedy}")
    return None


def shown_url(url: sa.URL) -> str:
    """The URL without its password, wherever it stands."""
    secrets = {name: "***" for name in url.query if "pass" in name.lower()}
    return url.update_query_dict(secrets).render_as_string(hide_password=True)


def _engine(
    url: str,
    mounts: Path,
    connection: Mapping[str, str | None],
    pool: Mapping[str, int] | None = None,
    *,
    reads: bool = False,
) -> sa.Engine:
    """connection: PostgreSQL's options, where the URL names none. pool: options of SQLAlchemy's pool.

    reads: of a SQLite file that may only be read.
    """
    parsed = parsed_url(url)
    dialect = parsed.get_backend_name()
    if dialect not in ("sqlite", "postgresql"):
        raise BadInput(f"database {dialect} is not supported; use sqlite:///FILE or postgresql+psycopg://...")
    if dialect == "sqlite" and not reads:
        _prepare_file(parsed.database, mounts)
    try:
        if dialect == "sqlite":
            engine = sa.create_engine(parsed, hide_parameters=True, **(pool or {}))
        else:
            given = {name: text for name, text in connection.items() if name not in parsed.query}
            engine = sa.create_engine(
                parsed, hide_parameters=True, pool_pre_ping=True, connect_args=given, **(pool or {})
            )
    except (ImportError, sa.exc.NoSuchModuleError) as exc:
        raise BadInput(
            f"the driver of {dialect} is missing ({exc}); use postgresql+psycopg:// and "
            "pip install 'canaryctl[postgres]'"
        ) from exc
    if engine.dialect.driver == "psycopg":
        from controller.store.postgresql import bound_answers  # psycopg is an extra

        bound_answers(engine)
    if dialect == "sqlite":
        file = Path(parsed.database or "").resolve()  # as a link stands now
        never_create(engine, file, mode_of(file) if reads else "rw")
        sa.event.listen(engine, "connect", configure_reader if reads else _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_file(database: str | None, mounts: Path) -> None:
    """Check the file system, and that only its owner may read the file. Raises BadInput, Unreachable."""
    if not database or database == ":memory:":
        raise BadInput(
            "database sqlite:// has no file; use sqlite:///FILE, so that the state survives a restart"
        )
    path = Path(database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kind = file_system(path.resolve().parent, mounts)
        if is_on_network(kind):
            raise BadInput(
                f"{path} is on a network file system ({kind}), where SQLite loses writes; "
                "move CANARYCTL_HOME to a local disk or use PostgreSQL"
            )
        _make_private(path.resolve())
    except OSError as exc:
        raise Unreachable(
            f"database {path} does not open: {exc.strerror}; check that its folder exists and may be written"
        ) from exc


def _make_private(path: Path) -> None:
    """Create the file as 0600, or take the access of others away; SQLite's other files get the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        for one in all_files(path):
            try:
                mode = one.stat().st_mode
                if stat.S_ISREG(mode) and mode & 0o077:
                    one.chmod(stat.S_IMODE(mode) & 0o700)
            except (FileNotFoundError, PermissionError):
                continue  # another user's file: its owner decides


def _configure_sqlite(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    # Disables the driver's own transactions: it starts them too late and never as IMMEDIATE.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA synchronous=FULL")
    ends_at_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            # The busy time-out does not apply to this change: several first openers meet here.
            if "locked" not in str(exc) or time.monotonic() > ends_at_s:
                raise
            time.sleep(0.01)


def _leave_checkpoints(connection: sqlite3.Connection, _record: ConnectionPoolEntry) -> None:
    # A checkpoint waits for the disk twice: other writers do it, but where only the lease is written.
    connection.execute("PRAGMA wal_autocheckpoint=4000")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("canaryctl_writes", False):
        is_durable = options.get("canaryctl_durable", True)
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if is_durable else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("canaryctl_writes", False) else "BEGIN")
