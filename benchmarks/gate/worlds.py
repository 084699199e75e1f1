"""Worlds of the trials: what two arms do to their users, and how these come. Drawn by `world_columns.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm does. Rates in [0, 1] of its requests; scales are factors of the common baseline."""

    error: float = 0.01
    fails_slowest: float = 0.0  # this share, the slowest of all requests, ends in a time-out
    fails_below: float = 0.0  # answers of lower quality than this fail instead, and have no score
    fails_hard: bool = False  # hard prompts fail; else they are answered slower and worse
    rejected: float = 0.0  # 4xx on the first attempt
    hallucinated: float = 0.03
    quality: float = 0.75
    latency_scale: float = 1.0
    after_first_token: float = 1.0  # factor of the time after the first token: shorter answers
    turns: float = 3.0  # mean requests of a conversation, 1 + Poisson
    deeper: float = 0.0  # relative growth of the latency with each further turn
    falls_back: float = 0.0  # share of requests that stable answers for it
    # Not in the repr, by which the digests of trials without them were made; their traffic is in the digest.
    unscored_below: float = field(default=0.0, repr=False)  # answers of lower quality have no score
    unscored_events: float = field(default=0.0, repr=False)  # share of hallucinations that have no value
    hangs: float = field(
        default=0.0, repr=False
    )  # share of requests without any answer until the client leaves
    first_token: float = field(default=1.0, repr=False)  # factor of the time to the first token alone
    slowest: float = field(
        default=1.0, repr=False
    )  # factor of the latency of the slowest 3 % of all requests


@dataclass(frozen=True, slots=True)
class World:
    """Two arms and their traffic. `late`: the canary behaves like stable until this many canary requests.

    `users_*`: shares of the units (users when sticky, else requests) that have a property on both arms.
    """

    sticky: bool
    stable: Arm = Arm()
    canary: Arm = Arm()
    w: float = 0.2
    canary_requests: int = 2500
    stable_first: int = 1500  # requests of stable before the canary
    rate_per_s: float = 1.0
    sigma: float = 0.5  # of the logarithm of latency
    users_without_stream: float = 0.0
    users_failing: float = 0.0
    users_falling_back: float = 0.0
    users_judged: float = 1.0
    judged: float = 1.0  # share of answers with a score, at random
    hard: float = 0.0  # share of prompts that are hard
    resolution_s: float = 0.0  # time stamps are cut to it, and equal ones sorted by arm; 0: exact
    step_ms: float = 0.0  # latency comes in multiples of it, times the arm's scale; 0: exact
    score_step: float = 0.0  # scores come in multiples of it; 0: exact
    #: Share of the variance of scores that the column body_bytes explains (R2). Not in the repr, by which the
    #: digests of trials without it were made; its traffic is in the digest.
    explained: float = field(default=0.0, repr=False)
    worst_hard: bool = field(default=False, repr=False)  # hard prompts: usual latency, the worst scores
    one_score: str = field(default="", repr=False)  # of a conversation: of its `first` or `last` answer
    rounded: bool = field(default=False, repr=False)  # `step_ms` rounds what was measured, scale and all
    lost: float = field(default=0.0, repr=False)  # share of requests without a latency, at random
    patience_s: float = field(default=0.0, repr=False)  # mean time until a client leaves; 0: none does
    #: Clients leave where the first token, or the whole answer, takes longer; the time until then is known.
    first_token_within_s: float = field(default=math.inf, repr=False)
    answer_within_s: float = field(default=math.inf, repr=False)
    late: int = 0
    stages: int = 1  # 2: the second begins at `late`
    metrics: tuple[str, ...] = ("error", "rejected", "latency_ms", "ttft_ms", "quality", "hallucinated")

    @property
    def is_harmless(self) -> bool:
        """Whether both arms are described alike."""
        return self.stable == self.canary


@dataclass(frozen=True, slots=True)
class Returning(World):
    """A world whose users go on after their first session.

    `from_turn`: the canary's own behaviour begins at this turn of a conversation, from 0. `people`: a closed
    group that comes back all the time; 0: each user comes once, with one conversation. `cold`: factor of the
    latency of the first request on the canary of a user who asked stable before.
    """

    from_turn: int = 0
    people: int = 0
    cold: float = 1.0


@dataclass(frozen=True, slots=True)
class Drifting(World):
    """A world whose latency changes on both arms alike once the canary has begun.

    `step`: at once, by this factor. `rise`: evenly until the end, to this factor. `spread`: sigma from then
    on; 0: as before. `tail`: factor of the canary's slowest 2 %, beside the drift.
    """

    step: float = 1.0
    rise: float = 1.0
    spread: float = 0.0
    tail: float = 1.0
    # Not in the repr, by which the digests of trials without them were made; their traffic is in the digest.
    burst: float = field(default=1.0, repr=False)  # factor for half of each period, before the canary as well
    period: int = field(default=8000, repr=False)  # requests of both arms
    is_wave: bool = field(default=False, repr=False)  # rises and falls evenly, as a sine
    slow: float = field(default=0.02, repr=False)  # share of the canary's answers that are its slowest


@dataclass(frozen=True, slots=True)
class Differing(World):
    """A world of two kinds of users: half ask once, and wait `once` times as long; the others ask on.

    `tail`: factor of those answers of the canary that are among the slowest 2 % of all requests.
    """

    once: float = 1.0
    tail: float = 1.0


@dataclass(frozen=True, slots=True)
class Batches(World):
    """A world whose judge scores the answers of the first `batch` part of each hour, on both arms alike."""

    batch: float = 0.3
