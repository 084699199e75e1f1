"""The examination of a judge: every plant and every pair in both orders, asked side by side.

It is asked as it will be of live answers: without the right answer beside them. One that can only compare
with a reference would be admitted, and then find nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from serving.judging.judge_openai import Said
from serving.judging.plants import pairs, plants
from serving.judging.questions import YES, Fault, Question, about, preference, which


class Judge(Protocol):
    """What is asked."""

    async def said(self, question: Question) -> Said:
        """What it says to the question, or why that is no verdict."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What a judge said. plants: (kind, whether it is bad, whether it was called bad; None: no verdict).
    pairs: how much the first shown was preferred, as they are and exchanged; whether the first is the bad
    one. why, refusal: of the first question without a verdict, in the order of asking: the later ones may be
    without it only because the judge is left alone then."""

    plants: tuple[tuple[str, bool, bool | None], ...]
    pairs: tuple[tuple[float | None, float | None, bool], ...]
    why: str | None = None  # None: each has a verdict
    refusal: str = ""


async def examine(judge: Judge) -> Examined:
    """Ask a judge of every plant and pair."""
    asked_plants, asked_pairs = plants(), pairs()
    questions = [about(Fault.WRONG, one.prompt, one.answer) for one in asked_plants]
    for first, second in asked_pairs:
        both = (first.answer, second.answer), (second.answer, first.answer)
        questions += [which(first.prompt, *shown) for shown in both]
    answers = await asyncio.gather(*map(judge.said, questions))
    first_without = next((one for one in answers if one.shares is None), None)
    found = [one.shares for one in answers]
    verdicts, preferred = found[: len(asked_plants)], found[len(asked_plants) :]
    values = [None if one is None else preference(one) for one in preferred]
    return Examined(
        tuple(
            (one.kind, one.is_bad, None if said is None else said[YES] > 0.5)
            for one, said in zip(asked_plants, verdicts, strict=True)
        ),
        tuple(zip(values[::2], values[1::2], (first.is_bad for first, _ in asked_pairs), strict=True)),
        why=first_without.why if first_without is not None else None,
        refusal=first_without.refusal if first_without is not None else "",
    )
