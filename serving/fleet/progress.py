"""Progress of an engine: it has stalled when it has requests and has made no step for STALL_S. Pure.

A step is one turn of the engine's scheduler, also of a part of a long prompt; every running engine makes many
in a second. An event loop that lives says nothing about the engine behind it.

`now_s`: seconds of CLOCK_BOOTTIME.
"""

from __future__ import annotations

STALL_S = 60.0  # longer than any step: kernels are compiled before an engine is ready
FROZEN_S = 10.0  # between two checks: the process itself stood still, so nothing is known of the engine


class Progress:
    """Note the steps, and check every half second."""

    def __init__(self, *, now_s: float) -> None:
        self._step_s = now_s
        self._checked_s = now_s

    def step(self, now_s: float) -> None:
        """The engine has made a step."""
        self._step_s = now_s

    def is_stalled(self, unfinished: int, now_s: float) -> bool:
        """unfinished: requests inside the engine."""
        if not unfinished or now_s - self._checked_s > FROZEN_S:
            self._step_s = max(self._step_s, now_s)
        self._checked_s = now_s
        return now_s - self._step_s >= STALL_S
