"""How long a request of a client may take to arrive, in seconds."""

from __future__ import annotations

from serving.router.front.request_parser import RequestParser
from serving.router.types import Refusal

HEAD_S = 20.0  # from a head's first byte to its last
BODY_S = 300.0  # from a request's first byte to its last
LINGER_S = 2.0  # how long what a refused client still sends is read, so that it gets the answer and no reset
TOO_LATE = Refusal(408, "request_timeout", "the request did not arrive in time; resend it")


def arrival_s(parser: RequestParser, *, has_place: bool) -> float:
    """From the first byte of the request that is arriving to the last of its head, or of its body.

    has_place: as in `connection_limit.py`.
    """
    if parser.is_in_body:
        return BODY_S
    return HEAD_S if has_place else LINGER_S
