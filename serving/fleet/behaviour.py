"""What an engine answers right after its load, compared with the first load of the same version. Pure.

A replica with a wrong or damaged checkpoint answers fluently, and a canary's gates do not see one replica of
many, nor any replica of stable that is loaded later. So every replica gives the probabilities of one token
after fixed prompts before it is ready, and is refused where these are not those of its version.

Rules:
1. The first replica of a version on one kind of device and engine release is the reference of all later ones.
   It outlives the version's unloading if it is older than CONFIRMED_S then: the first load of a canary that
   was rolled back soon may be the one that was wrong.
2. The difference is the mean over the prompts of how much probability lies elsewhere (total variation, 0 to
   1). A token that one side does not list counts as the last one that it lists, which is the most it can be.
3. Up to LIMIT is allowed, and NOISE_FACTOR times what each of the two differs from itself.

Measured on a checkpoint of 0.9 M parameters (vLLM's CPU build, float32): a repeated load differs by 0.000,
in a batch too; noise of 1, 5 and 20 % of each matrix's spread by 0.01, 0.05 and 0.22; an eighth of one matrix
zero by 0.05, a whole one by 0.27, its rows exchanged by 0.30; another training run by 0.36 to 0.39.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from serving.fleet.types import Launch

LIMIT = 0.1
NOISE_FACTOR = 5.0
KEPT = 200  # references, the newest
CONFIRMED_S = 3600.0
PROMPTS = (
    "The capital of France is",
    "1, 2, 3, 4, 5,",
    "def add(a, b):\n    return",
    "Once upon a time there was a",
    "Q: What is 7 times 8?\nA:",
    "Die Sonne scheint und der Himmel ist",
    '{"name": "Anna", "age":',
    "A line about nothing that repeats itself. " * 40 + "A line about",  # positions beyond the first few
)
DAMAGED = (
    "its first answers are not numbers (NaN): the checkpoint is damaged or overflows its dtype; compare its "
    "files with the original, or set dtype"
)

TokenShares: TypeAlias = Mapping[int, float]  # token id -> natural log probability, of the likeliest


@dataclass(frozen=True, slots=True)
class Behaviour:
    """answers: by prompt, the likeliest next tokens. noise: how much a second pass differed from it, 0-1.
    device: on what it was measured, and by which release of the engine."""

    answers: tuple[TokenShares, ...]
    noise: float
    device: str

    @property
    def is_damaged(self) -> bool:
        """Whether a prompt has no probability that is a number."""
        return any(not one or any(math.isnan(value) for value in one.values()) for one in self.answers)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(replace(self, answers=tuple(dict(one) for one in self.answers)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Behaviour:
        """What `to_json` gave; keys that JSON made texts are numbers again."""
        answers: tuple[TokenShares, ...]
        answers = tuple({int(token): value for token, value in one.items()} for one in data["answers"])
        # Of an earlier release, which took logits for log probabilities.
        answers = tuple(of_logits(one) if max(one.values(), default=0.0) > 1e-3 else one for one in answers)
        return cls(answers, data["noise"], data["device"])


def distance(first: tuple[TokenShares, ...], second: tuple[TokenShares, ...]) -> float:
    """The mean total variation over the prompts, 0-1; 1 where they are not of the same prompts."""
    if not first or len(first) != len(second):
        return 1.0
    return math.fsum(map(_variation, first, second)) / len(first)


def of_logits(logits: TokenShares) -> TokenShares:
    """What an engine gives as logits, as log probabilities among the tokens that it lists.

    A logit is known up to a number that is the same for all tokens, and is no probability.
    Check: logits of 20 and 20 are two of log(1/2).
    """
    if not logits or any(math.isnan(value) for value in logits.values()):
        return logits
    most = max(logits.values())
    whole = most + math.log(math.fsum(math.exp(value - most) for value in logits.values()))
    return {token: value - whole for token, value in logits.items()}


def _variation(first: TokenShares, second: TokenShares) -> float:
    if not first or not second:
        return 1.0
    least_first, least_second = min(first.values()), min(second.values())
    parts = []
    for token in {*first, *second}:
        one, other = first.get(token), second.get(token)
        if one is None and other is not None:
            one = min(other, least_first)
        elif other is None and one is not None:
            other = min(one, least_second)
        assert one is not None
        assert other is not None
        parts.append(abs(math.exp(one) - math.exp(other)))
    return math.fsum(parts) / 2.0


@dataclass(frozen=True, slots=True)
class _Reference:
    behaviour: Behaviour
    since_s: float  # of the fleet's clock


class References:
    """The first behaviour of every version, by launch, device and release."""

    def __init__(self, stored: str | None = None, *, now_s: float = 0.0) -> None:
        """stored: of `to_store`; None: none. Ages begin anew: the clock may be another host's."""
        self._found = {
            key: _Reference(Behaviour.from_json(one), now_s)
            for key, one in json.loads(stored or "{}").items()
        }

    def to_store(self) -> str:
        """JSON of all that is kept."""
        return json.dumps({key: one.behaviour.to_json() for key, one in self._found.items()})

    def why_refused(self, launch: Launch, found: Behaviour, *, now_s: float) -> str | None:
        """Why a replica that answers so may get no request, in one line; None: it may. The first one of its
        version becomes the reference."""
        if found.is_damaged:
            return DAMAGED
        key = f"{_key(launch)} {found.device}"
        known = self._found.get(key)
        if known is None:
            self._found[key] = _Reference(found, now_s)
            for old in list(self._found)[:-KEPT]:
                del self._found[old]
            return None
        reference = known.behaviour
        differs = distance(reference.answers, found.answers)
        allowed = LIMIT + NOISE_FACTOR * max(reference.noise, found.noise)
        if differs <= allowed:
            return None
        return (
            f"it does not answer as version {launch.version} did at its first load: "
            f"{100 * differs:.0f} % of the next token's probability lies elsewhere, at most "
            f"{100 * allowed:.0f} % may; its files have changed or were read wrongly: restore them, or "
            "deploy them as a new version"
        )

    def on_gone(self, launch: Launch, *, now_s: float) -> None:
        """The version is unloaded: a reference that is not confirmed goes with it."""
        mine = f"{_key(launch)} "
        for key, one in list(self._found.items()):
            if key.startswith(mine) and now_s - one.since_s < CONFIRMED_S:
                del self._found[key]


def _key(launch: Launch) -> str:
    settings = (
        *(launch.service, launch.version, launch.model_dir, launch.tensor_parallel),
        json.dumps(dict(launch.engine_args), sort_keys=True, default=str),
    )
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:24]
