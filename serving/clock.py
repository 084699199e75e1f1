"""The clock of leases and fences."""

from __future__ import annotations

import time


def boot_s() -> float:
    """Seconds of CLOCK_BOOTTIME, which goes on while the machine sleeps: a lease must not survive a sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
