"""Options and arguments shared by several commands."""

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
    str | None, typer.Argument(metavar="[SERVICE]", help="Default: the only service.")
]
ServiceOption = Annotated[str | None, typer.Option("--service", help="Same as SERVICE.")]
ModelOption = Annotated[
    Path | None, typer.Option(help="Checkpoint directory (config.json, safetensors, tokenizer).")
]
UrlOption = Annotated[
    str | None, typer.Option(help="External OpenAI-compatible endpoint instead of a checkpoint.")
]
PolicyOption = Annotated[str | None, typer.Option(help="Policy file or preset (default, strict, vendor).")]
EngineOption = Annotated[
    list[str] | None, typer.Option("--engine", metavar="KEY=VALUE", help="Engine argument; repeatable.")
]
TwinOption = Annotated[
    bool,
    typer.Option(
        "--twin",
        help="Compare stable with itself: measures how long proofs take and which gates fire. "
        "Promotes nothing.",
    ),
]
RetryOption = Annotated[
    bool, typer.Option("--retry", help="Accept a version that evidence or a person has rejected before.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait until the rollout ends; the exit code reports the outcome.")
]
TimeoutOption = Annotated[
    float | None, typer.Option(parser=_duration, metavar="DURATION", help="Maximum time to wait (30s, 10m).")
]
ReasonOption = Annotated[str, typer.Option(help="Reason, recorded in the rollout's log.")]
NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the version. [default: the folder, or the URL]")
]
MessageOption = Annotated[
    str | None,
    typer.Option("-m", "--message", metavar="TEXT", help="Why it is deployed: a change, a commit, a ticket."),
]
ActorOption = Annotated[
    str | None,
    typer.Option(metavar="WHO", envvar=["USER", "LOGNAME"], show_envvar=True, help="Who deploys it."),
]
UnjudgedOption = Annotated[
    str | None,
    typer.Option(
        "--allow-unjudged",
        metavar="REASON",
        help="Run without the gates whose metric never came in stable's traffic; the reason is logged.",
    ),
]
EvidenceArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Requests in order of assignment: .jsonl, .csv or .parquet.")
]
WindowOption = Annotated[str, typer.Option(help="Length of the windows that make up the observed range.")]


def label(name: str | None, message: str | None, actor: str | None) -> dict[str, str]:
    """The label's keys of a request body, those that are given."""
    given = {"name": name, "message": message, "actor": actor}
    return {key: text for key, text in given.items() if text}
