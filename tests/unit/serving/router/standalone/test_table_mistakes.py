"""`--check` names every mistake of a file at once, in our own words, and a router that would ask itself."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from serving.router.headers import own_header
from serving.router.standalone.main import check
from serving.router.standalone.table_file import source_of
from serving.router.standalone.table_reader import TableFileError, read_file

THREE = """
service: Chat
stable: {url: "http://127.0.0.1:8001", api_key_env: sk-secret-1}
canary: {url: "http://127.0.0.1:8002", version: 7, enabled: "no"}
weight_bp: 5%
audience_bp: {"all staff": 5}
keys: [{name: a, sha256: sk-secret-2, audiences: [], force: 1}]
limits: {failures: many, stall_s: -1}
"""
LINES = [
    "keys.0.sha256: is no SHA-256 of 64 hex digits",
    "keys.0.force 1: is neither true nor false",
    "is no label; write up to 64 letters",
    "service 'Chat': is no name of a service; write lower-case letters",
    "stable.api_key_env: takes the NAME of a variable that holds the key",
    "canary.version 7: is no text; put it in quotes",
    "canary.enabled 'no': is neither true nor false",
    "weight_bp '5%': is no whole number; a weight is a whole number of basis points",
    "limits.stall_s -1: is not above 0",
    "limits.failures 'many': is no whole number",
]
LIBRARY = ("Input should", "String should", "valid string", "should have at least", "should match")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.yaml"


def test_all_mistakes_of_a_file_are_told_in_one_go_and_in_our_words(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(THREE)

    assert check(path) == 2

    told = capsys.readouterr().err.splitlines()
    assert [line for line in LINES if not any(line in one for one in told)] == []
    assert len(told) == len(LINES)
    assert all(one.startswith(f"error: table {path}: ") for one in told)
    assert not any(word in one for word in (*LIBRARY, "sk-secret") for one in told)


def test_the_log_has_the_first_mistakes_in_one_line(path: Path) -> None:
    path.write_text(THREE)

    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1)

    assert str(caught.value).endswith(f"; and 7 more: canaryctl router --table {path} --check")
    assert len(caught.value.lines) == len(LINES)


@pytest.mark.parametrize(
    "text",
    [
        "service: ''",
        "canary: {url: 7}",
        "canary: {url: 'http://b', model: ''}",
        "canary: {url: 'http://b', since: 2026}",
        "trust: {audience_header: x-a, from: []}",
        "trust: {audience_header: x-a, from: 10.0.0.0/8}",
        "audience_bp: [a]",
        "burst_cap: lots",
        "burst_cap: .inf",
        "limits: 5",
        "limits: {client_idle_s: 5000}",
        "affinity: {key_env: a-b, cookie: 1}",
        "weight_bp: 0.5",
        "weight_bp: null",
        "keys: [{name: '', sha256: x}]",
        f"keys: [{{name: {'a' * 101}, sha256: x}}]",
        "late_commit: never",
        "stable: null",
    ],
)
def test_no_mistake_is_told_in_the_words_of_a_library(path: Path, text: str) -> None:
    base = {"service": "service: chat", "stable": 'stable: {url: "http://a"}'}
    path.write_text("\n".join({**base, text.partition(":")[0]: text}.values()))

    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1)

    assert not any(word in line for word in LIBRARY for line in caught.value.lines)
    assert not any(f"{kind} " in str(caught.value) for kind in ("Input", "String", "List", "Value"))


def test_mistakes_of_several_services_are_told_together(path: Path) -> None:
    path.write_text(
        "services:\n"
        "  - {service: chat, stable: {url: 'http://a'}, weight_bp: 5}\n"
        "  - {service: chat, stable: {url: 'http://a'}}\n"
        "  - {service: code, stable: {url: 'http://127.0.0.1:8000'}}\n"
    )

    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1, own=frozenset({"127.0.0.1:8000"}))

    assert [line.partition(": ")[2][:40] for line in caught.value.lines] == [
        "services.0.weight_bp 5 without a canary;",
        "services.2.code.stable http://127.0.0.1:",
    ]


OWN = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://localhost:18100/chat/v1"}
weight_bp: 500
"""


def test_check_refuses_the_address_that_the_router_would_have(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(OWN)

    assert check(path, port=18100) == 2
    assert "chat.canary http://localhost:18100/chat/v1 is the address of this" in capsys.readouterr().err
    assert check(path) == 0
    assert "if it is its own, requests go round in a circle" in capsys.readouterr().out


def test_a_changed_file_that_names_the_router_itself_is_refused(path: Path) -> None:
    path.write_text(OWN.replace("18100/chat/v1", "8002"))
    source = source_of(path, own=frozenset({"localhost:18100"}))
    path.write_text(OWN)

    assert "is the address of this router" in str(source.reload())
    assert source.specs["chat"].canary is not None
    assert source.specs["chat"].canary.url.endswith("8002")


WRONG_VERSIONS = ["v7\n", "x\r\nset-cookie: evil=1", "a\0b", "a\tb", " v7", "v\u00b7", "v" * 129]


@pytest.mark.parametrize("version", WRONG_VERSIONS)
@pytest.mark.parametrize("arm", ["stable", "canary"])
def test_a_version_that_no_header_can_hold_is_refused(path: Path, version: str, arm: str) -> None:
    arms = {"stable": {"url": "http://127.0.0.1:8001"}, "canary": {"url": "http://127.0.0.1:8002"}}
    arms[arm]["version"] = version
    path.write_text(json.dumps({"service": "chat", **arms}))

    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1)

    assert f"{arm}.version {version!r}: becomes a header" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_of_the_routers_own_holds_no_control_character() -> None:
    assert own_header(b"x-canaryctl-version", b"v7 (of 1.2)") == (b"x-canaryctl-version", b"v7 (of 1.2)")
    for value in (b"v7\n", b"x\r", b"a\0b"):
        with pytest.raises(ValueError, match="no header can hold"):
            own_header(b"x-canaryctl-version", value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::", "::1"])
@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:80", "http://127.0.0.1", "http://LOCALHOST", "http://localhost./chat/v1"),
        *("http://0.0.0.0", "http://[::]:80", "http://[::1]", "http://127.1", "http://[::ffff:127.0.0.1]"),
        "http://chat.localhost",
    ],
)
def test_a_router_is_its_own_upstream_in_no_spelling(path: Path, url: str, host: str) -> None:
    path.write_text(json.dumps({"service": "chat", "stable": {"url": url}}))

    assert check(path, host, 80) == 2
    assert check(path, host, 81) == 0


@pytest.mark.parametrize(
    ("url", "host", "code"),
    [
        ("http://127.0.0.2:8000", "0.0.0.0", 2),
        ("http://127.0.0.2:8000", "127.0.0.1", 0),  # another server may listen there
        ("http://10.0.0.5:8000", "10.0.0.5", 2),
        ("http://0.0.0.0:8000", "10.0.0.5", 0),
        (f"http://{socket.gethostname()}:8000", "0.0.0.0", 2),
        ("http://engine:8000", "127.0.0.1", 0),
    ],
)
def test_another_server_is_an_upstream(path: Path, url: str, host: str, code: int) -> None:
    path.write_text(json.dumps({"service": "chat", "stable": {"url": url}}))

    assert check(path, host, 8000) == code


@pytest.mark.parametrize(
    ("stable", "canary", "is_one"),
    [
        ("http://h:1", "http://h:1/v1", True),
        ("http://h:1", "http://h:1/", True),
        ("http://h", "http://H:80", True),
        ("https://h/v1", "https://h:443/v1/", True),
        ("http://localhost:1", "http://LOCALHOST:1", True),
        ("http://h", "https://h", False),
        ("http://h:1", "http://h:2", False),
        ("http://h/a", "http://h/b", False),
    ],
)
def test_two_arms_that_are_one_upstream_are_told_in_any_spelling(
    path: Path, capsys: pytest.CaptureFixture[str], stable: str, canary: str, is_one: bool
) -> None:
    arms = {"stable": {"url": stable}, "canary": {"url": canary}}
    path.write_text(json.dumps({"service": "chat", **arms}))

    assert check(path) == 0
    assert ("are one upstream" in capsys.readouterr().out) is is_one


@pytest.mark.parametrize("name", ["idle_s", "upstream_age_s"])
@pytest.mark.parametrize(
    ("value", "what"),
    [("true", "True: is no number"), ('"30"', "'30': is no number"), (".nan", "nan: is no finite number")],
)
def test_a_limit_that_is_no_number_is_refused(path: Path, name: str, value: str, what: str) -> None:
    path.write_text(f"service: chat\nstable: {{url: 'http://a'}}\nlimits: {{{name}: {value}}}\n")

    with pytest.raises(TableFileError, match=f"limits.{name} {what}"):
        read_file(path, change=1)


def test_a_limit_may_be_a_whole_number(path: Path) -> None:
    path.write_text("service: chat\nstable: {url: 'http://a'}\nlimits: {idle_s: 30, upstream_age_s: 60.5}\n")

    assert read_file(path, change=1).limits.limits().idle_s == 30.0
