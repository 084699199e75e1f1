"""The client's token goes to a controller only, not to whatever listens on its port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from controller.cli.client import Client
from controller.errors import Unreachable
from controller.settings import load_settings


class Listener(BaseHTTPRequestHandler):
    health: object = None
    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers["authorization"]))
        body = json.dumps(self.health if self.path == "/healthz" else []).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[tuple[type[Listener], int]]:
    handler = type("ThisListener", (Listener,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield handler, server.server_port
    server.shutdown()
    server.server_close()


def client(home: Path, port: int) -> Client:
    return Client(load_settings({"CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(port)}))


def test_another_program_on_the_port_gets_no_token(
    listener: tuple[type[Listener], int], tmp_path: Path
) -> None:
    handler, port = listener
    one = client(tmp_path, port)

    with pytest.raises(Unreachable, match="is not canaryctl"):
        one.services()
    assert one.health() is None
    assert {token for _, token in handler.seen} == {None}


def test_a_controller_is_asked_once_without_the_token_then_with_it(
    listener: tuple[type[Listener], int], tmp_path: Path
) -> None:
    handler, port = listener
    handler.health = {"leading": True}
    one = client(tmp_path, port)
    one.services()
    one.services()

    assert [(path, token is not None) for path, token in handler.seen] == [
        ("/healthz", False),
        ("/v1/services", True),
        ("/v1/services", True),
    ]
