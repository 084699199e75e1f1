"""Schema 3: rollouts and A/B tests are ordered by a sequence, versions have names, tokens an origin."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Add the columns, number the existing rows, and make releases before Alembic refuse this database."""
    for table in ("versions", "rollouts"):
        for name, kind in (
            ("name", sa.String),
            ("source", sa.String),
            ("actor", sa.String),
            ("message", sa.Text),
        ):
            op.add_column(table, sa.Column(name, kind()))
    op.add_column("tokens", sa.Column("origin", sa.String))
    for table, is_ended in (("rollouts", "is_final"), ("ab_tests", "ended_at_s IS NOT NULL")):
        op.add_column(table, sa.Column("seq", sa.Integer, nullable=False, server_default="0"))
        _number(table, is_ended)
    # A schema that was brought to 2 by a release before Alembic may lack its index.
    op.drop_index("attempts_of_a_version", "rollouts", if_exists=True)
    op.drop_index("rollouts_of_a_service", "rollouts", if_exists=True)
    op.create_index("rollouts_in_order", "rollouts", ["service", "seq"], unique=True)
    op.create_index("attempts_in_order", "rollouts", ["service", "canary", "seq"])
    op.create_index("ab_tests_in_order", "ab_tests", ["service", "seq"], unique=True)
    op.execute("UPDATE leases SET expires_at_s = 0")  # it was written by another clock
    op.execute("DELETE FROM canaryctl_meta WHERE name = 'schema'")
    op.execute("INSERT INTO canaryctl_meta (name, value) VALUES ('schema', '3')")


def _number(table: str, is_ended: str) -> None:
    """Number the rows of each service in the order of their creation; the one that runs is the newest."""
    connection = op.get_bind()
    # SQLite keeps the order of insertion. PostgreSQL does not, there the time must do.
    order = "rowid" if connection.dialect.name == "sqlite" else "created_at_s, id"
    rows = connection.execute(sa.text(f"SELECT id, service FROM {table} ORDER BY ({is_ended}) DESC, {order}"))
    numbers: Counter[str] = Counter()
    for row in rows.all():
        numbers[row.service] += 1
        connection.execute(
            sa.text(f"UPDATE {table} SET seq = :seq WHERE id = :id"),
            {"seq": numbers[row.service], "id": row.id},
        )
