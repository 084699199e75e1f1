"""Persistent state in SQL (SQLite or PostgreSQL): rows, schema and queries."""
