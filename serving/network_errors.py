"""Why an endpoint could not be asked, in plain words: the one place where a network error becomes a reason.

Invariant: a reason is of a fixed set of words, so that it names no host and quotes no text of an endpoint.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

REFUSED, RESET = "connection refused", "connection reset"
LATE, NO_CONNECTION = "no connection in time", "no connection"
BROKEN_OFF = "it closed the connection before its answer was whole"
UNANSWERED = "it closed the connection without an answer"
NO_HTTP = "it answers what is no HTTP"

BY_NUMBER = {
    errno.ECONNREFUSED: REFUSED,
    errno.EHOSTUNREACH: "no route to it",
    errno.ENETUNREACH: "no route to it",
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.EMFILE: "this process has too many open files",
}
# Of httpx and http.client, by the name: no process imports a client for the sake of its errors alone.
_BY_KIND = {
    "RemoteDisconnected": UNANSWERED,
    "IncompleteRead": BROKEN_OFF,
    "ReadTimeout": "no answer in time",
    "WriteTimeout": "it did not take the request in time",
    "ConnectTimeout": LATE,
    "PoolTimeout": "no connection was free in time",
    "ReadError": "the connection broke off",
    "WriteError": "the connection broke off",
    "ProxyError": "its proxy makes no connection",
    "UnsupportedProtocol": "its URL is neither http nor https",
    "RemoteProtocolError": NO_HTTP,
    "HTTPException": NO_HTTP,
    "DecodingError": "its answer is not compressed as it says",
}


def network_reason(error: BaseException) -> str:
    """Why nothing, or no whole answer, came from an endpoint, in a few words.

    Check: network_reason(ConnectionRefusedError(errno.ECONNREFUSED, "")) is "connection refused".
    """
    found = (_reason_of(one) for one in _causes(error))
    return next((one for one in found if one is not None), NO_CONNECTION)


def _causes(error: BaseException, depth: int = 0) -> Iterator[BaseException]:
    """The error and what it came from: a client's own errors wrap the one of the system."""
    yield error
    inner = error.__cause__ or error.__context__  # also a suppressed one: httpcore raises from None
    if inner is not None and depth < 10:
        yield from _causes(inner, depth + 1)
    if isinstance(error, BaseExceptionGroup) and depth < 10:
        for one in error.exceptions:
            yield from _causes(one, depth + 1)


def _reason_of(error: BaseException) -> str | None:
    """What this error says by itself; None: no more than that there was one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not valid"
    if isinstance(error, ssl.SSLError):
        return "TLS failed; it may not speak https"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "its name cannot be resolved"
    for kind in (one.__name__ for one in type(error).__mro__):
        if kind == "RemoteProtocolError":
            text = str(error)
            return UNANSWERED if "disconnected" in text else BROKEN_OFF if "closed" in text else NO_HTTP
        if kind in _BY_KIND:
            return _BY_KIND[kind]
    if isinstance(error, TimeoutError):
        return LATE
    return BY_NUMBER.get(error.errno or 0) if isinstance(error, OSError) else None
