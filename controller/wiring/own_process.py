"""The controller process of a state folder, as it records itself: the only one that a command may end."""

from __future__ import annotations

import logging
from contextlib import suppress

import psutil

from controller.private_file import write_private
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
    with suppress(OSError):
        if settings.process_path.read_text().strip() == lease_holder():
            settings.process_path.unlink()


def is_own(settings: Settings, pid: int) -> bool:
    """Whether process `pid` of this host, as it is seen from here, is the folder's controller. Its start
    tells it from another that has the number now."""
    try:
        recorded = process_here(settings.process_path.read_text().strip())
        return recorded is not None and recorded == (pid, start_ticks(pid))
    except FileNotFoundError:
        return _is_by_name(settings, pid)
    except (OSError, UnicodeDecodeError, psutil.AccessDenied):
        return False


def _is_by_name(settings: Settings, pid: int) -> bool:
    """The same of a controller of an earlier release, which recorded nothing: by command and folder."""
    try:
        process = psutil.Process(pid)
        words, environment = process.cmdline(), process.environ()
    except psutil.Error:
        return False
    return words[-1:] == ["controller"] and state_folder(environment) == settings.home
