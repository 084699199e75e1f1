"""The service and the listed path that a request names, or why there is none. Pure.

A path's prefix, /SERVICE/v1, wins. Without one a router of a single service takes that, and a router of
several the one that the body names as its `model`; what names none needs the prefix.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache

from serving.router.types import Refusal
from serving.targets import QUERY_LIMIT, Target, methods_of, normalised

_MODEL = "/v1/models/"
SHOWN_LIMIT = 100  # bytes of a refused path in its error
_TO_HTTP = ((b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade"))  # a 426 names what is spoken
_SCHEME_AND_HOST = re.compile(rb"^https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A listed path without the service's prefix."""

    target: Target
    service: str | None  # None: several are served, and the path names none


@lru_cache(maxsize=1024)
def find_target(
    method: str, raw: bytes, services: tuple[str, ...], *, is_websocket: bool = False
) -> Found | Refusal:
    """The listed path that a request's target names, without the service's prefix; a Refusal for any other.

    raw: as it was sent, with the query.   services: that the router serves.   is_websocket: the request is
    the handshake of a WebSocket. Where GET is a method the offer is ignored (RFC 9110, 7.8).
    """
    raw = _SCHEME_AND_HOST.sub(b"", raw).partition(b"#")[0]  # neither has a meaning for us
    raw_path, _, query = raw.partition(b"?")
    path = normalised(raw_path)
    service = services[0] if len(services) == 1 else None
    first = path.split("/", 2)[1] if path is not None else ""
    if path is not None and first in services:
        service, path = first, path[len(first) + 1 :]
    allowed = methods_of(path) if path is not None else ()
    if path is None or not allowed:
        return _unknown_path(method, raw_path, path or "", services)
    if method not in allowed and method != "OPTIONS" and not (method == "HEAD" and "GET" in allowed):
        sent = " or ".join(allowed)
        if is_websocket:  # on this status alone Codex goes on by HTTP at once
            message = f"{path} is served over HTTP alone, not over a WebSocket; send {sent} over HTTP"
            return Refusal(426, "upgrade_required", message, _TO_HTTP)
        message = f"{method} is not a method of {path}; send {sent}"
        return Refusal(405, "method_not_allowed", message, ((b"allow", ", ".join(allowed).encode()),))
    if len(query) > QUERY_LIMIT:
        message = f"a query of {len(query)} bytes exceeds {QUERY_LIMIT}; correct the address"
        return Refusal(400, "bad_query", message)
    try:
        return Found(Target(path, query.decode("latin-1")), service)
    except ValueError as exc:
        return Refusal(400, "bad_query", f"{exc}; correct the address")


def query_of(raw: bytes) -> str:
    """The query of a request's target as it was sent; empty: it has none."""
    return raw.partition(b"#")[0].partition(b"?")[2].decode("latin-1")


def service_of_model(found: Found, model: str | None, services: tuple[str, ...]) -> str | Refusal:
    """The service that a request without a prefix names as its model; a Refusal when that is none."""
    path = found.target.path
    if model is None and path.startswith(_MODEL):
        model = path.removeprefix(_MODEL)
    if model in services:
        assert model is not None
        return model
    known = f"services here are {', '.join(services)}"
    if model is None:
        message = f"{path} names no service by its path or model; {known}: send it to /{services[0]}{path}"
        return Refusal(404, "unknown_service", message)
    return Refusal(404, "model_not_found", f"model {model[:SHOWN_LIMIT]!r} does not exist here; {known}")


def model_list(services: tuple[str, ...]) -> bytes:
    """The answer to /v1/models of a router of several services, in OpenAI's shape."""
    models = [{"id": one, "object": "model", "created": 0, "owned_by": "canaryctl"} for one in services]
    return json.dumps({"object": "list", "data": models}).encode()


def _unknown_path(method: str, raw: bytes, path: str, services: tuple[str, ...]) -> Refusal:
    apis = ", ".join(f"/{service}/v1" for service in services)
    parts = path.split("/", 3)
    if len(parts) > 2 and parts[2] == "v1" and parts[1]:
        message = (
            f"service {parts[1]} does not exist here; this router serves {', '.join(services)}, at {apis}"
        )
        return Refusal(404, "unknown_service", message)
    shown = raw.decode("latin-1")[:SHOWN_LIMIT]
    api = f"/{services[0]}/v1"
    message = (
        f"{method} {shown!r} is none of the routes that are passed on to {', '.join(services)} "
        f"(docs/routing.md lists them); its API is at {apis}, as {api}/chat/completions"
    )
    return Refusal(404, "unknown_path", message)
