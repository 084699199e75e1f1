"""The limit on request bodies, over a real socket: received bytes count, not the declared length."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from controller.api.errors import MAX_BODY_BYTES
from controller.auth import admin_token
from tests.fakes.controller import FakeController

CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"  # 64 KiB of blanks, which JSON allows
CHUNK_BYTES = 0x10000
END = b"0\r\n\r\n"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Port of a listening controller."""
    fake = FakeController(tmp_path)
    yield fake.serve().config.api_port
    fake.stop()


def answer_to(home: Path, port: int, *body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a chunked POST of feedback."""
    head = (
        "POST /v1/feedback HTTP/1.1\r\nhost: api\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {admin_token(home)}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(head.encode())
        for part in body:
            client.sendall(part)
        answer = HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read()


@pytest.mark.slow
def test_a_chunked_body_beyond_the_limit_is_refused_before_its_end(tmp_path: Path, port: int) -> None:
    chunks = MAX_BODY_BYTES // CHUNK_BYTES

    status, text = answer_to(tmp_path, port, *[CHUNK] * chunks, b"1\r\n \r\n")  # and no END

    assert status == 413
    assert f"or more bytes exceeds {MAX_BODY_BYTES}; split the request".encode() in text


def test_a_chunked_body_of_just_the_limit_is_read(tmp_path: Path, port: int) -> None:
    chunks = MAX_BODY_BYTES // CHUNK_BYTES - 1
    items = b"[" + b" " * (CHUNK_BYTES - 2) + b"]"

    status, text = answer_to(tmp_path, port, *[CHUNK] * chunks, b"10000\r\n" + items + b"\r\n", END)

    assert (status, b"0 scores in one request" in text) == (422, True)


@pytest.mark.parametrize("token", ["", "authorization: Bearer made-up-made-up-made-up\r\n"])
@pytest.mark.parametrize(
    "path", ["feedback", "services/chat/rollback", "services/chat/rollouts", "services/chat/plan"]
)
def test_a_token_is_asked_for_before_the_body(port: int, path: str, token: str) -> None:
    """The body does not come at all; one of brackets held all requests for 1.7 s before it was refused."""
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nhost: api\r\ncontent-type: application/json\r\n"
        f"{token}content-length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head.encode())
        answer = HTTPResponse(client)
        answer.begin()

        assert answer.status == 401
