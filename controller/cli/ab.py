"""`canaryctl ab`: create, status and stop a test on a service, judge a recorded one, size a future one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli import options
from controller.cli.client import Client
from controller.cli.evidence_options import (
    CanaryOption,
    IgnoreOption,
    MapOption,
    RolloutOption,
    ScoresOption,
    StableOption,
    WOption,
    read_options,
)
from controller.cli.output import Output, OutputOption, emit, emit_data, note
from controller.errors import BadInput, TimedOut
from controller.quantities import FULL_BP, weight_bp
from controller.settings import load_settings

if TYPE_CHECKING:
    from controller.ab.results import AbView

ab = typer.Typer(
    name="ab",
    help="A/B tests: is B better than A?",
    add_completion=False,
    rich_markup_mode=None,
)

AlphaOption = Annotated[
    float,
    typer.Option(metavar="P", help="Probability of naming a winner when there is none, between 0 and 0.5."),
]
MetricOption = Annotated[
    str, typer.Option(metavar="METRIC", help="Metric to compare: quality, latency_ms, error, ...")
]


@ab.command()
def create(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    model: options.ModelOption = None,
    url: options.UrlOption = None,
    engine: options.EngineOption = None,
    metric: MetricOption = "quality",
    split: Annotated[str, typer.Option(metavar="PERCENT", help="B's share of the traffic, as 50%.")] = "50%",
    fixed: Annotated[
        int | None,
        typer.Option(
            "--fixed",
            metavar="N",
            help="Evaluate once, at N units per side (see ab size). [default: continuously]",
        ),
    ] = None,
    alpha: AlphaOption = 0.05,
    score_wait: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Maximum wait for a score before the answer counts as unscored: 30s, 10m, or seconds.",
        ),
    ] = "10m",
    duration: Annotated[
        str,
        typer.Option(
            "--for", metavar="DURATION", help="Maximum duration; B is then removed: 12h, 7d, or seconds."
        ),
    ] = "7d",
    retry: options.RetryOption = False,
    allow_unjudged: options.UnjudgedOption = None,
    name: options.NameOption = None,
    message: options.MessageOption = None,
    actor: options.ActorOption = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|PRESET",
            help="Policy file or preset with the gates that watch B; stages do not apply. "
            "[default: the service's]",
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a test of version B against stable (A).

    B gets a share of the traffic; nothing is promoted. --model, --url and --engine describe B. Guards and the
    gates of a policy watch B and may end the test. A service runs one test or rollout at a time.
    """
    from controller.ab.spec import parse_ab
    from controller.cli.request_bodies import change_body, read_policy

    body: dict[str, object] = {
        "version": change_body(model=model, url=url, engine=engine, policy=None)["version"],
        "metric": metric,
        "mode": "sequential" if fixed is None else "fixed",
        "split": split,
        "alpha": alpha,
        "sample_size": fixed,
        "score_wait": score_wait,
        "duration": duration,
        "retry": retry,
        "allow_unjudged": allow_unjudged,
        "policy": read_policy(policy) if policy is not None else None,
    }
    parse_ab(body)  # refuse a malformed test without a controller
    body |= options.label(name, message, actor)
    client = Client(load_settings())
    _print(client.create_ab(client.resolve_service(service or service_), body), output)


@ab.command()
def status(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the newest test of a service."""
    client = Client(load_settings())
    _print(client.ab(client.resolve_service(service or service_)), output)


@ab.command()
def stop(
    service: options.ServiceArgument = None,
    service_: options.ServiceOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """End the test and remove B.

    The result stays readable. Exit 0 also when the test has ended already.
    """
    client = Client(load_settings())
    stopped = client.stop_ab(client.resolve_service(service or service_))
    if output.is_text:
        note(stopped.text)
    else:
        emit_data(stopped, output)


def _print(view: AbView, output: Output) -> None:
    """Print the test; for people also the next step, on stderr."""
    from controller.cli.ab_show import headline, next_step, view_table

    emit(view, output, lambda _: view_table(view), decision=headline(view).plain)
    if output.is_text:
        note(next_step(view))


@ab.command()
def judge(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Requests in the format of `backtest`; arm 1 is B.")
    ],
    metric: MetricOption = "quality",
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of categories, each judged as well. [default: none]"),
    ] = None,
    fixed: Annotated[bool, typer.Option("--fixed", help="Use one test of all units, at the end.")] = False,
    alpha: AlphaOption = 0.05,
    maps: MapOption = None,
    w: WOption = None,
    canary: CanaryOption = None,
    stable: StableOption = None,
    ignore: IgnoreOption = None,
    rollout: RolloutOption = None,
    scores: ScoresOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Judge a recorded test.

    Each unit counts once, on its assigned side (intention to treat), with the mean of its answers, or with
    its first one where the sides have unlike numbers of them. With --by also by category; p-values and
    verdicts are corrected for the number of categories (Holm).
    Exit 0 when it names the better side of the whole file, 6 when it names none or is invalid.
    """
    from controller.cli.ab_file import judge_file
    from controller.cli.ab_show import file_table
    from evaluation.ab.comparison import AbVerdict

    options = read_options(
        maps=maps, ignore=ignore, w=w, canary=canary, stable=stable, rollout=rollout, scores=scores
    )
    report = judge_file(file, metric, alpha=alpha, by=by, is_fixed=fixed, options=options)
    whole = f"{report.rows[0]['category']}: {report.rows[0]['verdict']}"
    emit(report, output, lambda _: file_table(report.rows, report.notes), decision=whole)
    named = (AbVerdict.A_BETTER.value, AbVerdict.B_BETTER.value)
    return 0 if report.rows[0]["verdict"] in named else TimedOut.exit_code


@ab.command()
def size(
    effect: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Minimum detectable difference, in the metric's unit. [default: give it or --baseline]",
        ),
    ] = None,
    baseline: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="A's mean; prints a table of differences from 1 to 20 %. [default: none]"
        ),
    ] = None,
    sd: Annotated[
        float,
        typer.Option(
            metavar="X",
            help="Assumed standard deviation of one unit's outcome; of a rate p: sqrt(p (1 - p)).",
        ),
    ] = 0.2,
    alpha: AlphaOption = 0.05,
    power: Annotated[
        float, typer.Option(metavar="P", help="Probability of detecting the difference, between 0 and 1.")
    ] = 0.8,
    split: Annotated[str, typer.Option(metavar="PERCENT", help="B's share of the units, as 50%.")] = "50%",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the sample size of a fixed test and its assumptions."""
    from controller.cli.ab_show import SizeRow, size_table
    from evaluation.ab.sample_size import effect_table, required_sample_size

    try:
        if (effect is None) == (baseline is None):
            raise ValueError("needs exactly one of --effect (absolute) and --baseline (a table); give one")
        share = weight_bp(split) / FULL_BP
        if effect is not None:
            sizes = [required_sample_size(effect, sd=sd, alpha=alpha, power=power, split=share)]
        else:
            sizes = [*effect_table(baseline or 0.0, sd=sd, alpha=alpha, power=power, split=share)]
    except ValueError as exc:
        raise BadInput(f"ab size: {exc}") from exc
    rows = [SizeRow.of(found, baseline) for found in sizes]
    emit(rows, output, lambda _: size_table(rows))
