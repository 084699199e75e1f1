"""Messages between router, table actor, records actor, fleet and controller.

Frozen values only: no clock, no socket, no Ray. Times in `_s` are wall-clock seconds since the epoch, weights
integer basis points (0-10000).

Invariant: no message holds a prompt, an answer or a raw key; `unit` is an HMAC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias, TypeVar

from serving.access import Access, Affinity, LateCommit
from serving.answer_signals import Signals
from serving.credentials import DataSecret, KeyReference, UnitKey
from serving.judge_messages import JudgeOrder, JudgeRecord, restore

STABLE = 0
CANARY = 1
# Finish reasons of an answer that was cut at its token limit, in the words of the served APIs.
LIMIT_REASONS = frozenset({"length", "max_tokens", "MAX_TOKENS", "max_output_tokens"})
FULL_BP = 10_000
ANSWER_ID_LIMIT = 256  # characters; a longer id is not recorded, and cannot be voted on

# How a request was assigned. These are randomised, by request or by key; the others are excluded from the
# evidence, for both arms alike.
#   request, sticky: by the request itself, or by its key.
#   conversation, heavy: its key is heavy, so it was drawn by its conversation, or by the request itself.
#   pinned: by the affinity token of an earlier draw, to which it belongs; no draw of its own.
#   forced: by x-canaryctl-force.
#   stateful: it needs what one engine holds of an earlier request, and goes there.
#   capped: a burst cap held, or the router was overloaded, so nothing was drawn.
#   no-capacity: the canary had no ready replica, or did not answer and this may be sent but once.
#   fenced: the router could not confirm that its table was current (its lease had expired, or the canary was
#   withdrawn before a poll sent after the assignment could confirm it).
AssignedBy: TypeAlias = Literal[
    "request",
    "sticky",
    "conversation",
    "heavy",
    "pinned",
    "forced",
    "stateful",
    "capped",
    "no-capacity",
    "fenced",
]
# answered: by the assigned arm, properly finished.  fallback: the canary failed before its first byte,
# stable served.  fenced: the canary's front refused an old revision, stable served.  cut: the stream ended
# without a proper finish.  failed: the user got an error (5xx, 429).  cancelled: the client disconnected
# first.  open: not ended after SETTLE_S (`router/types.py`) and recorded then; its end is not recorded.
# Of a stream that the canary cut in mid-answer and stable continued the outcome is 'fallback' too, and
# `takeover_at` is set.
Outcome: TypeAlias = Literal["answered", "fallback", "fenced", "cut", "failed", "cancelled", "open"]
# How it became certain that no request can start under an older split. pending: not certain yet.
AppliedHow: TypeAlias = Literal["pending", "acknowledged", "fenced", "lease"]


_T = TypeVar("_T")


def unfrozen(frozen: type[_T]) -> type[_T]:
    """A class whose objects have the same fields and can be changed until `made.__class__ = frozen`.

    A frozen dataclass sets its fields through object.__setattr__: 4 us for the 35 of a record, here 0.6 us.
    """
    defaults = {one.name: one.default for one in fields(frozen) if one.default is not MISSING}  # type: ignore[arg-type]
    body = {"__annotations__": frozen.__annotations__, **defaults}
    return dataclass(slots=True, eq=False, repr=False)(type(f"Unfrozen{frozen.__name__}", (), body))


@dataclass(frozen=True, slots=True)
class Replica:
    """Address of one replica of a version."""

    url: str  # http://127.0.0.1:port, or an endpoint's base URL as written; no trailing slash
    in_flight: int = 0  # requests inside the engine as of the fleet's last report


@dataclass(frozen=True, slots=True)
class Arm:
    """A version and its replicas."""

    version: str
    replicas: tuple[Replica, ...] = ()
    external: bool = False  # an endpoint that canaryctl does not run: never sent the secret, has no fence
    model: str | None = (
        None  # name of the model there, which replaces the client's; None: as the client wrote
    )
    api_key: KeyReference | None = None  # of an external endpoint; None: it needs none
    takes_priority: bool = False  # its engines schedule by the body's `priority`

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def idle(self) -> Arm:
        """The same addresses without their load, which is outdated when it is read again."""
        return replace(self, replicas=tuple(Replica(one.url) for one in self.replicas))

    @property
    def has_fence(self) -> bool:
        """True when the version's replicas have a front that refuses requests of an old revision."""
        return not self.external

    def to_json(self) -> dict[str, Any]:
        """This arm as a dict of JSON values. Not by `asdict`, which is slow: this runs at every poll."""
        replicas = [{"url": replica.url, "in_flight": replica.in_flight} for replica in self.replicas]
        api_key = None if self.api_key is None else asdict(self.api_key)
        named = {"version": self.version, "replicas": replicas, "external": self.external}
        named |= {"model": self.model, "api_key": api_key}
        return {**named, "takes_priority": True} if self.takes_priority else named

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Arm:
        """The arm that `to_json` wrote."""
        replicas = tuple(Replica(one["url"], one.get("in_flight", 0)) for one in data["replicas"])
        api_key = KeyReference.from_json(data.get("api_key"))
        takes_priority = bool(data.get("takes_priority", False))
        return cls(
            data["version"], replicas, bool(data["external"]), data.get("model"), api_key, takes_priority
        )


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Route table of one service. `(epoch, revision)` identifies the split; `change` also counts replicas."""

    service: str
    epoch: int  # rises when the table actor restarts
    revision: int  # rises when the split changes
    change: int  # rises at every publication
    rollout: str  # '' when none is in progress
    salt: str
    weight_bp: int
    stable: Arm | None  # None: no version has been put into service yet
    canary: Arm | None  # None: no request may start on any canary
    stage: int = 0
    secret: DataSecret | None = None  # None: the table of a file, whose upstreams are all external
    unit_key: UnitKey | None = None  # names the rollout's units; None: each router has one of its own
    late_commit: LateCommit = "hold"
    access: Access | None = None  # None: no client has a key, an audience or a category
    affinity: Affinity | None = None  # None: no affinity tokens
    generation: str = ""  # rises whenever a canary is put in: tokens hold within one
    heavy: frozenset[str] = frozenset()  # units that are drawn by conversation or by request instead
    burst_cap: float | None = None  # canary requests expected in any 10 s at each router; None: no cap
    mirror: Arm | None = None  # gets copies of stable's requests, whose answers nobody is shown; None: nobody
    mirror_bp: int = 0  # share of stable's requests that are copied
    judge: JudgeOrder | None = None  # None: no judge is asked

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The versions of the table, stable first: none, one or two."""
        return tuple(arm for arm in (self.stable, self.canary) if arm is not None)

    @property
    def largest_bp(self) -> int:
        """The largest weight that any client can have."""
        return self.weight_bp if self.access is None else max(self.weight_bp, self.access.largest_bp)

    @property
    def table_revision(self) -> str:
        """Value of the header x-canaryctl-revision: `epoch.revision`."""
        return f"{self.epoch}.{self.revision}"


@dataclass(frozen=True, slots=True)
class UnitCounts:
    """A router's requests by unit since its last report, by far not of every unit."""

    rollout: str  # in which units have these names
    requests: int  # of all units
    units: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatabaseMark:
    """How far the database was from which a controller acted on a service last.

    A database that does not lead to the mark, as an older copy, does not know what was done since.
    """

    token: int  # of the controller's lease
    holder: str  # short name of the lease's holder: two databases may have given the same token
    seq: int  # number of the newest event of the service
    event: str = ""  # digest of that event: a restored database gives its number again; empty: there is none

    @classmethod
    def from_json(cls, data: Sequence[Any] | None) -> DatabaseMark | None:
        """The mark of `as_json`; None: there is none."""
        return None if data is None else cls(int(data[0]), str(data[1]), int(data[2]), *map(str, data[3:4]))

    def as_json(self) -> list[Any]:
        """The values, for JSON."""
        return [self.token, self.holder, self.seq, self.event]


@dataclass(frozen=True, slots=True)
class SplitStatus:
    """The current split, and how far it is applied."""

    revision: int
    epoch: int
    rollout: str
    stable: str | None  # None: no version has been put into service yet
    canary: str | None  # None: no canary in the table
    weight_bp: int
    applied: bool  # no request can start under an older split any more
    how: AppliedHow
    tombstoned: tuple[str, ...] = ()  # rollouts that may never again have a weight above 0
    silenced: bool = False  # the canary was withdrawn because the controller sent no heartbeat
    routers: int = 0  # routers with a lease
    took_ms: float | None = None  # from publication to applied; None: not applied yet
    mirror_bp: int = 0  # share of stable's requests of which the canary gets a copy
    mark: DatabaseMark | None = None  # None: no controller left one

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One of several attempts of a request."""

    arm: int
    replica: str  # its address
    cause: str | None  # why it was not the last; None: it answered, or the client left
    tokens: int = 0  # that the client has of it, where the engine names them


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, recorded once, when it has ended or has been open for SETTLE_S.

    Intention to treat: `arm` is the assigned arm, whichever arm served.
    """

    seq: int  # position in the records log; 0: not in the log yet
    request_id: str
    answer_id: str | None  # the `id` inside the answer, for feedback; None: not found
    unit: str  # HMAC of the key
    bucket: int | None  # 0-9999; None: no rollout in progress
    arm: int  # assigned: 0 stable, 1 canary
    w: float  # P(canary) at the assignment, 0-1; 0 without a canary
    assigned_by: AssignedBy
    stage: int
    rollout: str
    at_s: float  # when the whole request had been read
    done_at_s: float  # of an open one: its deadline
    status: int | None  # sent to the client; None: nothing when this was recorded
    outcome: Outcome
    served_arm: int | None  # whose answer the client got, or began to get; None: neither
    # The first attempt on the assigned arm did not answer properly, whatever a repeat did; None: the client
    # disconnected first. A 4xx (not 429) is no error but `rejected`.
    error: bool | None
    # Of error or rejection, a fixed word: 'refused', 'status 503', 'cut', 'silent'.
    cause: str | None
    # at_s to the last byte, without `connect_ms`, failed attempts included; None: no whole answer, or
    # rejected. SETTLE_S, a lower bound, for an open one whose answer had begun.
    latency_ms: float | None
    ttft_ms: float | None  # at_s to the first content, without `connect_ms`; None: not a stream
    itl_ms: float | None  # mean gap between the events of a stream; None: fewer than two
    prompt_tokens: int | None  # None: not in the answer
    completion_tokens: int | None  # None: not in the answer
    finish_reason: str | None  # 'stop', 'length', ...; None: not in the answer
    empty: bool  # a whole answer without any content; an error of its arm
    path: str  # /v1/chat/completions ...
    router: str
    epoch: int
    revision: int
    body_bytes: int | None = None  # of the request, known before assignment; None: an older router
    rejected: bool | None = None  # the first attempt answered 4xx, not 429; None: `error` is, or older
    retries: int = 0  # attempts after the first, on both arms; `outcome` and `served_arm` tell what they did
    attempts: tuple[AttemptRecord, ...] = ()  # in order; (): one, which answered, or an older router
    # Tokens that the client had when its stream was cut and was to be continued; None: it was not.
    takeover_at: int | None = None
    taken_over_by: int | None = None  # the arm that continued; None: none
    # Of a canary's answer: whether a failure at any moment of it would have stayed invisible to the client.
    # None: of stable, no answer, or an older router.
    covered: bool | None = None
    # For which the first attempt waited for its connection (name, TCP, TLS), about 0 on one that was open; in
    # no other time of the record. None: it was never sent, or an older router.
    connect_ms: float | None = None
    # Of an answer that the assigned arm gave whole at the first attempt; None: there is none, or not read.
    signals: Signals | None = None
    version: str | None = None  # of the assigned arm; None: none was in the table, or an older router
    judged: bool = False  # its unit is among those of which a judge is asked, whatever the answer
    cached_tokens: int | None = None  # of the prompt, from a cache; None: not in the answer, or older

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)


@dataclass(frozen=True, slots=True)
class ScoreRecord:
    """A score of an answer, in the same log as the requests."""

    seq: int
    id: str  # the answer's id or x-canaryctl-request-id
    metric: str
    value: float
    at_s: float


# ok: the copy was answered whole.  failed: it was not.  withheld: not sent, or refused by the fence, as the
# table had changed; says nothing about the version.
MirrorOutcome: TypeAlias = Literal["ok", "failed", "withheld"]


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """A copy of one of stable's requests, sent to the canary; nobody was shown its answer.

    Written once, when the copy has ended. Stable's answer to the request itself was whole. It is no request
    of either arm: no draw, no evidence of a live gate.
    """

    seq: int  # as of a RequestRecord
    request_id: str  # of the request that was copied
    unit: str  # its HMAC of the key
    rollout: str
    at_s: float  # when the copy had ended
    path: str
    outcome: MirrorOutcome
    cause: str | None  # why it was not answered whole, a fixed word: 'timeout', 'status 500', 'too large'
    status: int | None  # of the canary's answer; None: none
    latency_ms: float | None  # from the copy's sending to its last byte; None: not ok
    stable_latency_ms: float  # of the request itself, as its client saw it
    completion_tokens: int | None  # None: not in the answer
    stable_completion_tokens: int | None
    finish_reason: str | None
    stable_finish_reason: str | None
    same_text: bool | None  # both answers say the same; None: not ok, or not comparable
    router: str
    epoch: int
    revision: int
    prompt_tokens: int | None = None  # of the canary's answer; None: not in it, or an older router

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)


Event: TypeAlias = RequestRecord | ScoreRecord | MirrorRecord | JudgeRecord


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records of one router. Its numbers rise by one; a gap is a lost batch."""

    router: str
    number: int
    records: tuple[RequestRecord, ...]
    low_watermark_s: float  # every request this router assigned before this moment has been reported
    dropped: int = 0  # records dropped since the previous batch, because the log was unreachable
    last: bool = False  # the router is shutting down; no batch follows
    mirrored: tuple[MirrorRecord, ...] = ()  # the watermark says nothing about them
    verdicts: tuple[JudgeRecord, ...] = ()  # nor about these, nor the feedback of users at the router:
    scores: tuple[ScoreRecord, ...] = ()

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)


@dataclass(frozen=True, slots=True)
class LostSpan:
    """Requests assigned in [since_s, until_s) may be missing from the log: drop both arms of that span. What
    was read below the last low watermark is complete, so a reader may raise `since_s` to that."""

    router: str  # '' when the log itself lost its oldest events
    since_s: float  # 0: unknown
    until_s: float


@dataclass(frozen=True, slots=True)
class RecordPage:
    """The next events after a sequence number, oldest first."""

    events: tuple[Event, ...]
    # Pass it as `after_seq` of the next read. Lower than that of this one: the log began anew.
    next_seq: int
    lost: tuple[LostSpan, ...]
    low_watermark_s: float  # every request assigned before this has been reported; 0: more pages follow
    # When the newest request that the log no longer holds was assigned; None: it holds every one.
    dropped_s: float | None = None

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)
