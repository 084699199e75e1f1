"""Options that say what the columns of a file hold, shared by `backtest`, `observed` and `ab judge`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.errors import BadInput

if TYPE_CHECKING:
    from controller.cli.evidence_columns import ReadOptions
    from controller.spec.prices import PricesSpec

MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=COLUMN",
        help="Read column NAME from COLUMN (latency_ms=duration, latency_ms=duration:s, error=status, "
        "latency_ms=end-start); repeatable.",
    ),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="COLUMN", help="A column, or a name of ours, that is not to be read; repeatable."
    ),
]
WOption = Annotated[
    str | None,
    typer.Option(
        "--w",
        metavar="SHARE",
        help="P(canary) at the draw of every row, as 5% or 0.05. [default: the column w]",
    ),
]
CanaryOption = Annotated[
    str | None,
    typer.Option(
        "--canary",
        metavar="VALUE",
        help="Value of the arm's column that is the canary (A,B: either). [default: 1]",
    ),
]
StableOption = Annotated[
    str | None,
    typer.Option(
        "--stable",
        metavar="VALUE",
        help="Value that is stable; other rows are left out. [default: any other]",
    ),
]
RolloutOption = Annotated[
    str | None,
    typer.Option(
        metavar="ID", help="Of a router's records: the rollout that is judged. [default: the newest]"
    ),
]

CanarySinceOption = Annotated[
    str | None,
    typer.Option(
        "--canary-since",
        metavar="TIME",
        help="When the canary got its first share (2026-05-01T12:00Z, or seconds as in the file); earlier "
        "rows have w 0. [default: it had its share in every row]",
    ),
]
ScoresOption = Annotated[
    Path | None,
    typer.Option(
        "--scores",
        metavar="FILE",
        help="Scores of the requests, in a file of their own: id, score, metric. [default: none]",
    ),
]

PricesOption = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        metavar="FILE",
        help="Prices of tokens (YAML, as `prices` of a service), for the cost of each answer in the "
        "records of canaryctl's router; another log needs a column: --map cost=COLUMN. "
        "[default: none]",
    ),
]


def read_options(
    *,
    maps: list[str] | None,
    ignore: list[str] | None,
    w: str | None = None,
    canary: str | None = None,
    stable: str | None = None,
    only_stable: bool = False,
    rollout: str | None = None,
    scores: Path | None = None,
    canary_since: str | None = None,
    prices: Path | None = None,
) -> ReadOptions:
    """The options as the reader takes them. Raises BadInput for a share or a time that is none."""
    from controller.cli.evidence_cells import number
    from controller.cli.evidence_columns import ReadOptions

    share = None if w is None else number(w)
    if w is not None and not (share is not None and 0.0 <= share <= 1.0):
        raise BadInput(f"--w {w!r} is not a share between 0 and 1; write 5% or 0.05")
    named = tuple(maps or ()), frozenset(ignore or ())
    since_s = None
    if canary_since is not None:
        from controller.cli.observed_range import parse_time

        since_s = parse_time("--canary-since", canary_since)
    spec = None if prices is None else read_prices(prices)
    options = ReadOptions(*named, share, canary, stable, only_stable, rollout, scores=scores, prices=spec)
    return replace(options, canary_since_s=since_s)


def read_prices(path: Path) -> PricesSpec:
    """The prices of a file, or of the service in it. Raises BadInput, BadSpec."""
    from controller.cli.request_bodies import read_yaml
    from controller.spec.prices import PricesSpec
    from controller.spec.service import parse_as

    data = read_yaml(path)
    given = data["prices"] if isinstance(data, dict) and "prices" in data else data
    return parse_as(PricesSpec, given, "prices")
