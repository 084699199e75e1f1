"""What a router is told about a judge, and what it reports of one: numbers and fixed words, no text of users.

Invariant: pure; frozen values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from serving.credentials import DataSecret, KeyReference
from serving.targets import Endpoint


def restore(message: Any, state: list[Any]) -> None:
    """Set a message's fields from what another process pickled; an older release had fewer, at the end."""
    for index, one in enumerate(fields(message)):
        if index < len(state):
            object.__setattr__(message, one.name, state[index])
        elif one.default is not MISSING:
            object.__setattr__(message, one.name, one.default)


@dataclass(frozen=True, slots=True)
class JudgeOrder:
    """Ask this judge of a share of the answers of both versions. In a route table while it is admitted."""

    url: str  # base URL as written
    model: str
    api_key: KeyReference | None  # read by the router when it asks; None: the endpoint needs none
    revision: str  # of the judge as it was examined (`serving.judging.questions`); with another none is asked
    share_bp: int  # of the units, drawn by the rollout's salt before any answer exists; on both arms alike
    metric: str  # of the score that a verdict becomes: 1 right, 0 wrong
    per_minute: int  # questions of one router at most, anchors included; what is beyond it has no verdict
    # Of the engine that canaryctl serves as the judge; url '': it is not there now. None: an endpoint.
    secret: DataSecret | None = None

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    @property
    def is_inside(self) -> bool:
        """Whether the judge is on the cluster or beside it. Raises ValueError for a url that is none."""
        return self.secret is not None or Endpoint.parsed(self.url).is_inside

    def to_json(self) -> dict[str, Any]:
        """As a dict of JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> JudgeOrder | None:
        """The order that `to_json` wrote; None for None."""
        if data is None:
            return None
        secret = data.get("secret")
        given = {**data, "secret": None if secret is None else DataSecret(**secret)}
        return cls(**{**given, "api_key": KeyReference.from_json(data.get("api_key"))})


@dataclass(frozen=True, slots=True)
class JudgeRecord:
    """One question to a judge: of a request's answer, or of an anchor, whose label is known."""

    seq: int  # position in the records log; 0: not in the log yet
    rollout: str
    revision: str  # of the judge
    at_s: float  # wall clock, when its verdict came or was given up
    request_id: str  # '' for an anchor
    label: bool | None  # an anchor's: True: it is bad; None: not an anchor
    bad: bool | None  # the verdict; None: there is none
    # Why there is none, a fixed word; None: there is one.  no answer: the assigned arm gave none whole at the
    # first attempt.  timeout.  unreadable: the request, or what the judge said.  over budget: beyond
    # `per_minute`.  judge too slow: within it, and too many wait.  no judge: it fails, or is another than
    # examined.  stopped.
    cause: str | None
    tokens: int  # of question and answer, as the endpoint counts them
    router: str
    # Of a mirrored pair: whether stable's answer is bad, and the canary's; None: no verdict. None: of none.
    pair: tuple[bool | None, bool | None] | None = None
    unit: str = ""  # of a pair: HMAC of its request's key
    assigned_at_s: float = 0.0  # of a pair: wall clock, when its request was assigned

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)
