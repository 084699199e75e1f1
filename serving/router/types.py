"""Values of the router: limits, requests, attempts, answers and errors. No socket, no clock.

Those that every request makes are `msgspec.Struct`s, which are made in a fifth of a frozen dataclass's time;
`gc=False`: none can be part of a cycle, so the garbage collector need not look at them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from msgspec import Struct

from serving.credentials import KeyReference
from serving.messages import AssignedBy
from serving.router.headers import RawHeaders, value_of
from serving.targets import COHERE_CHAT, Endpoint, Target

SETTLE_S = 60.0  # the longest wait for the end of a request
Canary: TypeAlias = tuple[str, str]  # (rollout, version)

# Paths whose answers hold embeddings, ranks, scores or classes, or several chats: a whole one has some.
VALUE_PATHS = frozenset(
    {
        *("/v1/embeddings", "/v2/embed", "/v1/score", "/score", "/generative_scoring", "/pooling"),
        *("/classify", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/chat/completions/batch"),
    }
)
# What is replaced or scaled down inside Serve (a router, HAProxy's configuration) waits so long for streams.
LONGEST_STREAM_S = 3600

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


LARGE_BODY = 1 << 20  # bytes; from here on a body stays in pieces, and another process reads it


class Pieces:
    """A large body, in pieces of `PIECE` bytes or somewhat more: neither to collect nor to send it takes a
    copy of the whole, which would stop all streams for its time. `bytes` makes one."""

    __slots__ = ("_pieces", "_size")

    PIECE = 256 << 10

    def __init__(self, first: bytes = b"") -> None:
        self._pieces = [bytearray(first)]
        self._size = len(first)

    def add(self, data: bytes) -> None:
        """Append these bytes."""
        last = self._pieces[-1]
        if len(last) < self.PIECE:
            last += data
        else:
            self._pieces.append(bytearray(data))
        self._size += len(data)

    @property
    def body(self) -> Body:
        """These bytes: in one, unless they are a large body."""
        return self if self._size >= LARGE_BODY else bytes(self)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytearray]:
        return iter(self._pieces)

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)


Body: TypeAlias = bytes | Pieces  # of a request


def pieces_of(body: Body) -> Iterable[bytes | bytearray]:
    """The body in parts that are written at once."""
    return (body,) if isinstance(body, bytes) else body


@dataclass(frozen=True, slots=True)
class Limits:
    """Timeouts, in seconds."""

    connect_s: float = 5.0
    settle_s: float = SETTLE_S  # after this an open request is recorded as open
    # To the canary's first byte of a stream, and of an answer that is none. Later it is an error on either
    # arm, and the canary is replaced.
    canary_stream_s: float = 60.0
    canary_whole_s: float = 300.0
    stable_s: float = 600.0  # to the first byte
    lookup_s: float = 15.0  # to the first byte of a replica that may keep what has this id
    lookups_s: float = 60.0  # for all of them together
    idle_s: float = 300.0  # between bytes of any kind
    stall_s: float = 30.0  # between events: later it is an error on either arm, and the canary is replaced
    tokenize_s: float = 15.0  # until stable has tokenized the prompt of a stream that it takes over
    keep_alive_s: float = 5.0  # after which a client that waits for a stream gets a comment or a ping
    connection_age_s: float = 60.0  # of a kept connection to an engine, which is then closed
    mirror_s: float = 300.0  # for a whole copy of a request to a mirrored canary
    table_s: float = 5.0  # until a router that has just started has its first table
    drain_s: float = 120.0  # for requests under way when the router is told to stop
    client_idle_s: float = 75.0  # between two requests of a client's connection


class Request(Struct, frozen=True, gc=False):
    """A request whose body has been read. Names of headers are in lower case."""

    method: str
    target: Target  # without the service's prefix
    headers: RawHeaders
    body: Body
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
    body: Body
    first_byte_s: float  # timeout until the first byte
    api_key: KeyReference | None = None  # read when the request is sent; None: the endpoint needs none
    may_be_stale: bool = False  # the peer closes idle connections by its own rule, as our engines do not
    is_fresh: bool = False  # sent on a new connection only, of which no reset is forgiven (`upstream.py`)

    @property
    def url(self) -> str:
        """Where the request goes, as one text."""
        return self.endpoint.origin + self.path


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
        if target.partition("?")[0].rstrip("/").endswith(COHERE_CHAT):
            delta = {"finish_reason": "ERROR", "error": f"{self.message} ({self.code})"}
            return b"data: " + json.dumps({"type": "message-end", "delta": delta}).encode() + b"\n\n"
        name = b"event: error\n" if is_anthropic(target) else b""
        return name + b"data: " + self.body(target) + b"\n\n"

    @property
    def names_services(self) -> bool:
        """True for an error that lists the services."""
        return self.code in ("unknown_path", "unknown_service", "model_not_found")

    def answer(self, target: str = "", asked: RawHeaders = ()) -> Deliver:
        """The error as a whole answer. asked: the headers of the request."""
        wait_s = self.retry_after_s
        after = () if wait_s is None else ((b"retry-after", b"%d" % wait_s),)
        # What a page may read is a client's own fault: nothing of what stands behind the router.
        is_readable = self.status < 500 and not self.names_services
        if is_readable and value_of(asked, b"origin") is not None:
            after = (*after, (b"access-control-allow-origin", b"*"))
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


def overloaded(why: str) -> Refusal:
    """429 for what would be too much now."""
    return Refusal(429, "overloaded", f"{why}; retry", retry_after_s=1)


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
