"""What is told of a call to an engine (`upstream.py`)."""

from __future__ import annotations

from typing import Protocol

from serving.router.types import Failure
from serving.router.upstreams.engine_connection import Headers


class Listener(Protocol):
    """What is told of a call. After `on_failed` or `on_end` nothing more comes."""

    def may_start(self) -> bool:
        """Asked before the first byte is written; False: nothing is sent, and the call fails as withheld."""

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; names in lower case."""

    def on_data(self, data: bytes) -> None:
        """The next bytes of the body."""

    def on_end(self) -> None:
        """The body ended as its framing declares."""

    def on_silent(self) -> bool:
        """Nothing has come until the deadline; True: the call fails, False: a later one has been set."""

    def on_failed(self, why: Failure) -> None:
        """No answer, or one that broke off."""
