"""Notifier that writes to the log. Another channel is another `Notifier`, in a file beside it."""

from __future__ import annotations

from typing import Literal

from controller import telemetry

MAX_KEYS = 10_000  # that are remembered: a key belongs to a rollout, which ends


class LogNotifier:
    """Logs each notice key once per process; a page is logged as ERROR."""

    def __init__(self) -> None:
        self._sent: dict[str, None] = {}  # in the order in which they were sent

    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        """True: the notice is in the log."""
        if key not in self._sent:
            self._sent[key] = None
            if len(self._sent) > MAX_KEYS:
                del self._sent[next(iter(self._sent))]
            if severity == "page":
                telemetry.error("page", key=key, text=text)
            else:
                telemetry.event("notice", key=key, text=text)
        return True
