"""Clock of leases and fences."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# CLOCK_BOOTTIME, in seconds. It includes time suspended, so that a lease expires during a suspend.
# Not a function of ours: a request reads it ten times, which so costs half.
boot_s: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
