"""SQL schema for SQLite and PostgreSQL: its tables, as the newest migration leaves them.

A change here needs a migration, see `migrations/`; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

from serving.files.plain_text import storable

SCHEMA = 4  # the newest revision in `migrations/versions/`

metadata = sa.MetaData()


class String(sa.types.TypeDecorator[str]):
    """Text that is made `storable` on its way to the database, so that none keeps a row from being written.

    An engine's error or an endpoint's answer is in a rollout's log, and a rollback that cannot be committed
    is never done.
    """

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return storable(value) if isinstance(value, str) else value


class Text(String):
    """`String` of any length."""

    impl = sa.Text
    cache_ok = True


def unique_while(name: str, column: sa.Column[str], condition: sa.ColumnElement[bool]) -> sa.Index:
    """Unique index: at most one row per value of `column` while `condition` holds."""
    return sa.Index(name, column, unique=True, sqlite_where=condition, postgresql_where=condition)


def label_columns() -> tuple[sa.Column[str | None], ...]:
    """What a version is called, its checkpoint path or URL as given, who brought it and why."""
    return (
        sa.Column("name", String),
        sa.Column("source", String),
        sa.Column("actor", String),
        sa.Column("message", Text),
    )


meta = sa.Table(
    "canaryctl_meta",
    metadata,
    sa.Column("name", String, primary_key=True),
    sa.Column("value", String, nullable=False),
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("name", String, primary_key=True),
    sa.Column("spec", Text, nullable=False),
    sa.Column("stable", String, nullable=False),
    sa.Column("secret", String, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("removing", sa.Boolean, nullable=False, default=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("service", String, primary_key=True),
    sa.Column("id", String, primary_key=True),
    sa.Column("spec", Text, nullable=False),
    sa.Column("fingerprint", Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    *label_columns(),
)

# Versions that have served since the service was created, each as it served last: a later attempt with the
# same files replaces the row in `versions`, and not this one.
served = sa.Table(
    "served",
    metadata,
    sa.Column("service", String, primary_key=True),
    sa.Column("id", String, primary_key=True),
    sa.Column("spec", Text, nullable=False),
    sa.Column("fingerprint", Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    *label_columns(),
    sa.Column("place", sa.Integer, nullable=False),  # in the order in which they began to serve
    sa.Column("before", String),  # the version that an undo returns to; NULL: created with the service
    sa.Column("undone", String),  # id of the undo that replaced it; NULL: none, or it served again since
)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", String, primary_key=True),
    sa.Column("service", String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", Text, nullable=False),
    sa.Column("pending", Text, nullable=False),
    sa.Column("request", Text, nullable=False),
    sa.Column("evidence", sa.LargeBinary),
    sa.Column("log_count", sa.Integer, nullable=False),
    sa.Column("is_final", sa.Boolean, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("canary", String, nullable=False, server_default=""),
    # Order of creation within the service: 1, 2, 3 ... A time cannot order rows, because clocks jump.
    sa.Column("seq", sa.Integer, nullable=False, server_default="0"),
    *label_columns(),
)
unique_while("one_rollout_a_service", rollouts.c.service, ~rollouts.c.is_final)
sa.Index("rollouts_in_order", rollouts.c.service, rollouts.c.seq, unique=True)
sa.Index("attempts_in_order", rollouts.c.service, rollouts.c.canary, rollouts.c.seq)

commands = sa.Table(
    "asks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("rollout", String, nullable=False, index=True),
    sa.Column("kind", String, nullable=False),
    sa.Column("actor", String, nullable=False),
    sa.Column("role", String, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("at_s", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("service", String, nullable=False, index=True),
    sa.Column("rollout", String),
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("actor", String, nullable=False),
    sa.Column("text", Text, nullable=False),
    sqlite_autoincrement=True,
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", String, primary_key=True),
    sa.Column("holder", String, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),  # by the clock of `Database.now_s`
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", String, primary_key=True),
    sa.Column("name", String, nullable=False),
    sa.Column("role", String, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("origin", String),  # host and file that hold the token; NULL: it was given to a person
)

ab_tests = sa.Table(
    "ab_tests",
    metadata,
    sa.Column("id", String, primary_key=True),
    sa.Column("service", String, nullable=False),
    sa.Column("rollout", String, nullable=False),
    sa.Column("spec", Text, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("resume_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column("settled_through_s", sa.Float, nullable=False, default=0.0),
    sa.Column("seq", sa.Integer, nullable=False, server_default="0"),  # as in `rollouts`
)
unique_while("one_ab_test_a_service", ab_tests.c.service, ab_tests.c.ended_at_s.is_(None))
sa.Index("ab_tests_in_order", ab_tests.c.service, ab_tests.c.seq, unique=True)

ab_outcomes = sa.Table(
    "ab_outcomes",
    metadata,
    sa.Column("test", String, primary_key=True),
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
