"""Calls of Serve's client, which block: the fleet actor makes them in one thread of their own."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve

from serving.fleet.types import Launch


def start_serve(http: dict[str, Any]) -> None:
    """Start Serve with its ingress at this address; idempotent."""
    serve.start(proxy_location="HeadOnly", http_options=http)


def run(target: Any) -> None:
    """Run an application; returns once Serve has accepted it."""
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def delete(name: str) -> None:
    """Delete an application; returns at once."""
    serve.delete(name, _blocking=False)


def status(name: str) -> tuple[str, str] | None:
    """(status, message) of an application; None: not found."""
    application = serve.status().applications.get(name)
    return None if application is None else (str(application.status.value), str(application.message))


def missing_gpus(launch: Launch, running: int) -> str | None:
    """One line when Ray lacks free GPUs for this launch: Serve would wait without limit. None: enough."""
    needed = launch.gpus_per_replica * max(0, launch.replicas - running)
    free = ray.available_resources().get("GPU", 0.0) if needed else 0.0
    if needed <= free:
        return None
    return (
        f"no GPU for version {launch.version}: it needs {needed:g}, {free:g} are free; "
        "unload another version or request a share of one"
    )
