"""Faults that last, each logged once: when it comes, and when it has ended everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from controller import telemetry
from controller.errors import CanaryctlError
from serving.files.plain_text import plain_text


class Faults:
    """What fails now, by place. Safe to use from several threads.

    One cause, such as a database that is gone, fails in every thread and at every try: it is one line of the
    log, not one a second from each.
    """

    def __init__(self) -> None:
        self._failing: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def failing(self) -> Mapping[str, str]:
        """Reasons by place."""
        with self._lock:
            return dict(self._failing)

    def failed(self, place: str, exc: Exception, **fields: telemetry.Field) -> None:
        """Log the fault unless it is known, here or elsewhere. A bug of ours is logged with its traceback."""
        why = reason(exc)
        with self._lock:
            is_known = why in self._failing.values()
            self._failing[place] = why
        if is_known:
            return
        if isinstance(exc, CanaryctlError):
            telemetry.warning("failed, will be retried", what=place, why=why, **fields)
        else:
            telemetry.error("failed, will be retried", exc, what=place, **fields)

    def forget(self, places: Iterable[str]) -> None:
        """Nothing is tried at these places any more, so it is not known whether they work."""
        with self._lock:
            for place in places:
                self._failing.pop(place, None)

    def works(self, place: str) -> None:
        """The place works; log it where its fault has ended everywhere."""
        with self._lock:
            why = self._failing.pop(place, None)
            has_ended = why is not None and why not in self._failing.values()
        if has_ended:
            telemetry.event("works again", what=place, after=why)


def reason(exc: Exception) -> str:
    """What failed, in one line. Of a bug the type and the first line: the rest may hold what was stored."""
    if isinstance(exc, CanaryctlError):
        return str(exc)
    first = plain_text(str(exc).partition("\n")[0], limit=200)
    return f"{type(exc).__name__}: {first}" if first else type(exc).__name__
