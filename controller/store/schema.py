"""SQL schema for SQLite and PostgreSQL, its migrations, and the engine.

Invariant: SQLite is for one host; a database file on a network file system is refused, because WAL needs
shared memory.
"""

from __future__ import annotations

import json
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from controller.errors import BadInput, Unreachable

SCHEMA_VERSION = 2  # 2: rollouts.canary
BUSY_TIMEOUT_MS = 10_000
NETWORK_FILE_SYSTEMS = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "afs", "beegfs", "gpfs",
    "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.gcsfuse",
})  # fmt: skip

metadata = sa.MetaData()


def unique_while(name: str, column: sa.Column[str], condition: sa.ColumnElement[bool]) -> sa.Index:
    """Unique index: at most one row per value of `column` while `condition` holds."""
    return sa.Index(name, column, unique=True, sqlite_where=condition, postgresql_where=condition)


meta = sa.Table(
    "canaryctl_meta",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("stable", sa.String, nullable=False),
    sa.Column("secret", sa.String, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("removing", sa.Boolean, nullable=False, default=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("service", sa.String, primary_key=True),
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("service", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("pending", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("evidence", sa.LargeBinary),
    sa.Column("log_count", sa.Integer, nullable=False),
    sa.Column("is_final", sa.Boolean, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("canary", sa.String, nullable=False, server_default=""),
)
unique_while("one_rollout_a_service", rollouts.c.service, ~rollouts.c.is_final)
sa.Index("rollouts_of_a_service", rollouts.c.service, rollouts.c.created_at_s)
attempts_of_a_version = sa.Index(
    "attempts_of_a_version", rollouts.c.service, rollouts.c.canary, rollouts.c.created_at_s
)

commands = sa.Table(
    "asks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("rollout", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at_s", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("service", sa.String, nullable=False, index=True),
    sa.Column("rollout", sa.String),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
)

ab_tests = sa.Table(
    "ab_tests",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("service", sa.String, nullable=False),
    sa.Column("rollout", sa.String, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("resume_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column("settled_through_s", sa.Float, nullable=False, default=0.0),
)
unique_while("one_ab_test_a_service", ab_tests.c.service, ab_tests.c.ended_at_s.is_(None))

ab_outcomes = sa.Table(
    "ab_outcomes",
    metadata,
    sa.Column("test", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("unit", sa.BigInteger, nullable=False),
    sa.Column("is_b", sa.Boolean, nullable=False),
    sa.Column("w", sa.Float, nullable=False),
    sa.Column("y", sa.Float),
    sa.Column("at_s", sa.Float, nullable=False),
)


def values_of(row: object) -> dict[str, object]:
    """Column values of a slotted row, by name."""
    return {name: getattr(row, name) for name in type(row).__slots__}  # type: ignore[attr-defined]


def open_engine(url: str, *, mounts: Path = Path("/proc/self/mounts")) -> sa.Engine:
    """Engine of a database whose tables exist and have the current schema.

    Raises BadInput for a URL or a path that cannot hold the state, Unreachable when no database answers.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as exc:
        raise BadInput(
            f"database URL {url!r} cannot be parsed; use sqlite:///FILE or postgresql+psycopg://..."
        ) from exc
    dialect = parsed.get_backend_name()
    if dialect not in ("sqlite", "postgresql"):
        raise BadInput(f"database {dialect} is not supported; use sqlite:///FILE or postgresql+psycopg://...")
    if dialect == "sqlite":
        _check_path(parsed.database, mounts)
    try:
        engine = sa.create_engine(parsed)
    except ImportError as exc:
        raise BadInput(
            f"the driver of {dialect} is missing ({exc}); pip install 'canaryctl[postgres]'"
        ) from exc
    if dialect == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    _create_tables(engine)
    return engine


def writing(engine: sa.Engine) -> sa.Engine:
    """The same engine, whose transactions take SQLite's write lock at their start.

    Otherwise a transaction that reads first fails at its write, instead of waiting, after a concurrent write.
    """
    return engine.execution_options(canaryctl_writes=True)


def _create_tables(engine: sa.Engine) -> None:
    try:
        with writing(engine).begin() as connection:
            metadata.create_all(connection)
            # Locks the row, so that of two controllers starting at once only one migrates.
            stored = sa.select(meta.c.value).where(meta.c.name == "schema").with_for_update()
            row = connection.execute(stored).first()
            if row is not None and row.value == "1":
                _add_canary_column(connection)
                row = connection.execute(stored).first()
            if row is None:
                connection.execute(sa.insert(meta).values(name="schema", value=str(SCHEMA_VERSION)))
                connection.execute(
                    sa.insert(leases).values(name="controller", holder="", token=0, expires_at_s=0.0)
                )
    except sa.exc.DatabaseError as exc:
        reason = str(exc.orig).splitlines()[0]
        place = engine.url.render_as_string(hide_password=True)
        raise Unreachable(
            f"database {place} does not open: {reason}; check that it runs and may be written"
        ) from exc
    if row is not None and int(row.value) != SCHEMA_VERSION:
        raise BadInput(
            f"the database has schema {row.value}, this canaryctl reads {SCHEMA_VERSION}; "
            "run the canaryctl that wrote it"
        )


def _add_canary_column(connection: sa.Connection) -> None:
    """Migration from schema 1 to 2: the canary of each rollout, read from its state, as an indexed column."""
    connection.execute(sa.text("ALTER TABLE rollouts ADD COLUMN canary VARCHAR NOT NULL DEFAULT ''"))
    for row in connection.execute(sa.select(rollouts.c.id, rollouts.c.state)).all():
        canary = json.loads(row.state)["rollout"]["canary"]["id"]
        connection.execute(sa.update(rollouts).where(rollouts.c.id == row.id).values(canary=canary))
    attempts_of_a_version.create(connection)
    connection.execute(sa.update(meta).where(meta.c.name == "schema").values(value="2"))


def _check_path(database: str | None, mounts: Path) -> None:
    if not database or database == ":memory:":
        raise BadInput(
            "database sqlite:// has no file; use sqlite:///FILE, so that the state survives a restart"
        )
    path = Path(database).absolute()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kind = file_system(path.parent.resolve(), mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise BadInput(
            f"{path} is on a network file system ({kind}), where SQLite loses writes; "
            "move CANARYCTL_HOME to a local disk or use PostgreSQL"
        )


def file_system(folder: Path, mounts: Path) -> str:
    """File system type of `folder`, from a file like /proc/self/mounts; '' when unknown."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    longest, found = "", ""
    for line in lines:
        _, mount_point, kind, *_ = line.split(" ")
        mount_point = mount_point.replace("\\040", " ")
        if folder.is_relative_to(mount_point) and len(mount_point) >= len(longest):
            longest, found = mount_point, kind
    return found


def _configure_sqlite(connection: object, _record: ConnectionPoolEntry) -> None:
    # Disables the driver's own transactions: it starts them too late and never as IMMEDIATE.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("canaryctl_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
