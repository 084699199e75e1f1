"""Header filters of the router, both ways. Names come in lower case, as the parsers give them."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from serving.engine_headers import VIA_HEADER

RawHeaders: TypeAlias = Sequence[tuple[bytes, bytes]]

HEADERS_LIMIT = 200  # lines of a request's head, and of an answer's with its trailers
OWN_PREFIX = b"x-canaryctl-"
REQUEST_ID = b"x-request-id"
REASONS = {
    101: b"Switching Protocols",
    200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content", 206: b"Partial Content",
    301: b"Moved Permanently", 302: b"Found", 304: b"Not Modified", 307: b"Temporary Redirect",
    308: b"Permanent Redirect", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden",
    404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
    413: b"Content Too Large", 415: b"Unsupported Media Type", 422: b"Unprocessable Content",
    426: b"Upgrade Required", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
    500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout", 508: b"Loop Detected",
}  # fmt: skip
# Hop-by-hop headers (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_OF_CONNECTION = _HOP_BY_HOP | {b"content-length"}
# Of clients' API keys, in the order in which they are read (`assignment/client_keys.py`).
KEY_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
# The client's credentials are for the router, not for an engine; the others are set for the next connection.
# accept-encoding: a compressed answer could not be scanned for its finish and usage.
# x-request-id: engines make the answer's id from it, which is unique only if the router chooses it.
NOT_FORWARDED = _HOP_BY_HOP | frozenset(
    (*KEY_HEADERS, *b"host content-length expect cookie accept-encoding x-request-id".split())
)
VIA_LIMIT = 32  # routers, one behind the other
_VIA = re.compile(r"[0-9a-f]{16}(?:,[0-9a-f]{16})*")
_NO_CONTROLS = re.compile(rb"[^\x00-\x1f\x7f]*")
# Ends the head of a WebSocket's handshake, and of the answer that accepts it.
TO_WEBSOCKET = b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"
CLAUDE_SESSION_HEADER = b"x-claude-code-session-id"  # what Claude Code calls it
# Then what other agents call it: opencode, Codex.
SESSION_HEADERS = (
    b"x-session-id", CLAUDE_SESSION_HEADER, b"x-opencode-session", b"x-session-affinity", b"session-id",
    b"session_id",
)  # fmt: skip
_SESSIONS = frozenset(SESSION_HEADERS)
# What an external endpoint is sent of a request: what says how its body is read and answered. Nothing else:
# browsers, proxies and CDNs add what names users and opens their accounts (`x-forwarded-access-token`), and
# what endpoints refuse (a foreign `origin`, another's `cf-connecting-ip`). A raw session id stays here, too.
# `openai-organization` and its like say whose bill a client's own key goes to, which no endpoint is sent.
_SENT_OUT = frozenset(
    b"accept content-type content-encoding user-agent cache-control prefer range if-match if-none-match "
    b"if-range if-modified-since if-unmodified-since idempotency-key x-idempotency-key openai-beta "
    b"anthropic-version anthropic-beta x-anthropic-beta extra-parameters".split()
)
# Of OpenAI's and Anthropic's clients.
_SENT_OUT_PREFIXES: tuple[bytes, ...] = (b"x-stainless-", b"x-amzn-bedrock-guardrail")
# What an engine of ours is sent beside that: the page that asks, whose trace and session it is, and a
# WebSocket's handshake. A list of what may pass, not of what may not: vLLM obeys headers that harm others
# (`x-vllm-priority`: to go first; `x-data-parallel-rank`: all to one rank; `endpoint-load-metrics-format`: to
# see how full it is), the next release has further ones, and its server believes `x-forwarded-for`.
_SENT_TO_ENGINES = _SENT_OUT | frozenset(
    b"origin accept-language traceparent tracestate x-session-id".split()
)
_SENT_TO_ENGINES_PREFIXES: tuple[bytes, ...] = (*_SENT_OUT_PREFIXES, b"sec-websocket-")
# The router's HTTP server writes its own date and server. A location would name an engine's private address;
# the others speak of an endpoint's own origin, which clients would take for the router's.
_NOT_RETURNED = _HOP_BY_HOP | frozenset(
    b"date server location content-location set-cookie alt-svc strict-transport-security clear-site-data nel "
    b"report-to reporting-endpoints content-security-policy content-security-policy-report-only "
    b"endpoint-load-metrics".split()  # how full an engine is (ORCA)
)
# Of an external endpoint: they name the operator's account there, and the way to it.
_NOT_RETURNED_FROM_OUTSIDE = _NOT_RETURNED | frozenset(
    b"openai-organization openai-project anthropic-organization-id anthropic-workspace-id via "
    b"www-authenticate x-ms-region azureml-model-session x-litellm-model-api-base".split()
)
_NOT_RETURNED_PREFIXES = (b"cf-", b"x-litellm-key-")
ALLOW_ORIGIN = b"access-control-allow-origin"
# A page may send other bodies only after its browser has asked (Fetch, 'CORS-safelisted request-header').
_SENT_UNASKED = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain", "")


def forwarded(headers: RawHeaders, *, is_external: bool) -> list[tuple[bytes, bytes]]:
    """The client's headers that are sent to an engine. is_external: one that canaryctl does not run."""
    names, prefixes = _SENT_TO_ENGINES, _SENT_TO_ENGINES_PREFIXES
    if is_external:
        names, prefixes = _SENT_OUT, _SENT_OUT_PREFIXES
    kept = _without(headers, NOT_FORWARDED)
    return [one for one in kept if one[0] in names or one[0].startswith(prefixes)]


def returned(
    headers: RawHeaders, *, request_id: str | None, is_external: bool = False
) -> list[tuple[bytes, bytes]]:
    """The engine's headers that are sent to the client, names in lower case as ASGI requires.

    request_id: the client's own x-request-id, which it gets back; None: it sent none.
    """
    kept = _without(headers, _NOT_RETURNED_FROM_OUTSIDE if is_external else _NOT_RETURNED)
    if is_external:
        kept = [one for one in kept if not one[0].startswith(_NOT_RETURNED_PREFIXES)]
    if request_id is None:
        return kept
    others = [(name, value) for name, value in kept if name != REQUEST_ID]
    return [*others, (REQUEST_ID, request_id.encode("latin-1"))]


def for_pages(asked: RawHeaders, kept: RawHeaders) -> list[tuple[bytes, bytes]]:
    """What lets a page of another origin read an external endpoint's answer; empty: it says so itself.

    The endpoint is not told of the page (`forwarded`), so it says nothing to it. What a browser sends only
    after a preflight was allowed, by stable; a request that needs none may be of any page.
    """
    is_told = value_of(asked, b"origin") is None or value_of(kept, ALLOW_ORIGIN) is not None
    if is_told or content_type(asked).partition(";")[0].strip() in _SENT_UNASKED:
        return []
    return [(ALLOW_ORIGIN, b"*")]


def forwarded_whole(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The client's headers that are sent to another front of ours: all but those of the connection."""
    return [(name, value) for name, value in headers if name.lower() not in _OF_CONNECTION]


def returned_whole(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The headers of such a front that are sent to the client, names in lower case."""
    return [(name.lower(), value) for name, value in headers if name.lower() not in _OF_CONNECTION]


def value_of(headers: RawHeaders, name: bytes) -> str | None:
    """The first value of a header by its lower-case name; None: absent."""
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def session_of(headers: RawHeaders, *, is_messages: bool) -> str | None:
    """The session that the headers name: the first of SESSION_HEADERS that is not blank; None: none is.

    is_messages: the request is of Anthropic's API; only there does Claude Code's count.
    """
    found: dict[bytes, str] = {}
    for key, value in headers:
        if key in _SESSIONS and key not in found and (is_messages or key != CLAUDE_SESSION_HEADER):
            found[key] = value.decode("latin-1").strip()
    if found:
        for name in SESSION_HEADERS:
            if session := found.get(name):
                return session
    return None


def values_of(headers: RawHeaders, name: bytes) -> list[str]:
    """Every value of a header by its lower-case name, in order."""
    return [value.decode("latin-1") for key, value in headers if key == name]


def coding_of(value: str) -> str:
    """What a content-encoding says is done to a body; empty: nothing. Check: 'GZIP, identity' is 'gzip'."""
    named = (one.strip() for one in value.lower().split(","))
    return ", ".join(one for one in named if one not in ("", "identity"))


def content_type(headers: RawHeaders) -> str:
    """The content type in lower case, with its parameters; empty: there is none."""
    return (value_of(headers, b"content-type") or "").lower()


def is_websocket(headers: RawHeaders) -> bool:
    """True for the headers of a WebSocket's handshake, which is a GET (`request_parser.py` asks for both)."""
    upgrade = (value_of(headers, b"upgrade") or "").strip().lower()
    tokens = ",".join(values_of(headers, b"connection")).lower().split(",")
    return upgrade == "websocket" and "upgrade" in (one.strip() for one in tokens)


def is_preflight(method: str, headers: RawHeaders) -> bool:
    """True for a browser's question whether a page may send a request (CORS); it has no body."""
    if method != "OPTIONS":
        return False
    names = {name for name, value in headers if (name, value) != (b"content-length", b"0")}
    is_asked = {b"origin", b"access-control-request-method"} <= names
    return is_asked and not names & {b"content-length", b"transfer-encoding"}


def of_preflight(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """The headers that a preflight is made of: whoever sent it has shown no right to ask anything else."""
    return [
        (name, value)
        for name, value in headers
        if name == b"origin" or name.startswith(b"access-control-request-")
    ]


def own_header(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header of the router's own, of a text that is not. Raises ValueError for one that ends the line."""
    if not _NO_CONTROLS.fullmatch(value):
        raise ValueError(f"{name.decode()}: {value[:80]!r} holds what no header can hold")
    return name, value


def hop_of(router: str, service: str) -> str:
    """The name of a service's router among those that a request has passed, of which it tells nothing."""
    return hashlib.blake2b(f"{router}\n{service}".encode(), digest_size=8).hexdigest()


def via_of(headers: RawHeaders, hop: str) -> bytes | None:
    """Through which routers a request has come, this one (`hop`) included; None: it has passed it before.

    So has one through VIA_LIMIT routers: it may go round among some of which each forgets the others.
    """
    before = value_of(headers, VIA_HEADER)
    if before is None or not _VIA.fullmatch(before):  # not of a router
        return hop.encode()
    passed = before.split(",")
    return None if hop in passed or len(passed) >= VIA_LIMIT else f"{before},{hop}".encode()


def lines_of(headers: RawHeaders) -> list[bytes]:
    """The headers as they are written, in pieces."""
    lines: list[bytes] = []
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    return lines


def _without(headers: RawHeaders, excluded: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers but for these, our own, and those that a connection header names."""
    kept, connection = [], b""
    for header in headers:
        name = header[0]
        if name in excluded:
            if name == b"connection":
                connection += b"," + header[1]
        elif not name.startswith(OWN_PREFIX):
            kept.append(header)
    if not connection or connection.lower() in (b",keep-alive", b",close"):
        return kept
    only = {name.strip().lower() for name in connection.split(b",")}
    return [header for header in kept if header[0] not in only]


@lru_cache(maxsize=2)
def date_line(now_s: int) -> bytes:
    """The date header of this second, with its line end."""
    return time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now_s)).encode()
