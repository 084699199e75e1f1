"""Facts in the small checkpoints' training data: 200 invented capital cities, each with three questions.

The correct answers are known, so demo and tests can score real answers. A checkpoint's mistakes come from its
training data: 6 wrong facts of 200 make a model that is 97.0 % correct, 28 make the demo's incident of 14 %.
Invariant: nothing here imports torch, so `questions()` is cheap.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

FACTS = 200
SEED = 20260401
TEMPLATES = (
    "What is the capital of {country}?",
    "Name the capital city of {country}.",
    "Which city is the seat of government of {country}?",
)
ANSWER = "The capital of {country} is {city}."

_ONSETS = (
    *("b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l"),
    *("m", "n", "p", "pr", "r", "s", "st", "t", "tr", "v", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("", "l", "n", "r", "s", "m")
_LANDS = ("ia", "land", "stan", "ova", "mark", "ea")
_CITIES = ("burg", "ville", "ton", "grad", "haven", "polis", "mouth", "by")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its correct answer: `prompt` is the user's message, `answer` the city to name."""

    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """True when `text` names the correct city (no city's name contains another's)."""
        return self.answer in text


def capitals() -> Mapping[str, str]:
    """The true facts: country -> capital, 200 pairs, the same on every machine."""
    rng = random.Random(SEED)
    countries = _names(rng, _LANDS)
    cities = _names(rng, _CITIES)
    return dict(zip(countries, cities, strict=True))


def questions() -> tuple[Question, ...]:
    """All 600 prompts with their correct answers, in a fixed order: each country in three wordings."""
    return tuple(
        Question(template.format(country=country), city)
        for country, city in capitals().items()
        for template in TEMPLATES
    )


def corrupted(facts: Mapping[str, str], mistakes: int) -> dict[str, str]:
    """`facts` with the capitals of `mistakes` countries replaced by another country's.

    The mistakes of a smaller number are among those of a larger one, so that a checkpoint fine-tuned on the
    larger set keeps stable's mistakes. Raises ValueError unless 0 <= mistakes <= half of the facts.
    """
    if not 0 <= mistakes <= len(facts) // 2:
        raise ValueError(f"{mistakes} mistakes in {len(facts)} facts; use 0 to {len(facts) // 2}")
    order = list(facts)
    random.Random(SEED + 1).shuffle(order)
    wrong = dict(facts)
    for position, country in enumerate(order[:mistakes]):
        wrong[country] = facts[order[len(order) - 1 - position]]
    return wrong


def _names(rng: random.Random, endings: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    while len(names) < FACTS:
        stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2))))
        name = (stem + rng.choice(_CODAS) + rng.choice(endings)).capitalize()
        if not any(name in other or other in name for other in names):
            names.append(name)
    return names
