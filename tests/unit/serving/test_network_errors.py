"""Network errors in plain words, whichever client they come from."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl

import httpx
import pytest

from serving.network_errors import network_reason


def wrapped(outer: Exception, inner: BaseException) -> Exception:
    """The outer one, raised from the inner one as clients do."""
    outer.__cause__ = inner
    return outer


REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 9)")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (REFUSED, "connection refused"),
        (wrapped(httpx.ConnectError("All connection attempts failed"), REFUSED), "connection refused"),
        (
            wrapped(httpx.ConnectError("all"), wrapped(OSError("all"), ExceptionGroup("", [REFUSED]))),
            "connection refused",
        ),
        (wrapped(httpx.ConnectError("x"), socket.gaierror(-2, "secret.host")), "its name cannot be resolved"),
        (wrapped(httpx.ConnectError("x"), ssl.SSLError("x")), "TLS failed; it may not speak https"),
        (httpx.ConnectError("x"), "no connection"),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), "it closed the "
         "connection without an answer"),
        (httpx.RemoteProtocolError("peer closed connection without sending complete message body"), "it "
         "closed the connection before its answer was whole"),
        (httpx.RemoteProtocolError("illegal status line"), "it answers what is no HTTP"),
        (httpx.ReadError(""), "the connection broke off"),
        (httpx.ReadTimeout(""), "no answer in time"),
        (http.client.RemoteDisconnected("x"), "it closed the connection without an answer"),
        (http.client.BadStatusLine("x"), "it answers what is no HTTP"),
        (TimeoutError(), "no connection in time"),
    ],
)  # fmt: skip
def test_a_network_error_is_told_in_plain_words(error: Exception, reason: str) -> None:
    assert network_reason(error) == reason
