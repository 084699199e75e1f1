"""The examination of a judge: every plant and every pair in both orders, asked side by side.

It is asked as it will be of live answers: without the right answer beside them. One that can only compare
with a reference would be admitted, and then find nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from serving.judging.plants import pairs, plants
from serving.judging.questions import YES, Fault, Question, about, preference, which


class Judge(Protocol):
    """What is asked."""

    async def ask(self, question: Question) -> dict[str, float] | None:
        """The probability of each of the question's words; None: no verdict."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What a judge said. plants: (kind, whether it is bad, whether it was called bad; None: no verdict).
    pairs: how much the first shown was preferred, as they are and exchanged; whether the first is the bad
    one."""

    plants: tuple[tuple[str, bool, bool | None], ...]
    pairs: tuple[tuple[float | None, float | None, bool], ...]


async def examine(judge: Judge) -> Examined:
    """Ask a judge of every plant and pair."""
    asked_plants, asked_pairs = plants(), pairs()
    questions = [about(Fault.WRONG, one.prompt, one.answer) for one in asked_plants]
    for first, second in asked_pairs:
        both = (first.answer, second.answer), (second.answer, first.answer)
        questions += [which(first.prompt, *shown) for shown in both]
    found = await asyncio.gather(*map(judge.ask, questions))
    verdicts, preferred = found[: len(asked_plants)], found[len(asked_plants) :]
    values = [None if one is None else preference(one) for one in preferred]
    return Examined(
        tuple(
            (one.kind, one.is_bad, None if said is None else said[YES] > 0.5)
            for one, said in zip(asked_plants, verdicts, strict=True)
        ),
        tuple(zip(values[::2], values[1::2], (first.is_bad for first, _ in asked_pairs), strict=True)),
    )
