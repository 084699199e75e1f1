"""Clock of leases and fences."""

from __future__ import annotations

import time


def boot_s() -> float:
    """CLOCK_BOOTTIME, in seconds. It includes time suspended, so that a lease expires during a suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
