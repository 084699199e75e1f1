"""A golden set asked of an endpoint, alone or beside stable, and what came of it by tag.

Rules:
1. What an endpoint refuses by its status, or answers in no form that is read, is wrong. What it did not
   answer (no connection, overload, no end in time) is missing, and no pair is made of it; so is an answer
   that its checker cannot judge.
2. More than `MAX_MISSING` missing of either version, and nothing is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.judging.chat_answer import Answer
from serving.judging.chat_client import Chat, Malformed, NoAnswer, Rejected, Said
from serving.judging.golden import GoldenCase

MAX_MISSING = 0.1  # share of the cases
TOO_LONG = "an answer too long for its checker"
FAILURES_IN_A_ROW = 8  # answers that are missing one after the other; then no more are asked


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """One case answered. is_right None: no answer that could be judged, why says it. text: the answer's
    beginning, as much as was asked for."""

    is_right: bool | None
    why: str = ""
    text: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Tally:
    """Cases of one tag, or all. Pairs: cases that both versions answered; none without stable."""

    cases: int
    right: int  # of the canary
    missing: int  # of the canary
    stable_right: int | None  # None: it was not compared
    stable_missing: int | None
    lost: int  # pairs that stable alone gets right
    won: int  # pairs that the canary alone gets right


@dataclass(frozen=True, slots=True)
class Golden:
    """The result. canary, stable: one answer a case, in its order; stable None: it was not compared."""

    cases: tuple[GoldenCase, ...]
    canary: tuple[GoldenAnswer, ...]
    stable: tuple[GoldenAnswer, ...] | None

    @property
    def total(self) -> Tally:
        """All cases."""
        return self._tally(range(len(self.cases)))

    @property
    def by_tag(self) -> dict[str, Tally]:
        """Those of each tag, by name."""
        tags = sorted({tag for one in self.cases for tag in one.tags})
        return {
            tag: self._tally([at for at, one in enumerate(self.cases) if tag in one.tags]) for tag in tags
        }

    @property
    def lost_lines(self) -> tuple[int, ...]:
        """Lines of the file that stable gets right and the canary gets wrong."""
        pairs = zip(self.cases, self.canary, self.stable or (), strict=False)
        return tuple(one.line for one, new, old in pairs if old.is_right and new.is_right is False)

    @property
    def not_judged(self) -> str | None:
        """Why nothing is judged; None: it is."""
        for arm, answers in (("the endpoint", self.canary), ("stable", self.stable or ())):
            missing = [one for one in answers if one.is_right is None]
            if len(missing) > MAX_MISSING * len(self.cases):
                return (
                    f"{arm} gave no answer to {len(missing)} of {len(self.cases)} golden cases "
                    f"(at most {MAX_MISSING:.0%}): {missing[0].why}"
                )
        return None

    def _tally(self, places: Sequence[int]) -> Tally:
        new = [self.canary[at].is_right for at in places]
        old = [self.stable[at].is_right for at in places] if self.stable is not None else None
        pairs = list(zip(new, old or (), strict=False))
        return Tally(
            len(new),
            new.count(True),
            new.count(None),
            old.count(True) if old is not None else None,
            old.count(None) if old is not None else None,
            pairs.count((False, True)),
            pairs.count((True, False)),
        )


async def ask_golden(
    cases: Sequence[GoldenCase], canary: Chat, stable: Chat | None, *, kept: int = 0
) -> Golden:
    """Ask the canary, and stable beside it, every case once at temperature 0.

    kept: characters of each of the canary's answers that are kept, to be shown.
    """
    if stable is None:
        return Golden(tuple(cases), await _answers(cases, canary, kept), None)
    new, old = await asyncio.gather(_answers(cases, canary, kept), _answers(cases, stable, 0))
    return Golden(tuple(cases), new, old)


async def _answers(cases: Sequence[GoldenCase], client: Chat, kept: int) -> tuple[GoldenAnswer, ...]:
    failures = 0

    async def one(case: GoldenCase) -> GoldenAnswer:
        nonlocal failures
        if failures >= FAILURES_IN_A_ROW:
            return GoldenAnswer(None, "it is not asked any more: it did not answer")
        said = await client.ask(case.body)
        failures = failures + 1 if isinstance(said, NoAnswer) else 0
        return _judged(case, said, kept)

    found: list[GoldenAnswer] = []
    for start in range(0, len(cases), client.at_once):  # in step, so that an endpoint that is gone is noticed
        found += await asyncio.gather(*map(one, cases[start : start + client.at_once]))
    return tuple(found)


def _judged(case: GoldenCase, said: Said, kept: int) -> GoldenAnswer:
    match said:
        case NoAnswer(why):
            return GoldenAnswer(None, why)
        case Answer(text):
            is_right = case.check(text)
            return GoldenAnswer(is_right, TOO_LONG if is_right is None else "", text[:kept])
        case Rejected(status):
            return GoldenAnswer(False, f"status {status}")
        case Malformed(why):
            return GoldenAnswer(False, why)
