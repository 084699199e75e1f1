"""The controller process of a state folder, as it records itself: the only one that a command may end."""

from __future__ import annotations

import logging
from contextlib import suppress

import psutil

from controller.errors import CanaryctlError
from controller.private_file import read_private, write_private
from controller.settings import Settings, state_folder
from controller.wiring.lease_holder import lease_holder, process_here
from serving.process_start import start_ticks

log = logging.getLogger("canaryctl")


def record_own(settings: Settings) -> None:
    """Record this process as the folder's controller. Where nothing can be written it leads all the same, and
    is known by its command and folder."""
    try:
        write_private(settings.process_path, lease_holder())
    except OSError as exc:
        log.warning("the controller's process is not recorded", extra={"error": str(exc)})
        with suppress(OSError):
            settings.process_path.unlink(missing_ok=True)  # of another process


def forget_own(settings: Settings) -> None:
    """Take the record of this process away."""
    with suppress(OSError, CanaryctlError):
        if _recorded(settings) == lease_holder():
            settings.process_path.unlink()


def is_own(settings: Settings, pid: int) -> bool:
    """Whether process `pid` of this host, as it is seen from here, is the folder's controller. Its start
    tells it from another that has the number now.

    The record is of one process: where it does not name this one, a second controller of the folder may have
    written it, and may be gone since. The command and the folder tell then.
    """
    try:
        recorded = process_here(_recorded(settings) or "")
        is_recorded = recorded is not None and recorded == (pid, start_ticks(pid))
    except (CanaryctlError, psutil.AccessDenied):
        is_recorded = False
    return is_recorded or _is_by_name(settings, pid)


def _recorded(settings: Settings) -> str | None:
    return read_private(settings.process_path, remedy="remove it")


def _is_by_name(settings: Settings, pid: int) -> bool:
    """The same by command and folder, for who is not recorded."""
    try:
        process = psutil.Process(pid)
        words, environment = process.cmdline(), process.environ()
    except psutil.Error:
        return False
    return words[-1:] == ["controller"] and state_folder(environment) == settings.home
