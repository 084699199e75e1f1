"""What router, table actor, records actor, fleet and controller say to one another.

Frozen values only: no clock, no socket, no Ray. Most have `to_json` (a dict of JSON values) and
`from_json`, and `from_json(to_json(x)) == x`. Times that end in `_s` are wall-clock seconds since the
epoch. Weights are integer basis points (0-10000).

Invariant: no message holds a prompt, an answer or a raw key; `unit` is an HMAC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

STABLE = 0
CANARY = 1
FULL_BP = 10_000

# Why a request went where it went. Only 'request' and 'sticky' were drawn by the coin; the others were
# decided without it, for both arms alike, and are never evidence: no-capacity: the canary had no ready
# replica.  fenced: this router could not know that its table still held (its lease had lapsed, or the
# canary was withdrawn before a poll sent after the draw could confirm it).
AssignedBy: TypeAlias = Literal["request", "sticky", "no-capacity", "fenced"]
# answered: by the assigned arm, properly finished.  fallback: the canary failed before its first byte,
# stable served.  fenced: the canary's front refused an old revision, stable served.  cut: the stream ended
# without a proper finish.  failed: the user got an error (5xx, 429).  cancelled: the client went away
# first.  open: it had not ended after SETTLE_S (`recording.py`), when it was told; its end is told nowhere.
Outcome: TypeAlias = Literal["answered", "fallback", "fenced", "cut", "failed", "cancelled", "open"]
# How a split came to hold everywhere. pending: it does not yet.
AppliedHow: TypeAlias = Literal["pending", "acknowledged", "fenced", "lease"]


def _names(cls: type[Any]) -> tuple[str, ...]:
    """The members of a slotted dataclass, in order. `__slots__` is read because `fields` is slow."""
    return tuple(cls.__slots__)


class _Flat:
    """JSON for a dataclass whose members are all JSON values."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """This message as a dict of JSON values, one entry a member."""
        return {name: getattr(self, name) for name in _names(type(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The message that `to_json` wrote. Unknown members are ignored: an older reader still reads."""
        return cls(**{name: data[name] for name in _names(cls) if name in data})


@dataclass(frozen=True, slots=True)
class Replica(_Flat):
    """One address that answers for a version."""

    url: str  # http://127.0.0.1:port, no trailing slash, no /v1
    in_flight: int = 0  # requests inside the engine when the fleet last looked


@dataclass(frozen=True, slots=True)
class Arm:
    """A version and where it answers."""

    version: str
    replicas: tuple[Replica, ...] = ()
    external: bool = False  # somebody else's endpoint: never sent our secret, has no fence

    @property
    def fenced(self) -> bool:
        """True where the version's own front refuses requests of an old revision."""
        return not self.external

    def to_json(self) -> dict[str, Any]:
        """This arm as a dict of JSON values."""
        replicas = [replica.to_json() for replica in self.replicas]
        return {"version": self.version, "replicas": replicas, "external": self.external}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arm:
        """The arm that `to_json` wrote."""
        replicas = tuple(Replica.from_json(one) for one in data["replicas"])
        return cls(data["version"], replicas, bool(data["external"]))


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Who gets what. `(epoch, revision)` names the split; `change` also counts changes of replicas."""

    service: str
    epoch: int  # rises when the table actor restarts
    revision: int  # rises when the split changes
    change: int  # rises at every publication
    rollout: str  # '' when none is under way
    salt: str
    weight_bp: int
    stable: Arm | None  # None: no version has been put into service yet
    canary: Arm | None  # None: no request may start on any canary
    stage: int = 0
    secret: str = field(default="", repr=False)  # engines accept the router by it; keys the HMAC of units

    @property
    def mark(self) -> str:
        """The value of the header x-canaryctl-revision: `epoch.revision`."""
        return f"{self.epoch}.{self.revision}"

    def to_json(self) -> dict[str, Any]:
        """This table as a dict of JSON values, the secret included."""
        data: dict[str, Any] = {name: getattr(self, name) for name in _names(RouteTable)}
        data["stable"] = self.stable.to_json() if self.stable else None
        data["canary"] = self.canary.to_json() if self.canary else None
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RouteTable:
        """The table that `to_json` wrote."""
        values = {name: data[name] for name in _names(cls) if name in data}
        values["stable"] = Arm.from_json(data["stable"]) if data["stable"] else None
        values["canary"] = Arm.from_json(data["canary"]) if data["canary"] else None
        return cls(**values)


def parse_mark(text: str) -> tuple[int, int]:
    """(epoch, revision) of a header value such as `3.17`. Raises ValueError when it is no such thing."""
    epoch, dot, revision = text.partition(".")
    if not (dot and epoch.isdecimal() and revision.isdecimal()):
        raise ValueError(f"revision {text!r} is not of the form epoch.revision")
    return int(epoch), int(revision)


@dataclass(frozen=True, slots=True)
class SplitStatus(_Flat):
    """The split as the table actor sees it now."""

    revision: int
    epoch: int
    rollout: str
    stable: str | None  # None: no version has been put into service yet
    canary: str | None  # None: no canary in the table
    weight_bp: int
    applied: bool  # no request can start under an older split from now on
    how: AppliedHow
    tombstoned: tuple[str, ...] = ()  # rollouts that may never again have a weight above 0
    silenced: bool = False  # the canary was taken out because the controller fell silent
    routers: int = 0  # routers with a live lease
    took_ms: float | None = None  # from publication to applied; None: not applied yet

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SplitStatus:
        """The sight that `to_json` wrote; JSON lists become tuples again."""
        return cls(**{**data, "tombstoned": tuple(data.get("tombstoned", ()))})


@dataclass(frozen=True, slots=True)
class RequestRecord(_Flat):
    """One request, told once, when it has ended or has been open for SETTLE_S.

    Intention to treat: `arm` is the arm that was drawn.
    """

    seq: int  # position in the records log; 0 until the log has taken it
    request_id: str
    answer_id: str | None  # the `id` inside the answer, for feedback; None: none was seen
    unit: str  # HMAC of the key
    bucket: int | None  # 0-9999; None: no rollout under way
    arm: int  # assigned: 0 stable, 1 canary
    w: float  # P(canary) at the draw, 0-1; 0 without a canary
    assigned_by: AssignedBy
    stage: int
    rollout: str
    at_s: float  # when the request had been read whole
    done_at_s: float  # of an open one: when it was no longer waited for
    status: int | None  # what the user got; None: nothing when this was told
    outcome: Outcome
    served_arm: int | None  # who answered, or began to; None: nobody
    error: bool | None  # the assigned version did not answer properly; None: the client went away first
    cause: str | None  # of the error, a fixed word: 'refused', 'status 503', 'cut', 'silent'; None: no error
    # at_s to the last byte, a failed attempt included; None: not answered whole. Of an open one whose answer
    # had begun it is SETTLE_S: it takes longer than that.
    latency_ms: float | None
    ttft_ms: float | None  # at_s to the first byte of a stream; None: not a stream
    itl_ms: float | None  # mean gap between the events of a stream; None: fewer than two
    prompt_tokens: int | None  # None: the answer did not say
    completion_tokens: int | None  # None: the answer did not say
    finish_reason: str | None  # 'stop', 'length', ...; None: the answer did not say
    empty: bool  # a whole answer without any content; an error of its arm
    path: str  # /v1/chat/completions ...
    router: str
    epoch: int
    revision: int
    body_bytes: int | None = None  # of the request, so known before the coin; None: an older router


@dataclass(frozen=True, slots=True)
class ScoreRecord(_Flat):
    """One score of an answer, in the same log as the requests."""

    seq: int
    id: str  # the answer's id or x-canaryctl-request-id
    metric: str
    value: float
    at_s: float


Event: TypeAlias = RequestRecord | ScoreRecord


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """What one router reports at a time. Numbers of one router rise by one; a hole is a lost batch."""

    router: str
    number: int
    records: tuple[RequestRecord, ...]
    low_watermark_s: float  # every request this router assigned before this moment has been reported
    dropped: int = 0  # records given up since the batch before, because the log could not be reached
    last: bool = False  # the router is leaving and has nothing more to tell


@dataclass(frozen=True, slots=True)
class LostSpan(_Flat):
    """Requests assigned in [since_s, until_s) may be missing from the log: drop both arms of that span.

    What the reader had read below its last low watermark is complete, so it may raise `since_s` to that.
    """

    router: str  # '' when the log itself lost its oldest events
    since_s: float  # 0: unknown
    until_s: float


@dataclass(frozen=True, slots=True)
class RecordPage:
    """The next events after a sequence number, oldest first."""

    events: tuple[Event, ...]
    next_seq: int  # pass it as `after_seq` of the next read
    lost: tuple[LostSpan, ...]
    low_watermark_s: float  # all assigned before this moment has been told; 0: more pages follow first
