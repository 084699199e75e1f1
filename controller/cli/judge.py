"""`canaryctl judge URL`: examine a judge of answers before it may vote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from controller.cli import options
from controller.cli.output import Output, OutputOption, emit, note

if TYPE_CHECKING:  # imported where used, as it takes httpx along
    from serving.judging.examined import Examined

REFUSED = 3  # exit code: as of a conflict


class JudgeReport(BaseModel):
    """What an examined judge showed. Shares from 0 to 1; null: nothing of that kind was judged."""

    url: str
    model: str
    revision: str  # of the judge: its model and the words of its questions
    admitted: bool
    reasons: list[str]  # why it is refused; empty: it is admitted
    found: float | None
    false_alarms: float | None
    same_in_both_orders: float | None
    first_position: float | None
    better_won: float | None  # share of the comparisons won by the answer that is known to be right
    missing: float
    found_by_kind: dict[str, float]
    questions: int
    tokens: int
    took_s: float


def judge(
    url: Annotated[str, typer.Argument(metavar="URL", help="Base URL of an OpenAI-compatible endpoint.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the judge's model there.")],
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable with its API key. [default: none]"),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=options.duration_option,
            metavar="DURATION",
            help="Maximum time for one question: 30s, 2m, or seconds, 0.1 to 600.",
        ),
    ] = 30.0,
    at_once: Annotated[int, typer.Option(metavar="N", help="Questions side by side, 1 to 64.")] = 4,
    output: OutputOption = Output.TABLE,
) -> None:
    """Examine a judge of answers before it may vote.

    Asks it of 100 answers whose truth is known, and of 20 pairs in both orders. Sends only texts that ship
    with canaryctl. Exit 0: it may vote; 3: it is refused, and why; 4: no answer, or too few.
    """
    import asyncio
    import time

    from controller.cli.api_key import api_key
    from controller.errors import BadInput, Unreachable
    from evaluation.judging.admission import PairVerdict, PlantVerdict, admission, is_silent
    from serving.judging.examined import examine
    from serving.judging.judge_openai import JudgeOpenAI
    from serving.judging.questions import revision

    if not 1 <= at_once <= 64:
        raise BadInput(f"--at-once {at_once} is outside 1..64; 4 suits one engine")
    if not 0.1 <= timeout <= 600:
        raise BadInput(f"--timeout {timeout:g} is outside 0.1..600 seconds; 30 suits most")
    try:
        key = api_key("--api-key-env", api_key_env)
        asked = JudgeOpenAI(url, model, key, timeout_s=timeout, at_once=at_once, keeps_refusal=True)
    except ValueError as exc:
        raise BadInput(str(exc)) from exc

    async def run() -> Examined:
        async with asked:
            return await examine(asked)

    began_s = time.monotonic()
    said = asyncio.run(run())
    if all(called is None for *_, called in said.plants):
        raise Unreachable(f"{url} gave no verdict: {_trouble(said)}")
    verdicts = [PlantVerdict(*one) for one in said.plants], [PairVerdict(*one) for one in said.pairs]
    found, is_unclear = admission(*verdicts), is_silent(*verdicts)
    kinds: dict[str, list[bool]] = {}
    for kind, is_bad, called in said.plants:
        if is_bad:
            kinds.setdefault(kind, []).append(called is True)
    report = JudgeReport(
        url=url,
        model=model,
        revision=revision(model),
        admitted=found.is_admitted,
        reasons=list(found.reasons),
        found=found.found,
        false_alarms=found.false_alarms,
        same_in_both_orders=found.same,
        first_position=found.first,
        better_won=found.better,
        missing=found.missing,
        found_by_kind={kind: sum(called) / len(called) for kind, called in kinds.items()},
        questions=asked.asked,
        tokens=asked.tokens,
        took_s=round(time.monotonic() - began_s, 1),
    )
    emit(report, output, lambda _is_wide: _shown(report, is_unclear=is_unclear))
    if said.why is not None and found.missing:
        note(f"the first question without a verdict: {_trouble(said)}")
    if is_unclear:
        raise Unreachable(f"{url} gave too few verdicts to be judged: {_trouble(said)}")
    if not report.admitted:
        raise typer.Exit(REFUSED)


def _trouble(examined: Examined) -> str:
    """Why the first question without a verdict had none, what the endpoint said of it, and what to do."""
    from serving.judging.judge_openai import NO_ANSWER, OTHER_WORDS

    why = examined.why or "it was not asked"
    if why == OTHER_WORDS:
        return f"{why}; use a model that answers with one word, without thinking first"
    if why.startswith(NO_ANSWER):
        return f"{why}; wait longer (--timeout) or ask fewer at once (--at-once)"
    said = " ".join(examined.refusal.split()) if why.startswith("status") else ""
    of_the_key = dict.fromkeys(("status 401", "status 403"), "check --api-key-env")
    of_the_form = "it was asked with and without logprobs, max_tokens and temperature; use another model"
    remedies = of_the_key | dict.fromkeys(("status 400", "status 422"), of_the_form)
    remedy = remedies.get(why, "check the address and --model")
    return f"{why}{f' ({said})' if said else ''}; {remedy}"


def _shown(report: JudgeReport, *, is_unclear: bool) -> str:
    """The report as lines. is_unclear: it is not admitted for its missing verdicts alone."""
    from evaluation.judging.admission import FIRST_RANGE, MAX_FALSE, MIN_FOUND, MIN_OF_KIND, MIN_SAME

    low, high = FIRST_RANGE

    def share(value: float | None) -> str:
        return "not judged" if value is None else f"{value:.0%}"

    kinds = ", ".join(f"{kind} {value:.0%}" for kind, value in report.found_by_kind.items())
    needed = f"needed {MIN_FOUND:.0%}, {MIN_OF_KIND:.0%} of each kind"
    lines = [
        f"bad answers found     {share(report.found)} ({needed})",
        f"                      {kinds}",
        f"good ones called bad  {share(report.false_alarms)} (at most {MAX_FALSE:.0%})",
        f"same in both orders   {share(report.same_in_both_orders)} (needed {MIN_SAME:.0%})",
        f"first position won    {share(report.first_position)} ({low:.0%} to {high:.0%})",
        f"right answer won      {share(report.better_won)} (needed {MIN_FOUND:.0%})",
        f"no verdict            {report.missing:.0%} of {report.questions} questions, "
        f"{report.tokens:,} tokens, {report.took_s:g} s",
    ]
    word = "NOT JUDGED" if is_unclear else "REFUSED"
    verdict = "ADMITTED" if report.admitted else f"{word}: {report.reasons[0]}"
    lines += [f"also                  {reason}" for reason in report.reasons[1:]]
    return "\n".join([*lines, f"{verdict} ({report.model}, revision {report.revision})"])
