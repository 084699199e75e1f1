"""Time of a tick: the wall clock, and how much of what passed since the last tick does not count.

The wall clock may be set, a host may be suspended, and the next controller's clock may differ. Seconds that
count are those of the boot-time clock, up to `MAX_TICK_S` between two ticks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_TICK_S = 10.0
MIN_JUMP_S = 0.5  # a smaller difference is left until it has added up: clocks are slewed all the time


@dataclass(frozen=True, slots=True)
class TickTime:
    """Wall time of a tick. jump_s, away_s: see `Observation`."""

    now_s: float
    jump_s: float = 0.0
    away_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TickTimer:
    """Measures the ticks of one rollout; a tick that could not be committed is measured again by the next.

    max_tick_s: time between two ticks that counts, in seconds.
    """

    max_tick_s: float = MAX_TICK_S
    ticked_s: float | None = None  # boot time of the last tick; None: there was none
    offset_s: float = 0.0  # wall time less boot time, when it was last taken as right

    def tick(self, now_s: float, boot_s: float, *, ticked_at_s: float) -> tuple[TickTime, TickTimer]:
        """Time of the tick whose clocks were read as `now_s` and `boot_s`, and the timer after it.

        ticked_at_s: wall time of the last committed tick, maybe by another controller's clock; 0.0: unknown.
        """
        if self.ticked_s is None:
            passed_s = now_s - ticked_at_s if ticked_at_s else 0.0
            # A clock that is behind the last controller's was set back; ahead, nobody knows by how much.
            time = TickTime(now_s, min(0.0, passed_s), max(0.0, passed_s))
            return time, replace(self, ticked_s=boot_s, offset_s=now_s - boot_s)
        jump_s = now_s - boot_s - self.offset_s
        if abs(jump_s) < MIN_JUMP_S:
            jump_s = 0.0
        time = TickTime(now_s, jump_s, max(0.0, boot_s - self.ticked_s - self.max_tick_s))
        return time, replace(self, ticked_s=boot_s, offset_s=self.offset_s + jump_s)
