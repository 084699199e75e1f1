"""What `up` says of a service: that a version serves only where it does."""

from __future__ import annotations

from typing import Any

import pytest

from controller.cli.render import served_line
from controller.views.models import ServiceView, VersionView


def version(name: str, phase: str) -> VersionView:
    return VersionView(
        version=name, phase=phase, ready_replicas=1, in_flight=0, memory_bytes=None, last_error=None
    )


def line(**more: Any) -> str:
    fields: dict[str, Any] = {"service": "chat", "url": "http://h/chat/v1", "stable": "v1", "weight_bp": 0}
    return str(served_line(ServiceView(**{**fields, "rollout": None, **more})))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"versions": (version("v1", "ready"),)}, "chat serves v1 at http://h/chat/v1"),
        ({"versions": ()}, "chat does not serve v1 yet; it will at http://h/chat/v1"),
        (
            {"versions": (version("v1", "loading"),)},
            "chat does not serve v1 yet; it will at http://h/chat/v1",
        ),
        (
            {"versions": (version("v1", "ready"), version("v2", "ready")), "routed": "v2"},
            "chat serves v2 at http://h/chat/v1; v1 takes its place once all of it is ready",
        ),
        ({"versions": None}, "chat is at http://h/chat/v1; what serves there cannot be read now"),
    ],
    ids=["serves", "not loaded", "loads", "another serves", "unread"],
)
def test_a_version_is_said_to_serve_only_where_it_does(more: dict[str, Any], said: str) -> None:
    """After `up --accept-database` the newer version still answered."""
    assert line(**more) == said
