"""`canaryctl replay`: recorded requests sent to two endpoints, judged by the gates of a rollout."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from controller.cli.evidence_options import PricesOption
from controller.cli.output import note
from controller.errors import BadInput

if TYPE_CHECKING:
    from controller.wiring.replay import Side

TOLD_EVERY_S = 5.0


def replay(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Recorded requests: JSON lines, bodies or OpenAI's batch form."),
    ],
    against: Annotated[
        str,
        typer.Option(metavar="URL,URL", help="Base URLs of stable and of the canary, OpenAI-compatible."),
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="Their models' names. [default: as recorded]"),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="Variables with their API keys. [default: none]"),
    ] = None,
    policy: Annotated[
        str, typer.Option(metavar="FILE|PRESET", help="Policy file (YAML), or default, strict, vendor.")
    ] = "default",
    at_once: Annotated[int, typer.Option(metavar="N", help="Requests side by side, 1 to 256.")] = 4,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Requests a second at most. [default: as fast as they end]"),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the records, for backtest. [default: none are kept]"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep the answers, to be scored (mode 0600). [default: none are kept]"
        ),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Replace names, numbers and keys before anything is sent.")
    ] = False,
    allow_unjudged: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Promote although a preset's gate has nothing to judge by. [default: it blocks]",
        ),
    ] = None,
    prices: PricesOption = None,
    output: Annotated[
        Literal["table", "json"], typer.Option("-o", "--output", help="Output format.")
    ] = "table",
) -> int:
    """Send recorded requests to two endpoints, and judge the answers.

    Each is sent once, to stable or to the canary by a coin, through the router that live traffic
    goes through; the first one to both before, to see that they take the keys. The gates are
    those of a rollout, in one stage of 50% that must prove what the policy's
    stages must. Exit 0 when they promote, 5 when they roll
    back, 6 when undecided or invalid, 4 when an endpoint does not answer.
    """
    import asyncio
    import tempfile
    from dataclasses import replace

    from controller.cli.backtest import judged, print_judged
    from controller.cli.backtest_plan import replay_stage
    from controller.cli.evidence_files import read_evidence
    from controller.cli.evidence_options import read_options
    from controller.cli.request_bodies import read_policy
    from controller.cli.workload import read_workload
    from controller.spec.service import parse_policy
    from controller.wiring.replay import Pace, replay

    if not 1 <= at_once <= 256:
        raise BadInput(f"--at-once {at_once} is outside 1..256; 4 suits one engine")
    if rate is not None and not 0.001 <= rate <= 100_000:
        raise BadInput(f"--rate {rate:g} is outside 0.001..100000 requests a second")
    if allow_unjudged is not None and not allow_unjudged.strip():
        raise BadInput("--allow-unjudged needs a reason; write why it need not be known")
    stable, canary = _sides(against, model, api_key_env)
    spec = parse_policy(read_policy(policy))
    options = read_options(maps=None, ignore=None, prices=prices)
    requests = read_workload(file, is_redacted=redact)
    note(f"{len(requests)} requests, each to {stable.url} or {canary.url}, {at_once} at once")
    stage = replay_stage(spec)
    if stage is not None and (about := round(len(requests) * stage.weight)) < stage.min_canary:
        note(
            f"about {about} of them go to the canary, and the policy's min_canary is {stage.min_canary}: "
            f"they cannot promote it; give {round(stage.min_canary / stage.weight)} or more, or lower "
            "min_canary"
        )
    with tempfile.TemporaryDirectory(prefix="canaryctl-records-") as folder:
        kept = records or Path(folder) / "records.jsonl"
        pace = Pace(at_once, rate)
        told = _progress(len(requests))
        sent = replay(requests, stable, canary, pace=pace, records=kept, answers=answers, progress=told)
        asyncio.run(sent)
        evidence = read_evidence(kept, options=options)
        shown = judged(kept, evidence, spec, allow_unjudged, None)
        return print_judged(replace(shown, is_replay=True), output)


def _sides(against: str, model: str | None, api_key_env: str | None) -> tuple[Side, Side]:
    """Both endpoints. Raises BadInput, without what an address may hold of a key."""
    from controller.cli.api_key import api_key
    from controller.wiring.replay import Side
    from serving.targets import Endpoint

    urls = [one.strip() for one in against.split(",")]
    if len(urls) != 2 or not all(urls):
        raise BadInput(f"--against is not two URLs but {len(urls)}; give stable's and the canary's: URL,URL")
    for url in urls:
        try:
            Endpoint.parsed(url)
        except ValueError as exc:
            raise BadInput(f"--against: {exc}") from exc
    models, keys = _two("--model", model), _two("--api-key-env", api_key_env)
    for name in keys:
        api_key("--api-key-env", name)  # that it can be read
    stable, canary = (Side(*one) for one in zip(urls, models, keys, strict=True))
    if (stable.url, stable.model) == (canary.url, canary.model):
        raise BadInput(f"--against names {stable.url} twice; give two endpoints, or two models: --model A,B")
    return stable, canary


def _two(option: str, text: str | None) -> list[str | None]:
    """What an option says of stable and of the canary: one text for both, or one for each."""
    if text is None:
        return [None, None]
    parts = [one.strip() or None for one in text.split(",")]
    if len(parts) > 2 or not any(parts):
        raise BadInput(f"{option} {text!r} is not one name or two; give NAME, or NAME,NAME")
    return parts * 2 if len(parts) == 1 else parts


def _progress(total: int) -> Callable[[int], None]:
    """Tells every few seconds how many requests have ended."""
    told_s = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told_s
        if (now_s := time.monotonic()) - told_s >= TOLD_EVERY_S:
            told_s = now_s
            note(f"{done} of {total} requests")

    return tell
