"""When a process of this host was started, by a clock that nobody sets."""

from __future__ import annotations

from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FIELD = 22 - 3  # `starttime` of proc(5), in what follows the name: that may hold blanks and brackets


def start_ticks(pid: int) -> int | None:
    """Clock ticks from the host's boot to the start of process `pid`; None: there is no such process.

    With the pid it names one process of this boot. `psutil.Process.create_time` does not: it adds the time of
    the boot, which moves when the wall clock is set.

    Raises psutil.AccessDenied for another user's process of which the host tells nothing (`hidepid`).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except PermissionError as exc:
        raise psutil.AccessDenied(pid) from exc
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[_FIELD])


def is_process(pid: int, start: int) -> bool:
    """Whether process `pid` is the one of this user that was started then."""
    try:
        return start_ticks(pid) == start
    except psutil.AccessDenied:  # the number is another user's by now
        return False


def boot_id() -> str:
    """Name of this boot of the host. A process is named with it by what outlives the boot, such as a file."""
    return _BOOT_ID.read_text().strip()
