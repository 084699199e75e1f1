"""What an exchange is given, needs and says: values, and the port to its router. No socket, no clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from serving.messages import AssignedBy, RequestRecord, RouteTable
from serving.router.headers import RawHeaders
from serving.router.outbox import SETTLE_S, Canary


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience, in seconds."""

    connect_s: float = 5.0
    settle_s: float = SETTLE_S  # then a request is recorded as it stands
    canary_stream_s: float = 60.0  # to the first byte of a stream: later it is an error anyhow
    canary_whole_s: float = 300.0  # to the first byte of an answer that comes at once
    stable_s: float = 600.0  # to the first byte
    idle_s: float = 300.0  # between bytes
    table_s: float = 5.0  # for the first table of a router that has just started


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has been read whole."""

    method: str
    path: str  # without the service's prefix
    query: bytes
    headers: RawHeaders
    body: bytes


@dataclass(frozen=True, slots=True)
class Try:
    """Send the request there."""

    arm: int
    url: str  # with path and query
    headers: list[tuple[bytes, bytes]]
    first_byte_s: float  # how long to wait for the first byte


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the router itself."""

    status: int
    code: str
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    retry_after_s: int | None = None  # None: trying again will not help

    def body(self) -> bytes:
        """The error in the shape that OpenAI clients know."""
        kind = "invalid_request_error" if self.status < 500 else "service_unavailable"
        return json.dumps({"error": {"message": self.message, "type": kind, "code": self.code}}).encode()


@dataclass(frozen=True, slots=True)
class Head:
    """Pass this head on; with `hold`, only when the whole body has come."""

    status: int
    headers: list[tuple[bytes, bytes]]
    hold: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """Where the coin sent a request."""

    arm: int
    w: float
    bucket: int | None
    unit: str
    key: str
    assigned_by: AssignedBy
    canary: Canary | None  # what it could have been sent to; None: not drawn


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

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while this canary may be sent requests."""

    def settle(self, record: RequestRecord, *, drawn_s: float, canary: Canary | None) -> None:
        """Takes the one record of a request."""


@dataclass(frozen=True, slots=True)
class Start:
    """How a request began."""

    request_id: str
    request: Request
    table: RouteTable  # the one that drew it
    draw: Draw
    recorded: bool
    streams: bool  # the client asked for a stream
    at_s: float  # wall clock
    now_s: float
