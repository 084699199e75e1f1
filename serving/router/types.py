"""Values that an exchange takes and returns, and its port to the router. No socket, no clock.

Those that every request makes are `msgspec.Struct`s, which are made in a fifth of a frozen dataclass's time;
`gc=False`: none can be part of a cycle, so the garbage collector need not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct, field

from serving.credentials import KeyReference
from serving.messages import AssignedBy, RequestRecord, RouteTable
from serving.router.headers import RawHeaders
from serving.router.health import UpstreamHealth
from serving.router.held import HeldBytes
from serving.router.outbox import SETTLE_S, Canary
from serving.targets import Endpoint, Target

# Paths whose answers hold text, in one JSON object or in a stream that must finish. On others the end of the
# body is enough.
TEXT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
# A second of these is another file or batch, which somebody pays for.
CREATING_PATHS = frozenset({"/v1/files", "/v1/batches"})

# Why an attempt failed. refused: no connection, or refused by the engine's front.  reset: connection broken
# before the head.  cut: it broke after the head.  withheld: not sent, or refused by the fence.  key refused:
# an endpoint answered our API key with 401 or 403.
Failure: TypeAlias = Literal[
    "refused",
    "reset",
    "timeout",
    "cut",
    "withheld",
    "error in the answer",
    "malformed",
    "empty",
    "key refused",
]


@dataclass(frozen=True, slots=True)
class Limits:
    """Timeouts, in seconds."""

    connect_s: float = 5.0
    settle_s: float = SETTLE_S  # after this an open request is recorded as open
    canary_stream_s: float = 60.0  # to the first byte of a stream: later it is an error in any case
    canary_whole_s: float = 300.0  # to the first byte of an answer that is not streamed
    stable_s: float = 600.0  # to the first byte
    lookup_s: float = 15.0  # to the first byte of a replica that may keep what has this id
    lookups_s: float = 60.0  # for all of them together
    idle_s: float = 300.0  # between bytes
    stall_s: float = 30.0  # between bytes: later it is an error on either arm, and the canary is replaced
    tokenize_s: float = 15.0  # until stable has tokenized the prompt of a stream that it takes over
    keep_alive_s: float = 5.0  # after which a client that waits for a held answer gets a comment
    connection_age_s: float = 60.0  # of a kept connection to an engine, which is then closed
    mirror_s: float = 300.0  # for a whole copy of a request to a mirrored canary
    table_s: float = 5.0  # until a router that has just started has its first table
    drain_s: float = 120.0  # for requests under way when the router is told to stop


class Request(Struct, frozen=True, gc=False):
    """A request whose body has been read. Names of headers are in lower case."""

    method: str
    target: Target  # without the service's prefix
    headers: RawHeaders
    body: bytes
    peer: str = ""  # the client's address; empty: not known

    @property
    def path(self) -> str:
        """The listed path, such as /v1/chat/completions."""
        return self.target.path


class Attempt(Struct, frozen=True, gc=False):
    """One HTTP request to one replica."""

    arm: int
    endpoint: Endpoint
    path: str  # with the query, as it is sent there
    headers: list[tuple[bytes, bytes]]
    body: bytes
    first_byte_s: float  # timeout until the first byte
    api_key: KeyReference | None = None  # read when the request is sent; None: the endpoint needs none
    may_be_stale: bool = False  # the peer closes idle connections by its own rule, as our engines do not
    is_fresh: bool = False  # sent on a new connection only, so that it is never sent again (`upstream.py`)

    @property
    def url(self) -> str:
        """Where the request goes, as one text."""
        return f"{self.endpoint.scheme}://{self.endpoint.authority}{self.path}"


# Anthropic's names of errors by their status.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def is_anthropic(target: str) -> bool:
    """True for a path, whatever precedes it and with or without a query, of Anthropic's API."""
    return target.partition("?")[0].rstrip("/").endswith(("/v1/messages", "/v1/messages/count_tokens"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer of the router itself."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after_s: int | None = None  # None: a retry will not help

    def body(self, target: str = "") -> bytes:
        """The error as JSON, in the shape of the API that the request's target belongs to; else OpenAI's."""
        if is_anthropic(target):
            kind = _ANTHROPIC_TYPES.get(self.status)
            kind = kind or ("invalid_request_error" if self.status < 500 else "api_error")
            error = {"type": kind, "message": self.message, "code": self.code}
            return json.dumps({"type": "error", "error": error}).encode()
        kind = "invalid_request_error" if self.status < 500 else "service_unavailable"
        named = {"message": self.message, "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": named}).encode()

    def event(self, target: str) -> bytes:
        """The error as an event of a stream, on which clients of the target's API raise."""
        name = b"event: error\n" if is_anthropic(target) else b""
        return name + b"data: " + self.body(target) + b"\n\n"

    def answer(self, target: str = "") -> Deliver:
        """The error as a whole answer."""
        wait_s = self.retry_after_s
        after = () if wait_s is None else ((b"retry-after", b"%d" % wait_s),)
        return json_answer(self.status, self.body(target), (*after, *self.headers))


class Head(Struct, frozen=True, gc=False):
    """Status and headers for the client."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Step(Enum):
    """What a front does next when the client is sent nothing."""

    HOLD = "wait for the next event of the engine"
    AGAIN = "close this attempt, then ask for the next"


class Deliver(Struct, gc=False):
    """What a front sends to the client now. `then`: more follows; the attempt is closed and the next one is
    made; the body ends; or the connection is broken, so that the client sees a cut."""

    head: Head | None = None  # None: it was sent before
    data: bytes = b""
    then: Literal["more", "again", "end", "break"] = "more"


Action: TypeAlias = Step | Deliver
# Answers a path that is none of a service's (below /-/, /health): status and body; None: it has no such path.
OwnRoutes: TypeAlias = Callable[[str], Awaitable[tuple[int, bytes] | None]]


def json_answer(status: int, body: bytes, headers: RawHeaders = ()) -> Deliver:
    """A whole answer of the router itself, in JSON."""
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Deliver(Head(status, [*own, *headers]), body, "end")


class Assignment(Struct, frozen=True, gc=False):
    """The arm of a request, and how it was chosen."""

    arm: int  # 0 stable, 1 canary
    w: float  # P(canary), 0-1
    bucket: int | None  # 0-9999; None: no rollout in progress
    unit: str  # HMAC of the key
    key: str  # raw; never recorded
    assigned_by: AssignedBy
    canary: Canary | None  # the canary it could have been assigned to; None: not randomised
    is_lookup: bool = False  # the engines are asked in turn for the state of an earlier request
    answer_headers: tuple[tuple[bytes, bytes], ...] = ()  # for the client


class RouterContext(Protocol):
    """What an exchange needs of its router."""

    @property
    def service(self) -> str: ...
    @property
    def router(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def table(self) -> RouteTable | None: ...
    @property
    def in_flight(self) -> dict[str, int]:
        """Requests of this router by address; absent: none."""

    @property
    def vocabularies(self) -> dict[str, str]:
        """Digest of the vocabulary of each version, as its engines named it; absent: not known."""

    @property
    def unfit(self) -> set[str]:
        """Versions whose engines have said of an answer that it cannot be continued."""

    @property
    def unreachable(self) -> Mapping[str, str]:
        """Why no connection can be made, by scheme://host[:port]; absent: one was made last."""

    @property
    def held(self) -> HeldBytes:
        """The budget of held bytes, shared with the other services of a front."""

    @property
    def health(self) -> UpstreamHealth | None:
        """The upstreams that fail; None: the fleet says which replicas are well."""

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while this canary may be sent requests."""

    def on_record(self, record: RequestRecord, *, assigned_s: float, canary: Canary | None) -> None:
        """Accept the one record of a request."""


class Start(Struct, frozen=True, gc=False):
    """How a request began."""

    request_id: str
    request: Request
    table: RouteTable  # by which the arm was assigned
    assignment: Assignment
    is_eligible: bool  # assigned to an arm and recorded
    streams: bool  # the client asked for a stream
    at_s: float  # wall clock
    now_s: float
    bodies: Mapping[str, bytes] = field(default_factory=dict)  # rewritten, by an endpoint's model name
    choices: int | None = 1  # answers that the request asks for; None: not known
    is_continuable: bool = False  # a stream that another engine could continue
    is_background: bool = False  # the answer only names a response that is made later

    @property
    def creates(self) -> bool:
        """Whether it makes something that lasts, of which a repetition would make two."""
        is_job = self.is_background and self.request.path == "/v1/responses"
        return is_job or (self.request.method == "POST" and self.request.path in CREATING_PATHS)

    @property
    def only_200(self) -> bool:
        """Whether only a 200 is an answer to it: of an accepted or a partial one nothing can be read."""
        return self.is_eligible
