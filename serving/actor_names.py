"""Names and Ray options of a cluster's detached actors."""

from __future__ import annotations

from typing import Any

NAMESPACE = "canaryctl"
_JUDGE = "_judge"
FLEET = "fleet"  # the one actor that runs versions, for all services


def detached(name: str, namespace: str) -> dict[str, Any]:
    """Ray options of an actor that outlives its creator, exists once, and is restarted when it crashes."""
    return {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
    }


def judge_service(service: str) -> str:
    """Under which name the fleet runs the judge of a service. No service has it (`_` is in none), and so no
    route table, no router and no client."""
    return f"{service}{_JUDGE}"


def judged_service(name: str) -> str | None:
    """The service whose judge the fleet runs under this name; None: it is a service's own name."""
    return name.removesuffix(_JUDGE) if name.endswith(_JUDGE) else None


def table_name(service: str) -> str:
    """The actor that hosts a service's route table."""
    return f"table:{service}"


def records_name(service: str) -> str:
    """The actor that hosts a service's records log."""
    return f"records:{service}"
