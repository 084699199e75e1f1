"""The listed path that a request names, or why there is none. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from serving.router.types import Refusal
from serving.targets import QUERY_LIMIT, Target, method_of, normalised

SHOWN_LIMIT = 100  # bytes of a refused path in its error
_SCHEME_AND_HOST = re.compile(rb"^https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A listed path without the service's prefix."""

    target: Target


@lru_cache(maxsize=1024)
def find_target(method: str, raw: bytes, service: str) -> Found | Refusal:
    """The listed path that a request's target names, without the service's prefix; a Refusal for any other.

    raw: as it was sent, with the query.
    """
    raw = _SCHEME_AND_HOST.sub(b"", raw).partition(b"#")[0]  # neither has a meaning for us
    raw_path, _, query = raw.partition(b"?")
    path = normalised(raw_path)
    prefix = "/" + service
    if path is not None and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :]
    allowed = method_of(path) if path is not None else None
    if path is None or allowed is None:
        return _unknown_path(method, raw_path, path or "", service)
    if method != allowed and method != "OPTIONS" and (method, allowed) != ("HEAD", "GET"):
        message = f"{method} is not a method of {path}; send {allowed}"
        return Refusal(405, "method_not_allowed", message, ((b"allow", allowed.encode()),))
    if len(query) > QUERY_LIMIT:
        message = f"a query of {len(query)} bytes exceeds {QUERY_LIMIT}; correct the address"
        return Refusal(400, "bad_query", message)
    try:
        return Found(Target(path, query.decode("latin-1")))
    except ValueError as exc:
        return Refusal(400, "bad_query", f"{exc}; correct the address")


def _unknown_path(method: str, raw: bytes, path: str, service: str) -> Refusal:
    api = f"/{service}/v1"
    parts = path.split("/", 3)
    if len(parts) > 2 and parts[2] == "v1" and parts[1]:
        message = f"service {parts[1]} does not exist here; this router serves {service}, at {api}"
        return Refusal(404, "unknown_service", message)
    shown = raw.decode("latin-1")[:SHOWN_LIMIT]
    message = (
        f"{method} {shown!r} is not a route of {service}; its API is at {api}, as {api}/chat/completions"
    )
    return Refusal(404, "unknown_path", message)
