"""Options and arguments shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.quantities import duration_s


def duration_option(text: str) -> float:
    """Seconds of an option, as `duration_s` reads them."""
    try:
        return duration_s(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


ServiceArgument = Annotated[
    str | None, typer.Argument(metavar="[SERVICE]", help="Default: the only service.")
]
ServiceOption = Annotated[
    str | None, typer.Option("--service", metavar="NAME", help="Same as SERVICE. [default: the only service]")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Checkpoint directory (config.json, safetensors, tokenizer). [default: none; give it or --url]",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="External OpenAI-compatible endpoint (https://HOST/v1) instead of a checkpoint. [default: none]",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PRESET",
        help="Policy file (YAML), or a preset: default, strict, vendor. "
        "[default: the service's, else default]",
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--engine", metavar="KEY=VALUE", help="Engine argument (max_model_len=4096); repeatable."),
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
    float | None,
    typer.Option(
        parser=duration_option,
        metavar="DURATION",
        help="Maximum time to wait: 30s, 10m, 1h30m, or seconds. [default: up 15m, down 3m, else no limit]",
    ),
]
ReasonOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Reason, recorded in the rollout's log. [default: none]")
]
NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the version. [default: the folder, or the URL]")
]
MessageOption = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--message",
        metavar="TEXT",
        help="Why it is deployed: a change, a commit, a ticket. [default: none]",
    ),
]
ActorOption = Annotated[
    str | None,
    typer.Option(
        metavar="WHO",
        envvar=["USER", "LOGNAME"],
        show_envvar=True,
        help="Who deploys it. [default: the user]",
    ),
]
ReturnActorOption = Annotated[
    str | None,
    typer.Option(
        "--actor",
        metavar="WHO",
        envvar=["USER", "LOGNAME"],
        show_envvar=True,
        help="Who asks for it, kept in the log. [default: the user]",
    ),
]
UnjudgedOption = Annotated[
    str | None,
    typer.Option(
        "--allow-unjudged",
        metavar="REASON",
        help="Run without the gates whose metric never came in stable's traffic; the reason is logged. "
        "[default: such gates block]",
    ),
]
EvidenceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Requests, in any order: .jsonl, .json, .csv (also .gz) or .parquet."
    ),
]
WindowOption = Annotated[
    str,
    typer.Option(
        metavar="DURATION", help="Length of the windows that make up the observed range: 30m, 1h, or seconds."
    ),
]


def label(name: str | None, message: str | None, actor: str | None) -> dict[str, str]:
    """The label's keys of a request body, those that are given."""
    given = {"name": name, "message": message, "actor": actor}
    return {key: text for key, text in given.items() if text}
