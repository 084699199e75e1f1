from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Callable

import httpx
import pytest

from serving.router.bodies.form import MAX_PARTS, MAX_SEMICOLONS
from serving.router.bodies.model_name import NotRenamed, body_with_model, renamed

FORM = "multipart/form-data; boundary=x"
FILE = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--x--\r\n"


def model_part(parameters: str, value: str) -> bytes:
    return f"--x\r\ncontent-disposition: form-data; {parameters}\r\n\r\n{value}\r\n".encode()


def test_only_the_model_of_a_json_body_changes() -> None:
    body = {"model": "chat", "messages": [{"content": '"model": "chat" é'}], "n": 1}

    changed = json.loads(renamed(json.dumps(body).encode(), "application/json", "large"))

    assert changed == {**body, "model": "large"}


def test_the_other_fields_stay_as_they_were_written() -> None:
    body = b'{"a": 1.50, "mod\\u0065l": "x", "b": {"z":  "\\u00e9", "z": 2}}'

    assert renamed(body, "application/json", "large") == (
        b'{"model":"large","a":1.50,"b":{"z":  "\\u00e9", "z": 2}}'
    )


def test_a_body_without_a_model_gets_one() -> None:
    assert json.loads(renamed(b"{}", "application/json", "large")) == {"model": "large"}


def test_a_form_without_a_model_gets_one() -> None:
    changed = renamed(FILE + b"abc" + END, FORM, "large")

    assert b'name="model"\r\n\r\nlarge\r\n--x--' in changed


def test_a_json_body_with_several_models_keeps_the_endpoint_s_alone() -> None:
    assert (
        renamed(b'{"model":"a","Model":"b","model":"c"}', "application/json", "large") == b'{"model":"large"}'
    )


def test_an_empty_body_is_unchanged() -> None:
    assert body_with_model(b"", ((b"content-type", b"application/json"),), "large") == b""


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"[" * 100_000, b"model=chat"])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(NotRenamed, match="neither a JSON object nor"):
        renamed(body, "application/json", "large")


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


@pytest.mark.parametrize("spelling", ['name="model"', 'name = "model"', "name=model", 'NAME="Model"'])
def test_every_model_field_of_a_form_is_replaced_however_it_is_spelled(spelling: str) -> None:
    body = (
        model_part('name="model"', "chat") + FILE + b"abc\r\n" + model_part(spelling, "paid") + b"--x--\r\n"
    )

    changed = renamed(body, FORM, "large")

    assert (changed.count(b"model"), changed.count(b"large"), b"paid" in changed) == (1, 1, False)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"model":"paid"}', FORM),
        (FILE + b"abc", FORM),
        (FILE + b"a --x b" + END, FORM),
        (model_part("name*=utf-8''model", "paid") + b"--x--\r\n", FORM),
        (model_part('name="mod\\el"', "paid") + b"--x--\r\n", FORM),
        (model_part("", "paid") + b"--x--\r\n", FORM),
        (FILE + b"abc" + END, "multipart/form-data"),
        (FILE + b"abc" + END, "multipart/form-data; boundary=x; boundary=y"),
        (FILE + b"abc" + END, "multipart/form-data; boundary=x; boundary*=y"),
        (model_part('name="a"', "1") * (MAX_PARTS + 1) + b"--x--\r\n", FORM),
        (model_part('name="a"; filename="' + ";" * MAX_SEMICOLONS + '"', "1") + b"--x--\r\n", FORM),
    ],
)
def test_a_form_that_two_servers_could_read_differently_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(NotRenamed, match="the form has no clear model name"):
        renamed(body, content_type, "large")


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (((b"content-encoding", b"gzip"),), "compressed"),
        (((b"content-type", b"application/json"), (b"content-type", FORM.encode())), "several content types"),
    ],
)
def test_a_body_whose_headers_hide_its_model_is_refused(
    headers: tuple[tuple[bytes, bytes], ...], why: str
) -> None:
    with pytest.raises(NotRenamed, match=why):
        body_with_model(gzip.compress(b'{"model":"paid"}'), headers, "large")


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "header lines": lambda n: b"--x\r\n" + b'content-disposition:;name="model"\r\n' * n + b"z",
    "semicolons": lambda n: b"--x\r\ncontent-disposition:" + b"; " * n + b"\r\n",
    "blanks": lambda n: b"--x\r\ncontent-disposition:;" + b" " * n + b"\r\n",
    "delimiters": lambda n: b'--x\r\ncontent-disposition:;name="model"\r\n' * n + b"z",
    "parts without end": lambda n: b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\n' * n + b"z",
    "parts": lambda n: model_part('name="model"', "") * n + b"--x--\r\n",
    "line ends": lambda n: FILE + b"\r\n-" * n + END,
    "preamble": lambda n: b"\r\n" * n + FILE + END,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_time_of_a_hostile_form_is_not_superlinear(kind: str) -> None:
    def cpu_s(n: int) -> float:
        body, times = HOSTILE[kind](n), []
        for _ in range(3):
            began_s = time.process_time()
            with contextlib.suppress(NotRenamed):
                renamed(body, FORM, "large")
            times.append(time.process_time() - began_s)
        return min(times)

    # Sixteen times the input: 16 is linear, 256 quadratic. A millisecond more covers the clock's noise.
    assert cpu_s(16_000) < 64 * cpu_s(1_000) + 1e-3
