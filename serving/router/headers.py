"""Which headers pass through the router, and which are its own. Names are compared in lower case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

RawHeaders: TypeAlias = Sequence[tuple[bytes, bytes]]

OWN_PREFIX = b"x-canaryctl-"
# Of one connection, never of the message (RFC 9110, 7.6.1).
_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
# The client's credentials are for us, not for an engine; the rest is set anew for the next connection.
# accept-encoding: a compressed answer could not be read for its finish and usage.
_NOT_FORWARDED = _HOP | frozenset(
    b"host content-length expect authorization x-api-key cookie accept-encoding".split()
)
# The front that answers the client writes its own date and server.
_NOT_RETURNED = _HOP | frozenset(b"date server".split())


def forwarded(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The client's headers that an engine gets."""
    return _without(headers, _NOT_FORWARDED)


def returned(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The engine's headers that the client gets, names in lower case as ASGI wants them."""
    return _without(headers, _NOT_RETURNED)


def value_of(headers: RawHeaders, name: bytes) -> str | None:
    """The first value of a header by its lower-case name; None: it is not there."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def _without(headers: RawHeaders, left_out: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    listed = set(_listed(value for key, value in headers if key.lower() == b"connection"))
    kept = []
    for key, value in headers:
        name = key.lower()
        if name not in left_out and name not in listed and not name.startswith(OWN_PREFIX):
            kept.append((name, value))
    return kept


def _listed(values: Iterable[bytes]) -> Iterable[bytes]:
    """The header names that a Connection header declares to be of this connection only."""
    for value in values:
        for name in value.split(b","):
            yield name.strip().lower()
