"""`canaryctl version`."""

from __future__ import annotations

from controller.installed import own_version


def version() -> None:
    """Print the version."""
    print(own_version())
