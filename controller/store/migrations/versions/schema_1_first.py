"""Schema 1: all tables of the first release.

A database made before migrations were Alembic's has some or all of them: only what is missing is made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Create the tables that are missing, and the lease's one row."""
    tables = sa.MetaData()
    sa.Table(
        "canaryctl_meta",
        tables,
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    _rollouts(tables)
    _controller(tables)
    _ab(tables)
    connection = op.get_bind()
    tables.create_all(connection)
    leases = tables.tables["leases"]
    if connection.execute(sa.select(leases.c.name)).first() is None:
        connection.execute(sa.insert(leases).values(name="controller", holder="", token=0, expires_at_s=0.0))


def _rollouts(tables: sa.MetaData) -> None:
    sa.Table(
        "services",
        tables,
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("stable", sa.String, nullable=False),
        sa.Column("secret", sa.String, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("removing", sa.Boolean, nullable=False),
    )
    sa.Table(
        "versions",
        tables,
        sa.Column("service", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )
    rollouts = sa.Table(
        "rollouts",
        tables,
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
    )
    running = ~rollouts.c.is_final
    sa.Index(
        "one_rollout_a_service",
        rollouts.c.service,
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
    sa.Index("rollouts_of_a_service", rollouts.c.service, rollouts.c.created_at_s)


def _controller(tables: sa.MetaData) -> None:
    sa.Table(
        "asks",
        tables,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rollout", sa.String, nullable=False, index=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    sa.Table(
        "events",
        tables,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("service", sa.String, nullable=False, index=True),
        sa.Column("rollout", sa.String),
        sa.Column("at_s", sa.Float, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    sa.Table(
        "leases",
        tables,
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("expires_at_s", sa.Float, nullable=False),
    )
    sa.Table(
        "tokens",
        tables,
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
    )


def _ab(tables: sa.MetaData) -> None:
    tests = sa.Table(
        "ab_tests",
        tables,
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("service", sa.String, nullable=False),
        sa.Column("rollout", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("ended_at_s", sa.Float),
        sa.Column("resume_seq", sa.BigInteger, nullable=False),
        sa.Column("settled_through_s", sa.Float, nullable=False),
    )
    runs = tests.c.ended_at_s.is_(None)
    sa.Index("one_ab_test_a_service", tests.c.service, unique=True, sqlite_where=runs, postgresql_where=runs)
    sa.Table(
        "ab_outcomes",
        tables,
        sa.Column("test", sa.String, primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True),
        sa.Column("unit", sa.BigInteger, nullable=False),
        sa.Column("is_b", sa.Boolean, nullable=False),
        sa.Column("w", sa.Float, nullable=False),
        sa.Column("y", sa.Float),
        sa.Column("at_s", sa.Float, nullable=False),
    )
