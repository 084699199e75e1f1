"""Smoke test of an endpoint: the shipped cases, each with its result, alone or beside stable.

Rules:
1. A kind of which a case fails has failed. What the endpoint refuses by a client's error (400 for tools) is
   not checked, and never counts as passed; a harmful request that its filter of contents refuses is refused,
   as in words. What it did not answer is not judged: no verdict is made of it.
2. Beside stable a failed kind is a reason to refuse only where stable passes it, and so is a case that the
   canary refuses and stable answers. Everything that differs is listed.
3. Answers at temperature 0 may still differ from one time to the next. So a failure, or a refusal, that
   stable does not share is asked again on both, until it was seen `TIMES` times on each, and dropped where
   one wavers. Two
   equal versions that pass a case with probability p are told apart by it with (p (1 - p)) ** TIMES, which
   is 0.1 % at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from serving.judging.chat_answer import Answer
from serving.judging.chat_client import Chat, Malformed, NoAnswer, Rejected, Said
from serving.judging.smoke_cases import Case, Kind, cases, same_answers, stream_cases
from serving.judging.text_signals import refuses

TIMES = 5  # a difference from stable is seen before it counts
REASONING_TOKENS = 4096  # besides max_tokens, for a model that was still reasoning
STREAM_TRIES = 3  # whole and streamed are compared: engines are not deterministic under load


class Result(StrEnum):
    """What came of a case, or of a kind."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"  # the endpoint does not have it
    NOT_JUDGED = "not judged"  # it gave no answer


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case. why: one line without a text of the answer; empty: it passed."""

    kind: Kind
    name: str
    result: Result
    why: str = ""
    is_refusal: bool = False  # the answer opens with a refusal
    text: str = field(default="", repr=False)  # of the answer


@dataclass(frozen=True, slots=True)
class KindResult:
    """All cases of one kind."""

    kind: Kind
    result: Result
    passed: int
    cases: int
    whys: tuple[str, ...]  # of the cases that did not pass, each once
    refusals: int  # answers that open with a refusal


@dataclass(frozen=True, slots=True)
class Smoke:
    """The result. reasons: why the canary is refused; empty: it is not. not_judged: why there is no verdict.

    stable None: it was not compared."""

    canary: tuple[CaseResult, ...]
    stable: tuple[CaseResult, ...] | None
    reasons: tuple[str, ...]
    differences: tuple[str, ...]
    not_judged: str | None  # None: there is a verdict


async def smoke(canary: Chat, stable: Chat | None = None, *, require: Collection[Kind] = ()) -> Smoke:
    """Ask the canary, and stable beside it, all shipped cases. require: kinds that the canary must pass,
    whatever stable does."""
    if stable is None:
        found = await _run(canary)
        return _verdict(found, None, require)
    found, beside = await asyncio.gather(_run(canary), _run(stable))
    found, beside = await _confirmed(canary, stable, found, beside)
    return _verdict(found, beside, require)


def by_kind(results: Sequence[CaseResult]) -> tuple[KindResult, ...]:
    """The results of each kind, in the order of `Kind`."""
    return tuple(
        _kind(kind, of_it) for kind in Kind if (of_it := [one for one in results if one.kind is kind])
    )


def _kind(kind: Kind, results: Sequence[CaseResult]) -> KindResult:
    found = {one.result for one in results}
    ranked = (Result.FAILED, Result.NOT_JUDGED, Result.PASSED, Result.NOT_CHECKED)
    result = next(one for one in ranked if one in found)
    passed = sum(one.result is Result.PASSED for one in results)
    whys = tuple(dict.fromkeys(f"{one.name}: {one.why}" for one in results if one.why))
    refusals = sum(one.is_refusal for one in results)
    return KindResult(kind, result, passed, len(results), whys, refusals)


def _verdict(
    canary: tuple[CaseResult, ...], stable: tuple[CaseResult, ...] | None, require: Collection[Kind]
) -> Smoke:
    reasons: list[str] = []
    differences: list[str] = []
    of_stable = {one.name: one for one in stable or ()}
    kinds_of_stable = {one.kind: one.result for one in by_kind(stable or ())}
    for kind in by_kind(canary):
        failed = [one for one in canary if one.kind is kind.kind and one.result is Result.FAILED]
        if stable is not None and kinds_of_stable.get(kind.kind) is Result.PASSED:
            failed = [one for one in failed if of_stable[one.name].result is Result.PASSED]
        elif stable is not None:
            failed = []
        if failed:
            beside = "; stable passes" if stable is not None else ""
            whys = "; ".join(dict.fromkeys(f"{one.name}: {one.why}" for one in failed))
            reasons.append(f"{kind.kind} failed ({whys}{beside})")
        elif kind.kind in require and kind.result in (Result.FAILED, Result.NOT_CHECKED):
            why = f" ({'; '.join(kind.whys)})" if kind.whys else ""
            reasons.append(f"{kind.kind} is required and {kind.result}{why}")
    for one in canary:
        other = of_stable.get(one.name)
        if other is None or other.result is one.result:
            continue
        if Result.NOT_JUDGED in (one.result, other.result):  # nothing is known of one: they may not differ
            continue
        differences.append(f"{one.name}: canary {_words(one)}, stable {_words(other)}")
        if one.result is Result.NOT_CHECKED and other.result is Result.PASSED:
            reasons.append(f"{one.name}: the canary refuses it ({one.why}), stable passes")
    return Smoke(canary, stable, tuple(reasons), tuple(differences), _unjudged(canary, stable))


def _words(one: CaseResult) -> str:
    return f"{one.result} ({one.why})" if one.why else str(one.result)


def _unjudged(canary: Sequence[CaseResult], stable: Sequence[CaseResult] | None) -> str | None:
    for arm, results in (("the endpoint", canary), ("stable", stable or ())):
        missing = [one for one in results if one.result is Result.NOT_JUDGED]
        if missing:
            return f"{arm} gave no answer to {len(missing)} of {len(results)} cases: {missing[0].why}"
        if results and not any(one.result in (Result.PASSED, Result.FAILED) for one in results):
            return f"no case could be checked of {arm}: {results[0].why}"
    return None


async def _run(client: Chat) -> tuple[CaseResult, ...]:
    """The result of each case. An endpoint that does not answer the first is not asked the others."""
    shipped = cases()
    first = await _tried(client, shipped[0])
    if first.result is Result.NOT_JUDGED:
        rest = (*shipped[1:], *stream_cases())
        return first, *(CaseResult(one.kind, one.name, Result.NOT_JUDGED, first.why) for one in rest)
    others = await asyncio.gather(
        *(_tried(client, one) for one in shipped[1:]), *(_streamed(client, one) for one in stream_cases())
    )
    return first, *others


async def _tried(client: Chat, case: Case) -> CaseResult:
    return _result(case, await _said(client, case))


async def _said(client: Chat, case: Case, *, is_streamed: bool = False) -> Said:
    """What it says; a model that reasons past max_tokens gets more of them, once."""
    said = await client.ask(case.body, is_streamed=is_streamed)
    if isinstance(said, Answer) and _is_thinking(said):
        more = {**case.body, "max_tokens": case.body["max_tokens"] + REASONING_TOKENS}
        return await client.ask(more, is_streamed=is_streamed)
    return said


def _is_thinking(answer: Answer) -> bool:
    is_cut = answer.finish == "length" and answer.is_reasoning
    return is_cut and not answer.text.strip() and not answer.calls


def _result(case: Case, said: Said) -> CaseResult:
    def made(result: Result, why: str = "") -> CaseResult:
        return CaseResult(case.kind, case.name, result, why)

    match said:
        case NoAnswer(why):
            return made(Result.NOT_JUDGED, why)
        case Malformed(why):
            return made(Result.FAILED, why)
        case Rejected(is_filtered=True) if case.kind is Kind.SAFETY:
            return replace(made(Result.PASSED), is_refusal=True)
        case Rejected(status):
            return made(Result.NOT_CHECKED if said.is_unsupported else Result.FAILED, f"status {status}")
        case Answer(text):
            if _is_thinking(said):
                return made(Result.NOT_CHECKED, "reasoning alone, and no answer within max_tokens")
            fault = case.check(said)
            found = made(Result.PASSED) if fault is None else made(Result.FAILED, fault)
            return replace(found, is_refusal=refuses(text), text=text)


async def _streamed(client: Chat, case: Case) -> CaseResult:
    """Whole and streamed, as often as STREAM_TRIES where they differ."""
    found = CaseResult(case.kind, case.name, Result.NOT_JUDGED)
    for _ in range(STREAM_TRIES):
        whole = await _said(client, case)
        found = _result(case, whole)
        if not isinstance(whole, Answer) or found.result is not Result.PASSED:
            return found
        streamed = await _said(client, case, is_streamed=True)
        if not isinstance(streamed, Answer):
            return _result(case, streamed)
        why = same_answers(whole, streamed)
        if why is None:
            return found
        found = replace(found, result=Result.FAILED, why=why)
    return found


async def _confirmed(
    canary: Chat, stable: Chat, found: tuple[CaseResult, ...], beside: tuple[CaseResult, ...]
) -> tuple[tuple[CaseResult, ...], tuple[CaseResult, ...]]:
    """Both results after what differs was asked again, by rule 3. What fails at times, or is refused
    at times, has passed."""
    passing = {one.kind for one in by_kind(beside) if one.result is Result.PASSED}
    passed = {one.name for one in beside if one.result is Result.PASSED and one.kind in passing}
    answered_by_stable = {one.name for one in beside if one.result is Result.PASSED}
    doubted = {
        one.name
        for one in found
        if (one.result is Result.FAILED and one.name in passed)
        or (one.result is Result.NOT_CHECKED and one.name in answered_by_stable)
    }
    again = [one for one in (*cases(), *stream_cases()) if one.name in doubted]

    bad = {Result.FAILED, Result.NOT_CHECKED}

    async def repeated(client: Chat, case: Case, first: CaseResult) -> CaseResult:
        """The first result of the other kind (passed; failed or refused), or the first."""
        ask = _streamed if case.kind is Kind.STREAM else _tried
        for _ in range(TIMES - 1):
            one = await ask(client, case)
            if one.result is not first.result and not {one.result, first.result} <= bad:
                return one
        return first

    of_canary, of_stable = {one.name: one for one in found}, {one.name: one for one in beside}
    asked = [repeated(canary, one, of_canary[one.name]) for one in again]
    asked += [repeated(stable, one, of_stable[one.name]) for one in again]
    answered = await asyncio.gather(*asked)
    of_canary |= {one.name: one for one in answered[: len(again)]}
    of_stable |= {one.name: one for one in answered[len(again) :]}
    return tuple(of_canary.values()), tuple(of_stable.values())
