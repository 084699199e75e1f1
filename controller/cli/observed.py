"""`canaryctl observed FILE`: write the policy entry of an observed range from stable's recorded traffic."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
import yaml

from controller.cli.evidence_options import (
    CanaryOption,
    IgnoreOption,
    MapOption,
    StableOption,
    read_options,
)
from controller.cli.options import EvidenceArgument, WindowOption
from controller.cli.output import note
from evaluation.policy.observed_ranges import ALPHA_SHARE


def observed(
    file: EvidenceArgument,
    metric: Annotated[
        str, typer.Option(metavar="METRIC", help="Metric: latency_ms, ttft_ms, itl_ms, tokens or cost.")
    ] = "latency_ms",
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Start of the observed range: 2026-05-01, 2026-05-01T12:00Z, or seconds since 1970. "
            "[default: the file's start]",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="End of the observed range, as --since. [default: the file's end]"),
    ] = None,
    window: WindowOption = "1h",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the gate. [default: METRIC_range]")
    ] = None,
    on_outside: Annotated[
        str, typer.Option(metavar="hold|rollback", help="Action when the canary is outside.")
    ] = "hold",
    alpha_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the policy's alpha, above 0, at most 1.")
    ] = ALPHA_SHARE,
    maps: MapOption = None,
    canary: CanaryOption = None,
    stable: StableOption = None,
    ignore: IgnoreOption = None,
    output: Annotated[
        Literal["yaml", "json"], typer.Option("-o", "--output", help="Output format.")
    ] = "yaml",
) -> None:
    """Write the policy entry of an observed range.

    The entry keeps a canary within the range that stable showed between two dates. Reads the same files as
    backtest; without a column arm, every row is stable's.
    """
    from controller.cli.evidence_files import read_evidence
    from controller.cli.observed_range import alpha_comment, range_gate, rounded_entry

    options = read_options(maps=maps, ignore=ignore, canary=canary, stable=stable, only_stable=True)
    evidence = read_evidence(file, options=options)
    for line in evidence.notes:
        note(line)
    gate = range_gate(
        evidence,
        metric,
        since=since,
        until=until,
        window=window,
        name=name or f"{metric}_range",
        on_outside=on_outside,
        alpha_share=alpha_share,
    )
    entry = {"observed_ranges": {gate.name: rounded_entry(gate)}}
    if output == "json":
        print(json.dumps(entry, indent=2))
        return
    print(alpha_comment(gate), end="")
    print(yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=110), end="")
