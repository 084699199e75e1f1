"""Faults of a canary engine, and what the record of a request that met one must say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Place = Literal["head", "body", "listener", "process", "none"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A way in which a canary fails.

    place: where it strikes; `none`: nowhere, the comparison. causes: one of them is in the record of a
    request whose first attempt met it. rate: share of attempts that meet it.
    """

    name: str
    place: Place
    causes: tuple[str, ...] = ()
    rate: float = 0.7
    is_rejected: bool = False  # a 4xx: a rejection, no error
    is_harmless: bool = False  # the answer arrives whole: no error
    streams_only: bool = False  # answers that are no stream do not meet it
    waits: bool = False  # it is found by a time limit of the router, which is then a short one
    pace_s: float = 0.0  # mean pause between two events of an engine, so that a fault strikes in mid-stream

    @property
    def clients(self) -> int:
        """How many ask at once."""
        return 256 if self.waits or self.name == "trickling" else 48

    def names(self, cause: str | None) -> bool:
        """True for a cause that a record of this fault may have."""
        return cause in self.causes


FAULTS: Sequence[Fault] = (
    Fault("no fault", "none", is_harmless=True),
    Fault("connection refused", "listener", ("refused", "reset")),
    Fault("reset before the head", "head", ("reset",)),
    Fault("silent before the head", "head", ("timeout",), waits=True),
    Fault("garbage instead of a head", "head", ("reset", "cut", "malformed")),
    Fault("status 500", "head", ("status 500",)),
    Fault("status 503", "head", ("status 503",)),
    Fault("status 429", "head", ("status 429",)),
    Fault("status 404", "head", ("status 404",), is_rejected=True),
    Fault("status 400", "head", ("status 400",), is_rejected=True),
    Fault("refused by the fence", "head", is_harmless=True),
    Fault("refused while closing", "head", ("refused",)),
    Fault("error inside a 200", "body", ("error in the answer",)),
    Fault("error in mid-stream", "body", ("error in the answer", "cut"), streams_only=True),
    Fault("garbage body", "body", ("malformed", "cut", "error in the answer")),
    Fault("garbage in mid-stream", "body", ("malformed", "cut"), streams_only=True),
    Fault("garbage framing in mid-answer", "body", ("cut",)),
    Fault("truncated", "body", ("cut", "malformed")),
    Fault("reset in mid-answer", "body", ("cut", "reset")),
    Fault("stalled in mid-answer", "body", ("stalled", "timeout", "cut"), waits=True),
    Fault("trickling", "body", is_harmless=True),
    Fault("cut after the finish", "body", is_harmless=True, streams_only=True),
    Fault("engine killed", "process", ("cut", "reset", "refused"), pace_s=0.01),
    Fault("engine frozen", "process", ("stalled", "timeout", "cut", "refused"), waits=True, pace_s=0.02),
)
BY_NAME = {one.name: one for one in FAULTS}
