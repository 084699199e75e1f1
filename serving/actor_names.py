"""Names under which the detached Ray actors of a cluster are found."""

from __future__ import annotations

NAMESPACE = "canaryctl"
FLEET = "fleet"  # the one actor that runs versions, for all services


def table_name(service: str) -> str:
    """The actor that hosts a service's route table."""
    return f"table:{service}"


def records_name(service: str) -> str:
    """The actor that hosts a service's records log."""
    return f"records:{service}"
