"""Every command of `canaryctl`, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from controller.cli import ab, backtest, live, observed, render
from controller.cli.client import Client
from controller.cli.options import (
    EngineOption,
    ModelOption,
    PolicyOption,
    ReasonOption,
    ServiceArgument,
    ServiceOption,
    TimeoutOption,
    TwinOption,
    UrlOption,
    WaitOption,
    YesOption,
)
from controller.cli.output import Output, OutputOption, complain, console, emit, say
from controller.errors import BadInput, CanaryctlError, Unreachable
from controller.installed import own_version
from controller.settings import load_settings
from controller.views.models import ServiceView

INTERRUPTED = 130
# Typer brings its own click, or uses the installed one; either way this is its base of wrong arguments.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__bases__[0])
NO_WAIT_S = 0.0

app = typer.Typer(
    name="canaryctl",
    help="Take a new LLM version to production beside the one that serves, with proof; take it back at once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `canaryctl ARGUMENTS`. Errors are printed here, each as one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = app(args=given or ["--help"], standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except UsageError as exc:
        complain(BadInput(f"{exc.format_message()} (canaryctl {' '.join(given[:1])} --help shows the usage)"))
        return BadInput.exit_code
    except CanaryctlError as exc:
        complain(exc)
        return exc.exit_code
    except OSError as exc:
        if exc.filename is None:
            raise
        complain(
            BadInput(
                f"{exc.filename}: {exc.strerror}; give a place that can be used (CANARYCTL_HOME moves ours)"
            )
        )
        return BadInput.exit_code
    return result if isinstance(result, int) else 0


@app.command()
def up(
    service: Annotated[str | None, typer.Option(help="Name of the endpoint.", show_default=False)] = None,
    model: ModelOption = None,
    url: UrlOption = None,
    file: Annotated[
        Path | None, typer.Option(help="Service file (YAML) instead of options.", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the endpoint. [default: 8000]", show_default=False),
    ] = None,
    api_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the controller. [default: 7878]", show_default=False),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Engines. [default: 1]", show_default=False)
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs an engine; may be a fraction.", show_default=False)
    ] = None,
    engine: EngineOption = None,
    policy: PolicyOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the model answers.")] = False,
    timeout: TimeoutOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Serve a model: start what is not running, and print the base URL for OpenAI clients.

    Run again, it restarts what died and changes nothing else; what was asked differently is refused, with
    the command that changes it. Without --model or --url: what was there.
    """
    from controller.cli.actions import bring_up, service_body

    settings = load_settings()
    body = service_body(
        settings,
        service=service,
        model=model,
        url=url,
        file=file,
        policy=policy,
        replicas=replicas,
        gpus=gpus,
        engine=engine,
    )
    if port is None and body is not None:
        port = body.get("port")
    views = bring_up(settings, body, port=port, api_port=api_port, wait_s=NO_WAIT_S if no_wait else timeout)
    one: ServiceView | list[ServiceView] = views[0] if body is not None else views
    if output in (Output.TABLE, Output.WIDE):
        for view in views:
            console().print(
                f"[bold]{view.service}[/] serves {view.stable} at [bold]{view.url}[/]", soft_wrap=True
            )
    else:
        emit(one, output, lambda _: "")


@app.command()
def down(
    service: ServiceArgument = None,
    service_: ServiceOption = None,
    yes: YesOption = False,
    timeout: TimeoutOption = None,
) -> None:
    """Take one service away, or all; with the last one also the controller and the Ray cluster."""
    from controller.cli.actions import take_down

    settings = load_settings()
    name = service or service_
    if not yes:
        if not sys.stdin.isatty():
            raise BadInput("down ends what users are served by; confirm it with --yes")
        typer.confirm(f"Take {name or 'everything'} down?", abort=True)
    take_down(settings, name, timeout_s=timeout)


@app.command()
def plan(
    service: ServiceArgument = None,
    service_: ServiceOption = None,
    model: ModelOption = None,
    url: UrlOption = None,
    engine: EngineOption = None,
    policy: PolicyOption = None,
    twin: TwinOption = False,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="REQUESTS_PER_S", help="Traffic. [default: the last minute's]", show_default=False
        ),
    ] = None,
    unit_requests: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Mean requests of a sticky unit within a session. [default: measured]",
            show_default=False,
        ),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Distinct users in all, who then return. [default: new ones keep coming]",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not simulate how long it takes.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what a deploy would do: the risk, the stages, how long they take, whether it fits.

    Changes nothing. Exit 2 when a stage can prove nothing at this traffic. Simulating takes seconds.
    """
    from controller.cli.actions import change_body

    body = change_body(model=model, url=url, engine=engine, policy=policy, twin=twin)
    traffic = {"rate": rate, "unit_requests": unit_requests, "users": users, "quick": quick or None}
    body |= {key: value for key, value in traffic.items() if value is not None}
    client = Client(load_settings())
    view = client.plan(client.the_service(service or service_), body)
    emit(view, output, lambda wide: render.plan_detail(view, wide=wide))


@app.command()
def deploy(
    service: ServiceArgument = None,
    service_: ServiceOption = None,
    model: ModelOption = None,
    url: UrlOption = None,
    engine: EngineOption = None,
    policy: PolicyOption = None,
    twin: TwinOption = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as plan.")] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Also a version that was rolled back before.")
    ] = False,
    allow_unproven: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Run stages that can prove nothing at this traffic; the log keeps why.",
            show_default=False,
        ),
    ] = None,
    reason: ReasonOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Roll a new version out beside the one that serves: through all stages, or back, by itself.

    With --wait: exit 0 promoted (a twin: proven), 5 rolled back, 6 not proven or timed out.
    """
    from controller.cli.actions import change_body

    body = change_body(model=model, url=url, engine=engine, policy=policy, twin=twin)
    client = Client(load_settings())
    name = client.the_service(service or service_)
    if dry_run:
        planned = client.plan(name, body)
        emit(planned, output, lambda wide: render.plan_detail(planned, wide=wide))
        return
    if allow_unproven is not None:
        body["allow_unproven"] = allow_unproven
    view = client.deploy(name, {**body, "retry": retry, "reason": reason})
    is_text = output in (Output.TABLE, Output.WIDE)
    if wait:
        if is_text:
            view = live.watch(client, name, view.rollout, timeout_s=timeout)
        else:
            view = live.wait(client, name, view.rollout, timeout_s=timeout)
            emit(view, output, lambda _: "")
        live.raise_for(view)
    elif is_text:
        console().print(
            f"{view.rollout} begins: {view.stable} -> {view.canary}, {view.risk} risk", soft_wrap=True
        )
        say(f"canaryctl watch {name} shows it, canaryctl rollback {name} ends it")
    else:
        emit(view, output, lambda _: "")


@app.command()
def status(
    service: ServiceArgument = None, service_: ServiceOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show a service: its versions, its rollout, the evidence."""
    client = Client(load_settings())
    view = client.service(client.the_service(service or service_))
    emit(view, output, lambda wide: render.service_detail(view, wide=wide))


@app.command(name="list")
def list_services(output: OutputOption = Output.TABLE) -> None:
    """Show all services, one line each."""
    views = Client(load_settings()).services()
    emit(views, output, lambda wide: render.services_table(views, wide=wide))


@app.command()
def watch(
    service: ServiceArgument = None, service_: ServiceOption = None, timeout: TimeoutOption = None
) -> None:
    """Watch the running rollout live until it is over; the exit code says how it ended."""
    client = Client(load_settings())
    name = client.the_service(service or service_)
    view = client.service(name)
    if view.rollout is None or view.rollout.is_final:
        console().print(render.service_detail(view, wide=False))
        say(f"no rollout of {name} runs now")
        return
    live.raise_for(live.watch(client, name, view.rollout.rollout, timeout_s=timeout))


@app.command()
def rollback(
    service: ServiceArgument = None,
    service_: ServiceOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="Past a controller that is dead: through the route table itself.")
    ] = False,
    reason: ReasonOption = "",
) -> None:
    """Give all traffic back to stable, at once, whatever runs. Exit 0 also when stable has it already."""
    settings = load_settings()
    if direct:
        from controller.cli.actions import roll_back_directly

        roll_back_directly(settings, service or service_, reason=reason)
        return
    client = Client(settings)
    try:
        name = client.the_service(service or service_)
        outcome, text = client.rollback(name, reason=reason)
    except Unreachable as exc:
        named = service or service_ or "SERVICE"
        raise Unreachable(f"{exc}, or go past it: canaryctl rollback {named} --direct") from exc
    say(text)
    view = client.service(name).rollout
    if outcome == "asked" and wait and view is not None:
        ended = live.watch(client, name, view.rollout, timeout_s=timeout)
        if ended.steps is not None:
            console().print(render.steps_line(ended.steps))
        if ended.exit_code == CanaryctlError.exit_code:
            raise CanaryctlError(f"{ended.rollout}: {ended.reason}")


@app.command()
def history(
    service: ServiceArgument = None,
    service_: ServiceOption = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Newest rollouts.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show past rollouts of a service, newest first."""
    client = Client(load_settings())
    views = client.history(client.the_service(service or service_), limit=limit)
    emit(views, output, lambda wide: render.history_table(views, wide=wide))


@app.command()
def validate(
    model: ModelOption = None,
    policy: PolicyOption = None,
    file: Annotated[Path | None, typer.Option(help="Service file (YAML).", show_default=False)] = None,
) -> None:
    """Check a checkpoint directory, a policy or a service file, without a controller."""
    from controller.cli.actions import check_files

    for line in check_files(model=model, policy=policy, file=file):
        console().print(line, soft_wrap=True)


@app.command()
def controller() -> None:
    """Run the controller in the foreground, as `up` runs it in the background."""
    from controller.wiring.controller import run_controller

    run_controller(load_settings())


@app.command()
def router(
    table: Annotated[
        Path, typer.Option(exists=False, help="Table file (YAML): service, stable, canary, weight_bp.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> int:
    """Split traffic over OpenAI-compatible endpoints by a file, without Ray and without a controller."""
    from controller.wiring.router import run_router

    return run_router(table, host=host, port=port)


@app.command()
def demo(
    policy: Annotated[Path, typer.Option(help="Policy of both rollouts.")] = Path(
        "examples/demo-policy.yaml"
    ),
    folder: Annotated[
        Path | None, typer.Option(help="State folder; short, emptied first.", show_default=False)
    ] = None,
) -> int:
    """Show it all on real parts: a good candidate is promoted, a bad one rolled back, no request fails."""
    from controller.cli import demo as show

    return show.run(policy=policy, folder=folder, console=console())


@app.command(name="version")
def show_version() -> None:
    """Print the version."""
    print(own_version())


ab.register(app)
backtest.register(app)
observed.register(app)
