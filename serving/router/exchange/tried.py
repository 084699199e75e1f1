"""One attempt of a request as it is remembered, and how many there may be. Pure."""

from __future__ import annotations

from msgspec import Struct

from serving.router.upstreams.health import NO_ANSWER

# Of each arm: what is used up at a canary that is dead is not taken from stable, which answers in its place.
MAX_ATTEMPTS = 4  # of one request
MAX_LOOKUPS = 64  # replicas that are asked for one id


class Tried(Struct, gc=False):
    """One attempt so far."""

    arm: int
    url: str
    cause: str | None = None  # why it failed; None: it has not
    tokens: int = 0  # that the client has of it
    has_begun: bool = False  # to answer: a head alone is no answer

    @property
    def is_unanswered(self) -> bool:
        """True when it failed before any answer."""
        return self.cause in NO_ANSWER or (self.cause == "cut" and not self.has_begun)
