"""`up` returns once users get the stored version, not while another answers at the service's URL."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from controller.cli import services
from controller.errors import TimedOut, Unreachable


class Client:
    def __init__(self, **fields: Any) -> None:
        ready = SimpleNamespace(version="v-1", phase="ready", last_error=None)
        given = {"weight_bp": 0, "routed": None, "problem": None, "rollout": None, **fields}
        self.view = SimpleNamespace(stable="v-1", versions=[ready], url="http://127.0.0.1:9/v1", **given)

    def service(self, name: str) -> Any:
        return self.view


@pytest.fixture(autouse=True)
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_answers", lambda url: True)
    monkeypatch.setattr(services, "PROBLEM_S", 0.0)


def wait(client: Any) -> None:
    services._wait_until_served(client, "chat", 0.01)


@pytest.mark.parametrize(
    "fields", [{}, {"weight_bp": None}, {"weight_bp": 1000, "rollout": SimpleNamespace(is_final=False)}]
)
def test_the_stored_version_is_served(fields: dict[str, Any]) -> None:
    wait(Client(**fields))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"routed": "v-2"}, "v-2 answers in place of v-1"),
        ({"weight_bp": 10000}, "does not answer"),
        ({"weight_bp": 1000, "rollout": SimpleNamespace(is_final=True)}, "does not answer"),
    ],
)
def test_another_version_is_waited_for(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(TimedOut, match=line):
        wait(Client(**fields))


def test_a_controller_that_decides_nothing_is_no_success() -> None:
    with pytest.raises(Unreachable, match=r"chat is not served as the database says: .*not acting"):
        wait(Client(problem="not acting: an older copy"))
