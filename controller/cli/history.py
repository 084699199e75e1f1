"""The command history: the rollouts of a service, and one of them whole."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import options
from controller.cli.client import Client
from controller.cli.output import Output, OutputOption, console, emit, note
from controller.errors import LostDatabase, Unreachable
from controller.settings import Settings, load_settings

# Without a controller one rollout is looked for by its id among the newest of a service: as many as the API
# lists at most.
SEARCHED = 500


def history(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=500, help="Maximum number of rollouts.")] = 20,
    rollout: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Show this rollout alone: stages, proofs, evidence, whole log. [default: all]"
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the rollouts of a service, newest first.

    With what each stage of them proved. Without a controller: those that the database knows, and exit 4.
    """
    from controller.cli import render, render_decision

    settings = load_settings()
    client, name = Client(settings), service or service_
    try:
        service = client.resolve_service(name)
        if rollout is not None:
            view = client.rollout(service, rollout)
            emit(
                view,
                output,
                lambda is_wide: render.rollout_detail(view, is_wide=is_wide, columns=console().width),
                decision=render_decision.rollout_decision(view),
            )
            return
        views = client.history(service, limit=limit)
    except LostDatabase:
        raise
    except Unreachable:
        _note_stored(settings, name, limit=limit, rollout=rollout, output=output)
        raise
    newest = f"newest: {render_decision.rollout_decision(views[0])}" if views else ""
    emit(views, output, lambda is_wide: render.history_list(views, is_wide=is_wide), decision=newest)


def _note_stored(
    settings: Settings, service: str | None, *, limit: int, rollout: str | None, output: Output
) -> None:
    """Print on stderr what `history` would show, as last stored."""
    if not output.is_text:
        return
    from controller.cli import render
    from controller.wiring.last_known import known_history

    is_wide = output is Output.WIDE
    found = limit if rollout is None else SEARCHED
    views, lines = known_history(settings, service, limit=found, rollout=rollout)
    for line in lines:
        note(line)
    if views:
        note("as last stored:")
        shown = render.rollout_detail(views[0], is_wide=is_wide) if rollout is not None else None
        console(stderr=True).print(
            shown if shown is not None else render.history_list(views, is_wide=is_wide)
        )
