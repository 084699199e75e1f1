"""Commands on services: up, down, status, list."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controller.cli import options, render, render_decision
from controller.cli.client import CONNECTION_LOST_S, Client, poll
from controller.cli.http import NoAnswer, send
from controller.cli.output import (
    Output,
    OutputOption,
    console,
    emit,
    emit_data,
    note,
    print_error,
    print_line,
    progress,
    told_on_interrupt,
)
from controller.errors import (
    BadInput,
    CanaryctlError,
    Conflict,
    LostDatabase,
    TimedOut,
    UnknownService,
    Unreachable,
)
from controller.settings import Settings, load_settings
from controller.views.models import ServiceView

if TYPE_CHECKING:
    from controller.cli import processes

UP_TIMEOUT_S = 900.0
PROBLEM_S = 30.0  # for which `up` waits on while the controller can decide nothing


def up(
    service: Annotated[
        str | None, typer.Option(metavar="NAME", help="Service name. [default: the file's]")
    ] = None,
    model: options.ModelOption = None,
    url: options.UrlOption = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Service file (YAML) instead of options. [default: none]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Port of the endpoint. [default: 8000]"),
    ] = None,
    api_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Port of the controller. [default: 7878]"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of replicas. [default: 1]")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(metavar="N", help="GPUs per replica; may be a fraction. [default: all it needs]"),
    ] = None,
    engine: options.EngineOption = None,
    policy: options.PolicyOption = None,
    name: options.NameOption = None,
    message: options.MessageOption = None,
    actor: options.ActorOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the model answers.")] = False,
    timeout: options.TimeoutOption = None,
    accept_database: Annotated[
        bool,
        typer.Option(
            "--accept-database", help="Go back to what an older copy of the database says is in production."
        ),
    ] = False,
    beside: Annotated[
        bool,
        typer.Option(
            "--beside", help="Start although canaryctl runs on this host for another state folder already."
        ),
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Serve a model and print the base URL for OpenAI clients.

    Idempotent: running it again restarts what has died and changes nothing else. An option that differs from
    the running service is refused, with the command that changes it. Without --model or --url, it restarts
    the existing services.
    """
    from controller.cli.request_bodies import service_body

    if no_wait and timeout is not None:
        raise BadInput("--timeout limits a wait that --no-wait leaves out; give one of them")
    settings = load_settings()
    given = {
        "service": service,
        "model": model,
        "url": url,
        "replicas": replicas,
        "gpus": gpus,
        "engine": engine or None,
        "policy": policy,
    }
    body = service_body(settings, file, {key: value for key, value in given.items() if value is not None})
    if body is None and (lost := next(iter(options.label(name, message, None)), None)) is not None:
        raise BadInput(f"--{lost} needs a service; give --service NAME and --model DIR or --url URL")
    if port is None and body is not None:
        port = body.get("port")
    if body is not None:
        body |= options.label(name, message, actor)
    wait_s = 0.0 if no_wait else UP_TIMEOUT_S if timeout is None else timeout
    with told_on_interrupt("what was started goes on; follow it: canaryctl status; end it: canaryctl down"):
        views = _bring_up(
            settings,
            body,
            port=port,
            api_port=api_port,
            wait_s=wait_s,
            accepts_database=accept_database,
            is_beside=beside,
        )
    if not output.is_text:
        emit_data(views if body is None else views[0], output)
        return
    for view in views:
        print_line(render.served_line(view))
        warn_of_keys(view)
        if view.problem is not None:
            note(f"warning: {render.CANNOT_DECIDE}: {view.problem}")


def warn_of_keys(view: ServiceView) -> None:
    """Print a line for each API key that cannot be read, so that nobody counts on a way back that is cut."""
    for missing in view.missing_keys:
        note(f"warning: {missing.text}")


def status(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a service: its versions, its rollout and the evidence.

    Without a controller: what the database knows of it (`known` of the problem document), and exit 4; also
    exit 4 where the controller can decide nothing.
    """
    settings = load_settings()
    client, name = Client(settings), service or service_
    try:
        view = client.service(client.resolve_service(name))
    except LostDatabase as exc:  # of a controller that runs
        served = _served_lines(settings, name)
        print_error(exc, output, known=served)
        _note(served, output)
        raise typer.Exit(exc.exit_code) from exc
    except Unreachable as exc:
        known = _last_known_lines(settings, name)
        _note(known, output)
        print_error(exc, output, known=known)
        raise typer.Exit(exc.exit_code) from exc
    from controller.cli.live_frame import fitted

    emit(
        view,
        output,
        lambda is_wide: fitted(view, console=console(), is_wide=is_wide),
        decision=render_decision.service_decision(view),
    )
    if view.problem is not None:  # what goes by the exit code alone would take it for health
        raise typer.Exit(Unreachable.exit_code)


def note_last_known(settings: Settings, service: str | None, output: Output) -> None:
    """Print on stderr what the database knows of one service (None: of all); without it, what users get."""
    if output.is_text:
        _note(_last_known_lines(settings, service), output)


def _last_known_lines(settings: Settings, service: str | None) -> tuple[str, ...]:
    from controller.wiring.last_known import last_known, lost_database

    lines = last_known(settings, service)
    is_lost = lost_database(settings) is not None
    return (*lines, *_served_lines(settings, service)) if is_lost else lines


def _served_lines(settings: Settings, service: str | None) -> tuple[str, ...]:
    """What users get by the route tables, for which no database is needed."""
    from controller.wiring.now_served import served_lines

    return served_lines(settings, service)


def _note(lines: Sequence[str], output: Output) -> None:
    """Print the lines for people; programs have them in the problem document."""
    for line in lines if output.is_text else ():
        note(line)


def list_services(output: OutputOption = Output.TABLE) -> None:
    """List all services."""
    from controller.wiring.elsewhere import no_service

    settings = load_settings()
    views = Client(settings).services()
    empty = "" if views else no_service(settings)
    emit(views, output, lambda is_wide: render.services_table(views, is_wide=is_wide, empty=empty))


def _bring_up(
    settings: Settings,
    body: Mapping[str, Any] | None,
    *,
    port: int | None,
    api_port: int | None,
    wait_s: float,
    accepts_database: bool,
    is_beside: bool,
) -> list[ServiceView]:
    """Start what is not running, create the service (None: use the existing ones), wait until it answers."""
    from controller.cli import processes
    from controller.wiring.elsewhere import no_service
    from controller.wiring.last_known import has_service, lost_database

    with processes.exclusive_access(settings):
        if processes.stop_without_log(settings):
            note("the controller was stopped: the log of its database was removed")
        running = processes.running(settings)
        is_new = running.is_replaced or not running.has_controller
        is_needed = running.has_cluster and (is_new or accepts_database)
        if is_needed and (lost := lost_database(settings, needs_service=False)) is not None:
            raise Unreachable(  # nor would a controller that is started now create one
                f"Ray runs and may serve, but {lost}; restore it, then: canaryctl up; to end what serves: "
                "canaryctl down"
            )
        if is_needed:
            _refuse_older_copy(settings, is_accepted=accepts_database)
        if running.is_replaced:
            processes.restart_controller(settings)
            note("the controller was restarted: its database was replaced")
        if body is None and not running.has_cluster and not has_service(settings):
            raise UnknownService(no_service(settings))
        if not (is_beside or running.has_cluster or running.has_controller or has_service(settings)):
            _refuse_beside(settings)
        with progress(_starting(running)):
            settings = processes.start(settings, ingress_port=port, api_port=api_port)
        client = Client(settings)
        _give_keys(settings, client)
        try:
            if body is not None:
                names = [client.up(body).service]
            elif not (names := [view.service for view in client.services()]):
                if running.has_cluster:
                    raise Unreachable(
                        "Ray runs and serves, but the database has no service: it was lost or replaced; "
                        "restore it (CANARYCTL_DATABASE_URL, or canaryctl.db in the state folder), then: "
                        "canaryctl up; to end what serves: canaryctl down"
                    )
                raise UnknownService(no_service(settings))
        except CanaryctlError:
            # A refused `up` leaves nothing behind that it started: without a service nothing needs it. What
            # ran before may serve, whatever this database says.
            if not client.services():
                processes.stop_started(settings, running)
            raise
        if wait_s != 0:
            for name in names:
                _wait_until_served(client, name, wait_s)
        return [client.service(name) for name in names]


def _refuse_beside(settings: Settings) -> None:
    """Raises Conflict where canaryctl runs for another folder, and this one has nothing: more often a shell
    that names the wrong one than the wish for a second cluster."""
    from controller.wiring.elsewhere import VARIABLE, elsewhere

    found = elsewhere(settings)
    if found.serves:
        raise Conflict(
            f"the state folder {settings.home} ({VARIABLE}) has no service, and {'; '.join(found.lines())}; "
            "to start a second Ray and controller beside it: canaryctl up --beside"
        )


def _starting(running: processes.Running) -> str:
    """What has to be started; empty: nothing."""
    missing = ("Ray", not running.has_cluster), ("the controller", not running.has_controller)
    names = [name for name, is_missing in missing if is_missing]
    return f"starting {' and '.join(names)}" if names else ""


def _refuse_older_copy(settings: Settings, *, is_accepted: bool) -> None:
    """Raises Conflict where the database does not lead to what users get now, unless that is accepted, and
    Unreachable where that cannot be read."""
    from controller.wiring.older_copy import accept, older_copies

    copies = older_copies(settings)
    if copies and not is_accepted:
        raise Conflict(
            f"{'; '.join(copy.line for copy in copies)}: it is an older copy; restore a newer one, or go "
            "back to what it says: canaryctl up --accept-database"
        )
    for copy in copies:
        note(f"{copy.line}; {copy.then}")
    accept(settings, copies)


def _give_keys(settings: Settings, client: Client) -> None:
    """Restart the controller if an API key that it lacks is set for this command."""
    from controller.cli import processes

    lacking = {missing.variable for view in client.services() for missing in view.missing_keys}
    given = sorted(name for name in lacking if name is not None and os.environ.get(name, "").strip())
    if given:
        processes.restart_controller(settings)
        note(f"the controller was restarted with {', '.join(given)}")


def _wait_until_served(client: Client, service: str, timeout_s: float) -> None:
    """Return once stable answers at the service's URL, and no other version in its place. Raises TimedOut,
    the engine's own error, and Unreachable where the controller can decide nothing for `PROBLEM_S`."""
    started_s, last_error = time.monotonic(), ""
    acting_s = started_s  # when the controller was last seen without a problem
    leaving = (
        f"{service} goes on loading; follow it: canaryctl status {service}; end it: canaryctl down {service}"
    )
    with told_on_interrupt(leaving), progress(f"loading {service}") as shown:
        ends_at_s = started_s + timeout_s
        for view in poll(lambda: client.service(service), give_up_s=CONNECTION_LOST_S, until_s=ends_at_s):
            elapsed_s = time.monotonic() - started_s
            if view is not None:
                stable = next((found for found in view.versions or () if found.version == view.stable), None)
                if stable is not None and stable.phase == "failed":
                    raise CanaryctlError(
                        f"{service}: {view.stable} failed to load: "
                        f"{stable.last_error or 'no error reported'}; "
                        f"remove it: canaryctl down {service}"
                    )
                is_ready = stable is not None and stable.phase == "ready"
                if is_ready and _is_routed_to_stable(view) and _answers(view.url):
                    return
                if view.problem is None:
                    acting_s = time.monotonic()
                elif time.monotonic() - acting_s >= PROBLEM_S:
                    what = "served as the database says" if is_ready else "loaded"
                    raise Unreachable(f"{service} is not {what}: {render.CANNOT_DECIDE}: {view.problem}")
                shown(f"{service}: {stable.phase if stable else 'waiting'} for {elapsed_s:.0f} s")
                last_error = f" ({stable.last_error})" if stable is not None and stable.last_error else ""
                if is_ready and view.routed is not None:
                    last_error = f"; {view.routed} answers in place of {view.stable}"
                if view.problem is not None:
                    last_error = f"; {render.CANNOT_DECIDE}: {view.problem}"
            if time.monotonic() >= ends_at_s:
                raise TimedOut(
                    f"{service} does not answer after {timeout_s:g} s and is still loading{last_error}; "
                    f"check it: canaryctl status {service}"
                )


def _is_routed_to_stable(view: ServiceView) -> bool:
    """Whether users get the stored version, but for what a running rollout takes. A table that cannot be read
    for a moment is no reason to wait: the service's URL is asked, too."""
    runs = view.rollout is not None and not view.rollout.is_final
    return view.problem is None and view.routed is None and (runs or not view.weight_bp)


def _answers(url: str) -> bool:
    try:
        answer = send("GET", f"{url}/models", timeout_s=5.0)
    except NoAnswer:
        return False
    # Some endpoints list no models and say so in JSON, or know no GET (501); Serve's own 404 is plain text.
    return answer.status in (200, 501) or (400 <= answer.status < 500 and answer.content.lstrip()[:1] == b"{")
