"""Ids of requests: random, so that nobody can guess another client's."""

from __future__ import annotations

import os

_BYTES = 12  # of each id
_DRAWN = 256  # ids from one system call, which costs as much as the rest of an id


class RequestIds:
    """Ids of one front's requests."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def next(self) -> str:
        """A new id: req- and 24 random hex digits."""
        at, end = self._at, self._at + 2 * _BYTES
        if end > len(self._digits):
            self._digits = os.urandom(_BYTES * _DRAWN).hex()
            at, end = 0, 2 * _BYTES
        self._at = end
        return "req-" + self._digits[at:end]
