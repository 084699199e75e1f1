"""Time of a tick: the wall clock, and how much of what passed since the last tick does not count.

The wall clock may be set, a host may be suspended, and the next controller's clock may differ. Seconds that
count are those of the boot-time clock, up to `MAX_TICK_S` between two ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_TICK_S = 10.0
MIN_JUMP_S = 0.5  # a smaller difference is left until it has added up: clocks are slewed all the time


@dataclass(frozen=True, slots=True)
class TickTime:
    """Wall time of a tick. jump_s, away_s: see `Observation`."""

    now_s: float
    jump_s: float = 0.0
    away_s: float = 0.0


class TickTimer:
    """Measures the ticks of one rollout. max_tick_s: time between two ticks that counts, in seconds."""

    def __init__(self, *, max_tick_s: float = MAX_TICK_S) -> None:
        self._max_tick_s = max_tick_s
        self._ticked_s: float | None = None  # boot time of the last tick; None: this is the first
        self._offset_s = 0.0  # wall time less boot time, when it was last taken as right

    def tick(self, now_s: float, boot_s: float, *, ticked_at_s: float) -> TickTime:
        """Time of the tick whose clocks were read as `now_s` and `boot_s`.

        ticked_at_s: wall time of the last committed tick, maybe by another controller's clock; 0.0: unknown.
        """
        last_s, self._ticked_s = self._ticked_s, boot_s
        if last_s is None:
            self._offset_s = now_s - boot_s
            passed_s = now_s - ticked_at_s if ticked_at_s else 0.0
            # A clock that is behind the last controller's was set back; ahead, nobody knows by how much.
            return TickTime(now_s, min(0.0, passed_s), max(0.0, passed_s))
        jump_s = now_s - boot_s - self._offset_s
        if abs(jump_s) < MIN_JUMP_S:
            jump_s = 0.0
        self._offset_s += jump_s
        return TickTime(now_s, jump_s, max(0.0, boot_s - last_s - self._max_tick_s))
