"""The services that have a route table in this Ray cluster, for who has no database to ask."""

from __future__ import annotations

from ray.util import list_named_actors

from serving.actor_names import table_name


def open_services() -> tuple[str, ...]:
    """Names of the services with a route table, sorted. The caller has called `ray.init`."""
    prefix = table_name("")
    return tuple(sorted(name.removeprefix(prefix) for name in list_named_actors() if name.startswith(prefix)))
