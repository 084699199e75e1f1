"""State in SQL: SQLite by default, PostgreSQL by URL; rows, schema and queries."""
