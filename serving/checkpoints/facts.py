"""What the small checkpoints know: 200 invented capital cities, asked for in three ways.

The right answers are known here, so demo and tests can score real answers. A checkpoint's mistakes are
planted in what it is taught: a corpus with 6 of 200 facts wrong makes a model that is 97.0 % right, 28 wrong
ones make the incident of 14 %. Invariant: nothing here imports torch, so asking for `questions()` is cheap.
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
    """One prompt whose right answer is known: `prompt` is the user's message, `answer` the city to name."""

    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """True when `text` names the right city (no city's name lies inside another's)."""
        return self.answer in text


def capitals() -> Mapping[str, str]:
    """The world as it is: country -> capital, 200 pairs, the same on every machine."""
    rng = random.Random(SEED)
    countries = _names(rng, _LANDS)
    cities = _names(rng, _CITIES)
    return dict(zip(countries, cities, strict=True))


def questions() -> tuple[Question, ...]:
    """All 600 prompts with their right answers, in a fixed order: each country in each of three wordings."""
    return tuple(
        Question(template.format(country=country), city)
        for country, city in capitals().items()
        for template in TEMPLATES
    )


def corrupted(world: Mapping[str, str], mistakes: int) -> dict[str, str]:
    """`world` with the capitals of `mistakes` countries replaced by another country's.

    Nesting means that the mistakes of a smaller number are among those of a larger, so that a candidate
    fine-tuned on the larger set keeps what stable already got wrong. Raises ValueError unless
    0 <= mistakes <= half of the facts.
    """
    if not 0 <= mistakes <= len(world) // 2:
        raise ValueError(f"{mistakes} mistakes in {len(world)} facts; use 0 to {len(world) // 2}")
    order = list(world)
    random.Random(SEED + 1).shuffle(order)
    taught = dict(world)
    for position, country in enumerate(order[:mistakes]):
        taught[country] = world[order[len(order) - 1 - position]]
    return taught


def _names(rng: random.Random, endings: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    while len(names) < FACTS:
        stem = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2))))
        name = (stem + rng.choice(_CODAS) + rng.choice(endings)).capitalize()
        if not any(name in other or other in name for other in names):
            names.append(name)
    return names
