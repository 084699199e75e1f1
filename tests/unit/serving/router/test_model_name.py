from __future__ import annotations

import json

import httpx
import pytest

from serving.router.model_name import renamed


def test_only_the_model_of_a_json_body_changes() -> None:
    body = {"model": "chat", "messages": [{"content": '"model": "chat" é'}], "n": 1}

    changed = json.loads(renamed(json.dumps(body).encode(), "application/json", "large"))

    assert changed == {**body, "model": "large"}


def test_a_body_without_a_model_gets_one() -> None:
    assert json.loads(renamed(b"{}", "application/json", "large")) == {"model": "large"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_unchanged(body: bytes) -> None:
    assert renamed(body, "application/json", "large") == body


def test_the_model_field_of_a_form_changes_and_its_file_does_not() -> None:
    decoy = b'RIFF\r\ncontent-disposition: form-data; name="model"\r\n\r\nx'
    fields: list[tuple[str, tuple[str | None, str | bytes]]] = [
        ("file", ("model.wav", decoy)),
        ("language", (None, "en")),
        ("model", (None, "chat")),
    ]
    request = httpx.Request("POST", "http://h", files=fields)
    body, content_type = request.read(), request.headers["content-type"]

    changed = renamed(body, content_type, "large")

    assert changed == body.replace(b"\r\n\r\nchat\r\n", b"\r\n\r\nlarge\r\n")
    assert changed != body
