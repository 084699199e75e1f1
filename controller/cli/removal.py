"""`canaryctl down`: remove a service, or all of them with what was started for them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from controller.cli import options
from controller.cli.client import CONNECTION_LOST_S, Client, poll
from controller.cli.output import Output, OutputOption, emit_data, note, progress, told_on_interrupt
from controller.errors import BadInput, RolloutRunning, TimedOut, UnknownService, Unreachable
from controller.settings import Settings, load_settings
from controller.views.models import CommandResult

DOWN_TIMEOUT_S = 180.0


def down(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation prompt.")] = False,
    timeout: options.TimeoutOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove a service, or all of them.

    Removing the last one also stops the controller and the Ray cluster.
    """
    from controller.cli import processes

    settings = load_settings()
    name = service or service_
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput("down stops serving users; confirm with --yes")
        typer.confirm(f"Take down {name or 'every service'}?", abort=True)
    with processes.exclusive_access(settings):
        lines = _take_down(settings, name, ends_at_s=time.monotonic() + (timeout or DOWN_TIMEOUT_S))
    if output.is_text:
        for line in lines:
            note(line)
    else:
        emit_data(CommandResult(outcome="done", text="; ".join(lines)), output)


def _take_down(settings: Settings, service: str | None, *, ends_at_s: float) -> list[str]:
    """Remove the service (None: all); after the last one, stop the controller and the cluster.

    Returns what was done, a line each.
    """
    from controller.cli import processes
    from controller.wiring import takedown

    client = Client(settings)
    if (health := client.health()) is None:
        return [_remove_without_controller(settings, service)]
    if service is None and health.get("lost_database") == "gone" and client.accepts_token():
        processes.stop_controller(settings)  # it can neither store nor decide a removal
        _remove_without_controller(settings, None)
        return ["controller and Ray stopped; its database is gone"]
    if client.accepts_token() and not _has_cluster(settings):
        # Without the cluster no drain or unload can be confirmed: the controller would wait indefinitely.
        if service is not None:
            client.service(service)  # raises UnknownService: nothing need be started for a mistyped name
            raise Unreachable(
                f"the Ray cluster is not running; start it: canaryctl up, then: canaryctl down {service}"
            )
        if not health.get("leading"):
            takedown.refuse_while_led(settings)
        processes.stop_controller(settings)
        return [_remove_without_controller(settings, None)]
    views = [client.service(service)] if service is not None else client.services()
    for view in views:  # all checks before the first removal: a refusal changes nothing
        if view.rollout is not None and not view.rollout.is_final:
            raise RolloutRunning(
                f"{view.service} has rollout {view.rollout.rollout} running; "
                f"end it first: canaryctl rollback {view.service} --wait"
            )
    names = [view.service for view in views]
    for name in names:
        client.down(name)
    done = [f"{name} is taken down" for name in names]
    if _wait_until_removed(client, names, ends_at_s):
        return done
    if service is not None and (others := _serves_besides(settings, names)):
        done.append(
            f"Ray goes on: it serves {', '.join(others)}, which the database does not know; restore it, "
            "then: canaryctl up; to end what serves: canaryctl down"
        )
        return done
    processes.stop(settings)
    done.append("controller and Ray stopped")
    return done


def _has_cluster(settings: Settings) -> bool:
    """Whether Ray runs; one whose record cannot be read is reached by nobody."""
    from controller.wiring import cluster

    try:
        return cluster.is_running(settings)
    except Unreachable:
        return False


def _serves_besides(settings: Settings, names: Sequence[str]) -> list[str]:
    """Services that users get by their route tables, other than these. A replaced database knows none."""
    from controller.wiring.now_served import read_tables

    tables = read_tables(settings, None) or ()
    return [one.service for one in tables if one.serves is not None and one.service not in names]


def _remove_without_controller(settings: Settings, service: str | None) -> str:
    """Stop the cluster and forget all services; what was done.

    Raises Unreachable for a single service, Conflict where another host's controller leads them.
    """
    from controller.wiring import cluster, takedown
    from controller.wiring.elsewhere import elsewhere

    if service is not None:
        _refuse_unknown(settings, service)
        raise Unreachable(
            f"no controller answers at {settings.api_url}; "
            f"start it: canaryctl up, then: canaryctl down {service}"
        )
    takedown.refuse_while_led(settings)
    had_cluster = cluster.stop(settings)
    had_services = takedown.forget_services(settings)
    if had_cluster or had_services:
        return "the controller or Ray had died; removed what was left"
    others = "".join(f"; {line}" for line in elsewhere(settings).lines())
    return f"nothing is running for the state folder {settings.home}{others}"


def _refuse_unknown(settings: Settings, service: str) -> None:
    """Raises UnknownService where the database knows that there is no such service, and Unreachable where the
    state folder has none at all."""
    from controller.wiring.elsewhere import no_service
    from controller.wiring.last_known import has_service, stored_names

    if not has_service(settings):
        raise Unreachable(f"no controller answers at {settings.api_url}; {no_service(settings)}")
    if (names := stored_names(settings)) and service not in names:
        raise UnknownService(f"service {service} does not exist; there are: {', '.join(names)}")


def _wait_until_removed(client: Client, names: Sequence[str], ends_at_s: float) -> list[str]:
    """Services that remain once `names` are removed. Raises TimedOut."""
    from controller.cli.render import CANNOT_DECIDE

    leaving = (
        f"the removal of {', '.join(names)} goes on; follow it: canaryctl list; wait for it: canaryctl down"
    )
    with told_on_interrupt(leaving), progress("waiting for engines and routers to stop"):
        for views in poll(client.services, give_up_s=CONNECTION_LOST_S, until_s=ends_at_s):
            if views is not None:
                remaining = [view.service for view in views]
                pending = [name for name in names if name in remaining]
                if not pending:
                    return remaining
                if time.monotonic() >= ends_at_s:
                    problem = next((one.problem for one in views if one.service in pending), None)
                    why = f": {CANNOT_DECIDE}: {problem}" if problem else ""
                    left = ", ".join(pending)
                    raise TimedOut(f"{left} is still being removed{why}; run canaryctl down again")
    raise AssertionError("poll never ends by itself")
