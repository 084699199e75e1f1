"""What a request says of the answer that it may be given: whether of nothing, or of events. Pure."""

from __future__ import annotations

import re

from serving.router.headers import coding_of, value_of
from serving.router.types import Request

_EMPTY_LIST = re.compile(rb"\[\s*\]")
_EMPTY_TEXT = b'""'
_LIMIT = b'threshold"'  # below it some servers leave ranks out, perhaps all


def takes_events(request: Request) -> bool:
    """Whether a request that does not ask for a stream in its body may do so elsewhere, or takes one."""
    accepted = value_of(request.headers, b"accept") or ""
    return "stream" in request.target.query or "text/event-stream" in accepted.lower()


def gives_input(request: Request) -> bool:
    """Whether a request for embeddings, ranks, scores or classes gives something to make them of.

    False where that is not known: of a compressed or very large body, and of one in which any list or text
    is empty, or that names a threshold. Such may be answered with nothing."""
    body = request.body
    if not isinstance(body, bytes) or coding_of(value_of(request.headers, b"content-encoding") or ""):
        return False
    return not (_EMPTY_TEXT in body or _LIMIT in body or _EMPTY_LIST.search(body))
