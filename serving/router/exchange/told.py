"""What the health of the upstreams is told of a request's attempts. No clock."""

from __future__ import annotations

from collections.abc import Sequence

from serving.messages import CANARY
from serving.router.exchange.tried import Tried
from serving.router.upstreams.health import UpstreamHealth


def tell_failure(health: UpstreamHealth, last: Tried, cause: str, *, is_lookup: bool) -> None:
    """How the last attempt failed. An answer of a canary that breaks off before its beginning is none."""
    is_none = cause == "cut" and last.arm == CANARY and not last.has_begun
    health.failed(last.arm, last.url, "reset" if is_none else cause, is_lookup=is_lookup)


def tell_answer(health: UpstreamHealth, last: Tried) -> None:
    """That the last attempt is answered, where anything is known of an upstream that this could end."""
    if health.failing or health.silences:
        health.answered(last.arm, last.url)


def tell_silence(health: UpstreamHealth, tried: Sequence[Tried]) -> None:
    """That the last attempt has been waited for in vain, if it is one at a canary that has not begun."""
    last = tried[-1] if tried else None
    if last is not None and last.arm == CANARY and last.cause is None and not last.has_begun:
        health.silent(last.url)
