"""The client's token goes to a controller only, not to whatever listens on its port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.cli.client import Client
from controller.errors import Unreachable
from controller.settings import load_settings
from tests.fakes.json_server import JsonServer, json_server


@pytest.fixture
def listener() -> Iterator[JsonServer]:
    with json_server(lambda path: None if path == "/healthz" else []) as server:
        yield server


def client(home: Path, port: int) -> Client:
    return Client(load_settings({"CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(port)}))


@pytest.mark.slow
def test_another_program_on_the_port_gets_no_token(listener: JsonServer, tmp_path: Path) -> None:
    one = client(tmp_path, listener.port)

    with pytest.raises(Unreachable, match="is not canaryctl"):
        one.services()
    assert one.health() is None
    assert {token for _, token in listener.seen} == {None}


@pytest.mark.slow
def test_a_controller_is_asked_once_without_the_token_then_with_it(
    listener: JsonServer, tmp_path: Path
) -> None:
    listener.answer = lambda path: {"leading": True} if path == "/healthz" else []
    one = client(tmp_path, listener.port)
    one.services()
    one.services()

    assert [(path, token is not None) for path, token in listener.seen] == [
        ("/healthz", False),
        ("/v1/services", True),
        ("/v1/services", True),
    ]


@pytest.mark.slow
def test_a_missing_state_folder_is_not_made_for_another_ones_controller(
    listener: JsonServer, tmp_path: Path
) -> None:
    listener.answer = lambda path: {"leading": True} if path == "/healthz" else []

    client(tmp_path / "typo" / "deep", listener.port).services()

    assert list(tmp_path.rglob("*")) == []
