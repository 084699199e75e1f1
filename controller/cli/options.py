"""Options and arguments that several commands take, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.quantities import duration_s


def _duration(text: str) -> float:
    try:
        return duration_s(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


ServiceArgument = Annotated[
    str | None,
    typer.Argument(metavar="[SERVICE]", help="Default: the only one there is.", show_default=False),
]
ServiceOption = Annotated[
    str | None, typer.Option("--service", help="The same as SERVICE.", show_default=False)
]
ModelOption = Annotated[
    Path | None,
    typer.Option(help="Checkpoint directory (config.json, safetensors, tokenizer).", show_default=False),
]
UrlOption = Annotated[
    str | None,
    typer.Option(help="External OpenAI-compatible endpoint instead of a checkpoint.", show_default=False),
]
PolicyOption = Annotated[
    str | None, typer.Option(help="Policy file, or a preset's name.", show_default=False)
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="KEY=VALUE", help="Engine argument; may be repeated.", show_default=False
    ),
]
TwinOption = Annotated[
    bool,
    typer.Option(
        "--twin", help="Stable against itself: shows how long proofs take and what fires. Promotes nothing."
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Watch until it is over; the exit code says how.")]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        parser=_duration,
        metavar="DURATION",
        help="Give up waiting after this (30s, 10m).",
        show_default=False,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
ReasonOption = Annotated[str, typer.Option(help="Why; the log keeps it.")]
