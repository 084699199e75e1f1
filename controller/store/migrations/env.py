"""Alembic's entry point: runs the migrations in the transaction that `migrate` has begun."""

from __future__ import annotations

from alembic import context

from controller.store.schema import metadata

given = context.config.attributes
context.configure(
    connection=given["connection"], version_table=given["version_table"], target_metadata=metadata
)
context.run_migrations()
