"""A port whose reads are counted."""

from __future__ import annotations

from typing import Any


class Counted:
    """Passes everything on to `port`, and counts its reads."""

    def __init__(self, port: Any) -> None:
        self.port, self.reads = port, 0

    def __getattr__(self, name: str) -> Any:
        self.reads += name in ("observe", "read")
        return getattr(self.port, name)
