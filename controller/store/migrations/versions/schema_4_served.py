"""Schema 4: the versions that have served since their service was created, each as it served last."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"

VERSION = ("service", "id", "spec", "fingerprint", "created_at_s", "name", "source", "actor", "message")


def upgrade() -> None:
    """Add the table, fill it from the rollouts, and make releases before Alembic refuse this database."""
    op.create_table(
        "served",
        sa.Column("service", sa.String, primary_key=True),
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at_s", sa.Float, nullable=False),
        sa.Column("name", sa.String),
        sa.Column("source", sa.String),
        sa.Column("actor", sa.String),
        sa.Column("message", sa.Text),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("before", sa.String),
        sa.Column("undone", sa.String),
    )
    services = op.get_bind().execute(sa.text("SELECT name, stable, created_at_s FROM services")).all()
    for service in services:
        _fill(service.name, service.stable, service.created_at_s)
    op.execute("DELETE FROM canaryctl_meta WHERE name = 'schema'")
    op.execute("INSERT INTO canaryctl_meta (name, value) VALUES ('schema', '4')")


def _fill(service: str, stable: str, created_at_s: float) -> None:
    """Record the versions of one service that are stored still, in the order in which they served."""
    connection, names = op.get_bind(), ", ".join(VERSION)
    versions = connection.execute(
        sa.text(f"SELECT {names} FROM versions WHERE service = :service"), {"service": service}
    )
    stored = {row.id: dict(row._mapping) for row in versions}
    served = _served(service, created_at_s)
    served.setdefault(stable, {"before": None, "undone": None})
    insert = sa.text(
        f"INSERT INTO served ({names}, place, before, undone) "
        f"VALUES ({', '.join(f':{name}' for name in VERSION)}, :place, :before, :undone)"
    )
    for place, version in enumerate(served, 1):
        if version in stored:
            connection.execute(insert, stored[version] | {"place": place} | served[version])


def _served(service: str, created_at_s: float) -> dict[str, dict[str, str | None]]:
    """What each version replaced and which undo replaced it, by id, oldest first."""
    query = sa.text(
        "SELECT id, state FROM rollouts WHERE service = :service AND is_final AND created_at_s >= :at_s "
        "ORDER BY seq"
    )
    served: dict[str, dict[str, str | None]] = {}
    for row in op.get_bind().execute(query, {"service": service, "at_s": created_at_s}):
        try:
            state: dict[str, Any] = json.loads(row.state)["rollout"]
            before, after = state["stable"]["id"], state["canary"]["id"]
            is_undo = bool((state.get("plan") or {}).get("undo"))
            is_promoted = (state.get("departure") or {}).get("staying") == after
        except (KeyError, TypeError):  # of a release that wrote another form
            continue
        served.setdefault(before, {"before": None, "undone": None})
        if is_promoted:
            if is_undo:
                served[before]["undone"] = row.id
            served.pop(after, None)
            served[after] = {"before": after if is_undo else before, "undone": None}
    return served
