"""What is shown beside the evidence and decides nothing: its faults must not take the evidence with them.

A guard or a gate that would roll a harmful canary back is read in the same call as costs and alarms. A fault
of theirs once made the whole evidence unreadable, at each tick again, for the same records are read again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from controller import telemetry

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_told: set[str] = set()  # functions that failed when they were last called, each told of once


def decides_nothing(otherwise: T) -> Callable[[Callable[P, R]], Callable[P, R | T]]:
    """A decorator: whatever the function raises is logged, and `otherwise` is its result."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | T]:
        name = function.__qualname__

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | T:
            try:
                result = function(*args, **kwargs)
            except Exception as exc:  # noqa: BLE001 - whatever it is, nothing may be decided by it
                if name not in _told:
                    telemetry.error("shown beside the evidence and left out", exc, what=name)
                _told.add(name)
                return otherwise
            _told.discard(name)
            return result

        return guarded

    return decorate
