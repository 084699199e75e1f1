"""Engines and endpoints: connection pool, name lookup, reachability, health."""
