"""Notifier that writes to the log. Another channel is another `Notifier`, in a file beside it."""

from __future__ import annotations

from typing import Literal

from controller import telemetry


class LogNotifier:
    """Logs each notice key once per process; a page is logged as ERROR."""

    def __init__(self) -> None:
        self._sent: set[str] = set()

    def send(self, key: str, severity: Literal["info", "page"], text: str) -> bool:
        """True: the notice is in the log."""
        if key not in self._sent:
            self._sent.add(key)
            if severity == "page":
                telemetry.error("page", key=key, text=text)
            else:
                telemetry.event("notice", key=key, text=text)
        return True
