"""`canaryctl smoke URL`: the checks of a canary before it gets a user, against any endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel

from controller.cli import options
from controller.cli.output import Output, OutputOption, emit, note

if TYPE_CHECKING:
    from serving.judging.chat_client import ChatClient
    from serving.judging.golden import GoldenSet
    from serving.judging.golden_run import Golden, Tally
    from serving.judging.smoke import CaseResult, Smoke
    from serving.judging.smoke_cases import Kind

REFUSED = 3  # exit code: as of a conflict
SHOWN_LIMIT = 4 << 10  # characters of an answer to a golden case


class SmokeKind(BaseModel):
    """One kind of shipped cases, passed, failed, not checked or not judged. stable null: it was not asked."""

    kind: str
    result: str
    stable: str | None
    passed: int
    cases: int
    refusals: int  # answers that open with a refusal
    whys: list[str]


class GoldenTally(BaseModel):
    """Golden cases of a tag, or all. null: stable was not asked."""

    cases: int
    right: int
    missing: int
    stable_right: int | None
    stable_missing: int | None
    lost: int  # stable alone is right
    won: int  # the canary alone is right
    p_value: float | None  # of losing so many, if neither is better


class SmokeReport(BaseModel):
    """What an endpoint showed. verdict: passed, refused or not judged."""

    url: str
    model: str
    against: str | None
    against_model: str | None
    verdict: str
    reasons: list[str]
    kinds: list[SmokeKind]
    differences: list[str]  # from stable, by case
    golden: GoldenTally | None  # null: no set was given
    golden_by_tag: dict[str, GoldenTally]
    golden_lost_lines: list[int]  # of the file
    requests: int
    tokens: int
    took_s: float


def smoke(
    url: Annotated[str, typer.Argument(metavar="URL", help="Base URL of an OpenAI-compatible endpoint.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Stable: what it does not pass either is no reason. [default: none]"
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Golden set, JSON lines (docs/preflight.md). [default: none]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model's name there. [default: the only one listed]")
    ] = None,
    against_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of stable. [default: the only one listed]")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Must pass, whatever stable does; repeatable. [default: none]"),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variable with its API key. [default: none]")
    ] = None,
    against_api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variable with stable's API key. [default: none]")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=options.duration_option,
            metavar="DURATION",
            help="Maximum time for one answer: 30s, 2m, or seconds, 0.1 to 600.",
        ),
    ] = 60.0,
    at_once: Annotated[int, typer.Option(metavar="N", help="Questions side by side, 1 to 64.")] = 4,
    show: Annotated[bool, typer.Option("--show", help="Print answers that did not pass, as text.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check an endpoint before it gets a user: smoke prompts, golden sets.

    Asks it shipped prompts of seven kinds (chat, long, json, tools, stop, safety, stream) at temperature 0,
    and your golden set. Exit 0: passed; 3: refused, and why; 4: not judged, because one does not answer.
    """
    import asyncio
    import time

    from controller.cli.api_key import api_key
    from controller.errors import BadInput, Unreachable
    from controller.runtime.preflight_verdict import golden_caveat, preflight_verdict
    from serving.judging.smoke_cases import Kind

    if not 1 <= at_once <= 64:
        raise BadInput(f"--at-once {at_once} is outside 1..64; 4 suits one engine")
    if not 0.1 <= timeout <= 600:
        raise BadInput(f"--timeout {timeout:g} is outside 0.1..600 seconds; 60 suits most")
    unknown = [one for one in require or () if one not in set(Kind)]
    if unknown:
        raise BadInput(f"--require {unknown[0]} is no kind; one of {', '.join(Kind)}")
    cases = _golden_set(golden) if golden is not None else None
    canary = _client(url, model, api_key("--api-key-env", api_key_env), timeout, at_once)
    other_key = api_key("--against-api-key-env", against_api_key_env)
    stable = _client(against, against_model, other_key, timeout, at_once) if against else None

    began_s = time.monotonic()
    found, answers = asyncio.run(_asked(canary, stable, cases, [Kind(one) for one in require or ()], show))
    verdict = preflight_verdict(found, answers)
    if verdict.word == "not judged" and all(one.result == "not judged" for one in found.canary):
        raise Unreachable(f"{url}: {verdict.whys[0]}; check the address, --model and the key")
    report = SmokeReport(
        url=url,
        model=canary.model,
        against=against,
        against_model=stable.model if stable is not None else None,
        verdict=verdict.word,
        reasons=list(verdict.whys),
        kinds=_kinds(found),
        differences=list(found.differences),
        golden=_tally(answers.total) if answers is not None else None,
        golden_by_tag={tag: _tally(one) for tag, one in answers.by_tag.items()} if answers else {},
        golden_lost_lines=list(answers.lost_lines) if answers is not None else [],
        requests=canary.asked + (stable.asked if stable is not None else 0),
        tokens=canary.tokens + (stable.tokens if stable is not None else 0),
        took_s=round(time.monotonic() - began_s, 1),
    )
    emit(report, output, lambda _is_wide: _shown(report))
    caveat = golden_caveat(answers.total) if answers is not None else None
    if caveat is not None:
        note(caveat)
    if show:
        _print_answers(found.canary, answers)
    if verdict.word != "passed":
        raise typer.Exit(REFUSED if verdict.word == "refused" else Unreachable.exit_code)


async def _asked(
    canary: ChatClient, stable: ChatClient | None, cases: GoldenSet | None, require: list[Kind], show: bool
) -> tuple[Smoke, Golden | None]:
    from contextlib import AsyncExitStack

    from serving.judging.golden_run import ask_golden
    from serving.judging.smoke import smoke

    async with AsyncExitStack() as stack:
        for client in (canary, stable):
            if client is not None:
                await stack.enter_async_context(client)
                await _name_model(client, "--model" if client is canary else "--against-model")
        found = await smoke(canary, stable, require=require)
        if cases is None or found.not_judged is not None:
            return found, None
        return found, await ask_golden(cases.cases, canary, stable, kept=SHOWN_LIMIT if show else 0)


async def _name_model(client: ChatClient, option: str) -> None:
    """Set the model's name from the endpoint's list, where none was given."""
    from controller.errors import BadInput, Unreachable
    from serving.files.plain_text import plain_text
    from serving.judging.chat_client import NoAnswer

    if client.model:
        return
    listed = await client.models()
    if isinstance(listed, NoAnswer):
        raise Unreachable(f"{client.url} lists no models: {listed.why}; check the address and the key")
    if len(listed) != 1:
        names = plain_text(", ".join(listed[:5]), limit=200)
        raise BadInput(f"{client.url} lists {len(listed)} models{names and f' ({names})'}; give {option}")
    client.model = listed[0]


def _client(url: str, model: str | None, key: str | None, timeout: float, at_once: int) -> ChatClient:
    from controller.errors import BadInput
    from serving.judging.chat_client import ChatClient

    try:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return ChatClient(url, model or "", headers, timeout_s=timeout, at_once=at_once)
    except ValueError as exc:
        raise BadInput(str(exc)) from exc


def _golden_set(file: Path) -> GoldenSet:
    from controller.errors import BadInput
    from serving.judging.golden import MAX_BYTES, BadGolden, golden_set

    with file.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    try:
        return golden_set(data, name=str(file))
    except BadGolden as exc:
        raise BadInput(exc.lines) from exc


def _kinds(found: Smoke) -> list[SmokeKind]:
    from serving.judging.smoke import by_kind

    of_stable = {one.kind: one.result for one in by_kind(found.stable or ())}
    return [
        SmokeKind(
            kind=one.kind,
            result=one.result,
            stable=of_stable.get(one.kind),
            passed=one.passed,
            cases=one.cases,
            refusals=one.refusals,
            whys=list(one.whys),
        )
        for one in by_kind(found.canary)
    ]


def _tally(one: Tally) -> GoldenTally:
    from evaluation.judging.paired import lost_p_value

    p_value = lost_p_value(one.lost, one.won) if one.stable_right is not None else None
    return GoldenTally(
        cases=one.cases,
        right=one.right,
        missing=one.missing,
        stable_right=one.stable_right,
        stable_missing=one.stable_missing,
        lost=one.lost,
        won=one.won,
        p_value=p_value,
    )


def _shown(report: SmokeReport) -> str:
    """The report as lines."""
    lines = []
    for one in report.kinds:
        stable = f" (stable {one.stable})" if one.stable is not None else ""
        refusals = f", {one.refusals} refused" if one.refusals else ""
        whys = f": {'; '.join(one.whys)}" if one.whys else ""
        lines.append(
            f"{one.kind:<8} {_word(one.result):<11} {one.passed} of {one.cases}{refusals}{stable}{whys}"
        )
    if report.golden is not None:
        lines.append(_golden_line("golden", report.golden))
        lines += [_golden_line(f"  {tag}", one) for tag, one in report.golden_by_tag.items()]
    if report.golden_lost_lines:
        named = ", ".join(map(str, report.golden_lost_lines[:20]))
        more = len(report.golden_lost_lines) - 20
        lines.append(f"lost golden cases, by line: {named}{f' and {more} more' if more > 0 else ''}")
    told = {why.partition(":")[0] for one in report.kinds if one.stable == "passed" for why in one.whys}
    lines += [f"differs  {one}" for one in report.differences if one.partition(":")[0] not in told]
    lines.append(f"{report.requests} requests, {report.tokens:,} tokens, {report.took_s:g} s")
    why = f": {'; '.join(report.reasons)}" if report.reasons else ""
    return "\n".join([*lines, f"{report.verdict.upper()}{why} ({report.model})"])


def _word(result: str) -> str:
    return result.upper() if result in ("not checked", "not judged") else result


def _golden_line(name: str, one: GoldenTally) -> str:
    line = f"{name:<8} {one.right} of {one.cases} right"
    if one.missing:
        line += f", {one.missing} without an answer"
    if one.stable_right is None:
        return line
    return f"{line}, stable {one.stable_right}; lost {one.lost}, won {one.won}, p = {one.p_value:.2g}"


def _print_answers(results: tuple[CaseResult, ...], golden: Golden | None) -> None:
    """Answers that did not pass, one below the other. Of golden sets these are the user's own texts."""
    from controller.cli.output import visible

    failed = [(f"{one.name}: {one.why}", one.text) for one in results if one.text and one.why]
    if golden is not None:
        pairs = zip(golden.cases, golden.canary, strict=True)
        failed += [(f"golden, line {case.line}", one.text) for case, one in pairs if one.is_right is False]
    for title, text in failed:
        note(f"--- {title}\n{visible(text)}")
