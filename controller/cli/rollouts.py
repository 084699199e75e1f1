"""Commands on rollouts: plan, deploy, watch, rollback, undo."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from controller.cli import options
from controller.cli.client import Client, can_act
from controller.cli.output import (
    Output,
    OutputOption,
    console,
    emit,
    emit_data,
    note,
    print_error,
    print_line,
    told_on_interrupt,
)
from controller.errors import (
    BadInput,
    CanaryctlError,
    Conflict,
    LostDatabase,
    OlderDatabase,
    RolledBack,
    UnknownService,
    Unreachable,
)
from controller.settings import Settings, load_settings
from controller.views.models import CommandResult


def plan(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    model: options.ModelOption = None,
    url: options.UrlOption = None,
    engine: options.EngineOption = None,
    policy: options.PolicyOption = None,
    twin: options.TwinOption = False,
    rate: Annotated[
        float | None,
        typer.Option(metavar="REQUESTS_PER_S", help="Assumed request rate. [default: the last minute's]"),
    ] = None,
    unit_requests: Annotated[
        float | None,
        typer.Option(metavar="N", help="Mean requests per sticky unit in a session. [default: measured]"),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Total distinct users, who return. [default: new users keep arriving]"
        ),
    ] = None,
    allow_unjudged: options.UnjudgedOption = None,
    name: options.NameOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Skip the simulation of the duration.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Preview a deploy: risk, stages, duration, memory.

    Changes nothing. Exit 0 when `deploy` would begin it; otherwise as `deploy` would: 2 when a stage cannot
    prove anything at this traffic or a gate is not judged, 3 when a rollout runs, or the version was rejected
    or does not fit.
    The simulation takes seconds, on a busy host up to two minutes; --quick leaves it out.
    """
    from controller.cli.plan_show import show_plan
    from controller.cli.request_bodies import change_body

    body = change_body(
        model=model, url=url, engine=engine, policy=policy, twin=twin, service=service or service_
    )
    traffic = {"rate": rate, "unit_requests": unit_requests, "users": users, "quick": quick or None}
    body |= {key: value for key, value in traffic.items() if value is not None}
    body |= options.label(name, None, None)
    if allow_unjudged is not None:
        body["allow_unjudged"] = allow_unjudged
    client = Client(load_settings())
    show_plan(client.plan(client.resolve_service(service or service_), body), output)


def deploy(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    model: options.ModelOption = None,
    url: options.UrlOption = None,
    engine: options.EngineOption = None,
    policy: options.PolicyOption = None,
    twin: options.TwinOption = False,
    wait: options.WaitOption = False,
    timeout: options.TimeoutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Same as plan.")] = False,
    retry: options.RetryOption = False,
    allow_unproven: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Run stages that cannot prove anything at this traffic; the reason is logged. "
            "[default: they are refused]",
        ),
    ] = None,
    allow_unjudged: options.UnjudgedOption = None,
    name: options.NameOption = None,
    message: options.MessageOption = None,
    actor: options.ActorOption = None,
    reason: options.ReasonOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Roll out a new version beside stable.

    It is promoted stage by stage, or rolled back automatically. With --wait: exit 0 promoted (a twin run:
    proven), 5 rolled back, 6 not proven or timed out.
    """
    from controller.cli import live, render, services
    from controller.cli.request_bodies import change_body

    if dry_run and wait:
        raise BadInput("--dry-run starts nothing to wait for; leave out --wait, or --dry-run")
    if timeout is not None and not wait:
        raise BadInput("--timeout limits how long --wait waits; give --wait, or leave it out")
    body = change_body(
        model=model, url=url, engine=engine, policy=policy, twin=twin, service=service or service_
    )
    body |= options.label(name, message, actor)
    if allow_unjudged is not None:
        body["allow_unjudged"] = allow_unjudged
    client = Client(load_settings())
    serves = client.resolve_service(service or service_)
    if allow_unproven is not None:
        body["allow_unproven"] = allow_unproven
    if dry_run:
        from controller.cli.plan_show import show_plan

        show_plan(client.plan(serves, {**body, "retry": retry}), output)
        return
    with told_on_interrupt(
        f"the controller may still start the rollout: canaryctl status {serves}; end it: canaryctl rollback "
        f"{serves}"
    ):
        view = client.deploy(serves, {**body, "retry": retry, "reason": reason})
    for warning in view.warnings if output.is_text else ():
        note(f"warning: {warning}")
    if wait:
        view = live.watch(client, serves, view.rollout, timeout_s=timeout, is_silent=not output.is_text)
    elif output.is_text:
        print_line(f"{view.rollout} started: {render.arms(view)}, {view.risk} risk")
        note(f"follow it: canaryctl watch {serves}; end it: canaryctl rollback {serves}")
        with suppress(CanaryctlError):  # a remark: the rollout has begun
            services.warn_of_keys(client.service(serves))
    if not output.is_text:
        emit_data(view, output)
    if wait:
        live.raise_for_outcome(view)


def watch(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    timeout: options.TimeoutOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch the running rollout until it ends.

    The exit code reports the outcome, as with `deploy --wait`, also of a rollout that has ended already. -o
    json prints the service once, at the end.
    """
    from controller.cli import live, render, render_decision, services

    settings, given = load_settings(), service or service_
    client = Client(settings)
    try:
        name = client.resolve_service(given)
        view = client.service(name)
    except LostDatabase:
        raise
    except Unreachable:
        services.note_last_known(settings, given, output)
        raise
    if view.rollout is None or view.rollout.is_final:
        emit(
            view,
            output,
            lambda is_wide: render.service_detail(view, is_wide=is_wide, columns=console().width),
            decision=render_decision.service_decision(view),
        )
        if output.is_text:
            note(f"{name} has no running rollout")
        if view.rollout is not None:
            live.raise_for_outcome(view.rollout)
        return
    is_silent = not output.is_text
    ended = live.watch(client, name, view.rollout.rollout, timeout_s=timeout, is_silent=is_silent)
    if is_silent:
        view = view.model_copy(update={"rollout": ended})
        with suppress(CanaryctlError):  # the outcome is known, and is what the exit code reports
            view = client.service(name)
        emit_data(view, output)
    live.raise_for_outcome(ended)


def rollback(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    wait: options.WaitOption = False,
    timeout: options.TimeoutOption = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Bypass a dead controller: write to the route table directly.")
    ] = False,
    reason: options.ReasonOption = "",
    actor: options.ReturnActorOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Return to the version before, immediately.

    Ends a running rollout, in any phase; after a promotion it does what undo does. Exit 0 also when that is
    what serves already. With --wait: exit 0 when it is done, 5 when an undo was rolled back, 1 on failure.
    """
    settings, name = load_settings(needs_files=not direct), service or service_
    _note_without_effect(wait=wait and not direct, timeout=timeout)
    if direct:
        if wait:
            note("--wait has no effect with --direct, which returns once the routers know")
        _roll_back_directly(settings, name, reason=reason, actor=actor, output=output)
        return
    client = Client(settings)
    try:
        name = client.resolve_service(name)
        answer = client.rollback(name, reason=reason, actor=actor)
    except OlderDatabase:  # says so itself
        raise
    except Unreachable as exc:
        from controller.wiring.last_known import has_service

        if not has_service(settings):  # there is nothing to bypass
            raise
        direct_one = " ".join(filter(None, ("canaryctl rollback", name, "--direct")))
        raise Unreachable(f"{exc}, or bypass it: {direct_one}") from exc
    leaving = f"the rollback goes on; follow it: canaryctl watch {name}"
    _show_return(client, name, answer, leaving, wait=wait, timeout_s=timeout, output=output)


def undo(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION", help="Id or name of a version that has served. [default: the previous one]"
        ),
    ] = None,
    wait: options.WaitOption = False,
    timeout: options.TimeoutOption = None,
    reason: options.ReasonOption = "",
    actor: options.ReturnActorOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Serve an earlier version again, without proof.

    Its smoke test is the only gate, then it gets all traffic in one switch; its engine arguments come back
    with it. Recorded as not proven, with who and why. Exit 0 also when that version serves already. With
    --wait: exit 0 when it serves, 5 when it was rolled back, 1 on failure.
    """
    _note_without_effect(wait=wait, timeout=timeout)
    client = Client(load_settings())
    name = client.resolve_service(service or service_)
    try:
        answer = client.undo(name, to=to, reason=reason, actor=actor)
    except UnknownService as exc:
        if to is not None:
            raise
        raise UnknownService(f"{exc}; a version is named by --to: canaryctl undo --to {name}") from exc
    _show_return(client, name, answer, "", wait=wait, timeout_s=timeout, output=output)


def _note_without_effect(*, wait: bool, timeout: float | None) -> None:
    """Say so; a way back is not refused for it."""
    if timeout is not None and not wait:
        note("--timeout has no effect without --wait")


def _show_return(
    client: Client,
    service: str,
    answer: CommandResult,
    on_interrupt: str,
    *,
    wait: bool,
    timeout_s: float | None,
    output: Output,
) -> None:
    """Print the answer to a rollback or an undo, and follow it to its end if `wait`.

    Raises the error whose exit code reports what went wrong.
    """
    if output.is_text:
        note(answer.text)
    else:
        emit_data(answer, output)
    rollout = answer.rollout
    if not wait or rollout is None:
        return
    from controller.cli import live, render_end

    ended = live.watch(
        client,
        service,
        rollout,
        timeout_s=timeout_s,
        is_silent=not output.is_text,
        on_interrupt=on_interrupt,
    )
    if ended.steps is not None and output.is_text:
        console().print(render_end.steps_line(ended.steps))
    if ended.undo and ended.serving == answer.serves and ended.exit_code == RolledBack.exit_code:
        return  # the undo was to be ended: what was asked for serves
    if ended.undo:
        live.raise_for_outcome(ended)
    elif ended.phase == "succeeded":
        raise Conflict(
            f"{rollout} was finished before it could be rolled back and {ended.serving} serves; "
            f"take it back: canaryctl undo {service}"
        )
    elif ended.exit_code == CanaryctlError.exit_code:
        raise CanaryctlError(f"{ended.rollout}: {ended.reason}")


def _roll_back_directly(
    settings: Settings, service: str | None, *, reason: str, actor: str | None, output: Output
) -> None:
    """Write a tombstone to the route table and the command to the store, and print which succeeded.

    Raises Unreachable unless the service serves what it should, even if the store took the command.
    """
    from controller.wiring import direct_rollback

    why, by = reason or "direct rollback", actor or ""
    result = direct_rollback.roll_back_directly(settings, service, reason=why, actor=by, is_led=can_act)
    lines = (*result.succeeded, *result.failed, *filter(None, [result.next_step]))
    if output.is_text:
        for line in lines:
            note(line)
    elif result.problem is None:
        emit_data(CommandResult(outcome="done", text="; ".join(lines)), output)
    if result.problem is not None:
        error = Unreachable(result.problem)
        print_error(error, output, known=lines)
        raise typer.Exit(error.exit_code)
