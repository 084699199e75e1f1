"""Schema 2: the canary of each rollout as an indexed column, read from its state."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Add the column, unless a release before Alembic did; fill it."""
    connection = op.get_bind()
    if "canary" in {column["name"] for column in sa.inspect(connection).get_columns("rollouts")}:
        return
    op.add_column("rollouts", sa.Column("canary", sa.String, nullable=False, server_default=""))
    rollouts = sa.table("rollouts", sa.column("id"), sa.column("state"), sa.column("canary"))
    for row in connection.execute(sa.select(rollouts.c.id, rollouts.c.state)).all():
        canary = json.loads(row.state)["rollout"]["canary"]["id"]
        connection.execute(sa.update(rollouts).where(rollouts.c.id == row.id).values(canary=canary))
    op.create_index("attempts_of_a_version", "rollouts", ["service", "canary", "created_at_s"])
