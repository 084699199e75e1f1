"""One file per schema, named for its number and what it changes. Alembic runs them in order."""
