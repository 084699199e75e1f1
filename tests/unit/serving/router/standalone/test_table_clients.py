"""What a table file says about clients, tokens and several services; `--check`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from serving.access import digest_of
from serving.router.exchange.exchange import Exchange
from serving.router.standalone.main import check
from serving.router.standalone.table_file import FileTableSource, make_front
from serving.router.standalone.table_reader import TableFileError, read_tables
from serving.router.types import Refusal, Request
from serving.targets import Target

BASE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
salt: spring
"""
STAFF, OPS = digest_of("sk-staff"), digest_of("sk-ops")
CLIENTS = f"""
keys:
  - {{name: staff, sha256: "{STAFF}", audiences: [staff]}}
  - {{name: on-call, sha256: "{OPS.upper()}", force: true}}
audience_bp: {{staff: 10000}}
trust: {{category_header: X-Category, from: [10.0.0.0/8, "fd00::/8"]}}
category_bp: {{code: 2500}}
burst_cap: 50
affinity: {{cookie: true}}
late_commit: stream
"""
SEVERAL = f"""
keys: [{{name: staff, sha256: "{STAFF}", audiences: [staff]}}]
affinity: {{}}
services:
  - service: chat
    stable: {{url: "http://127.0.0.1:8001"}}
    canary: {{url: "http://127.0.0.1:8002"}}
    weight_bp: 500
    salt: a
  - service: code
    stable: {{url: "http://127.0.0.1:8003"}}
    keys: [{{name: ops, sha256: "{OPS}"}}]
    keys_required: true
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    one = tmp_path / "table.yaml"
    one.write_text(BASE + CLIENTS)
    return one


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def arm_of(path: Path, headers: dict[str, str], peer: str = "") -> tuple[int, str]:
    core = make_front(path).core
    raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
    request = Request("POST", Target("/v1/completions"), raw, b"{}", peer)
    exchange = core.begin(request, request_id="req-1", now_s=1e9, wall_s=1e9)
    assert isinstance(exchange, Exchange)
    return exchange.start.assignment.arm, exchange.start.assignment.assigned_by


def test_an_audience_gets_the_canary_at_its_own_weight_alone(path: Path) -> None:
    assert arm_of(path, {}) == (0, "request")
    assert arm_of(path, {"authorization": "Bearer sk-staff"}) == (1, "request")
    assert arm_of(path, {"authorization": "Bearer sk-ops", "x-canaryctl-force": "canary"}) == (1, "forced")


def test_the_file_becomes_weights_trust_cap_and_tokens(path: Path) -> None:
    table = read_tables(path, change=1)["chat"]

    assert table.access is not None
    assert table.affinity is not None
    assert (table.access.audience_bp, table.access.category_bp) == ({"staff": 10_000}, {"code": 2500})
    assert table.access.trusted is not None
    assert (table.access.trusted.category, len(table.access.trusted.networks)) == ("x-category", 2)
    assert (table.late_commit, read_tables(write(path, BASE), change=1)["chat"].late_commit) == (
        "stream",
        "hold",
    )
    assert (table.burst_cap, table.affinity.cookie, len(table.affinity.key)) == (50.0, True, 32)


def test_the_key_of_tokens_outlives_a_reload(path: Path) -> None:
    first = read_tables(path, change=1)["chat"].affinity

    assert read_tables(path, change=2)["chat"].affinity == first


def test_the_key_of_tokens_is_read_from_a_file_that_several_routers_share(path: Path) -> None:
    (path.parent / "key").write_text("0123456789abcdef\n")
    path.write_text(BASE + "weight_bp: 5\naffinity: {key_file: key}")
    table = read_tables(path, change=1)["chat"]

    assert table.affinity is not None
    assert table.affinity.key == b"0123456789abcdef"
    assert table.unit_key is not None  # a token holds its unit, which each of them must name alike
    assert read_tables(path, change=1)["chat"].unit_key == table.unit_key
    assert table.affinity.key.decode() not in table.unit_key.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLIENTS.replace(STAFF, "sk-staff-in-plain"), "keys.0.sha256: is no SHA-256 of 64 hex digits; write"),
        (CLIENTS.replace(OPS.upper(), STAFF), "two keys have one name or one digest"),
        (CLIENTS.replace("{staff: 10000}", "{stuff: 10000}"), "audience stuff of audience_bp is given by no"),
        (
            CLIENTS.replace("{staff: 10000}", "{staff: 10001}"),
            "audience_bp.staff 10001: is above 10000",
        ),
        (CLIENTS.replace("{staff: 10000}", "{staff: 0.5}"), "audience_bp.staff 0.5"),
        (CLIENTS.replace("10.0.0.0/8", "10.0.0.1/8"), "10.0.0.1/8 has host bits set; write a network as"),
        (CLIENTS.replace("X-Category", "Authorization"), "'Authorization' cannot be read as an audience"),
        (CLIENTS.replace("category_header: X-Category, ", ""), "trust names no header"),
        (CLIENTS.replace(', from: [10.0.0.0/8, "fd00::/8"]', ""), "trust.from: is missing; add it"),
        (
            CLIENTS.replace("force: true", "forced: true"),
            "keys.1.forced True: is no key here; did you mean force?",
        ),
        (CLIENTS.replace("burst_cap: 50", "burst_cap: 0"), "burst_cap 0: is not above 0"),
        (CLIENTS.replace(": stream", ": never"), "late_commit 'never': is none of 'hold' or 'stream'"),
        (
            CLIENTS + "weight: 5",
            "weight 5: is no key here; did you mean weight_bp?; keys are service, stable",
        ),
        ("keys_required: true", "keys_required without keys would refuse every request"),
        ("weight_bp: 5\naffinity: {key_env: a, key_file: b}", "affinity: key_env and key_file are both"),
        (CLIENTS.replace("canary", "x"), ""),
    ],
)
def test_a_mistake_is_one_line_that_shows_no_key(path: Path, text: str, message: str) -> None:
    path.write_text(BASE + text)
    if not message:  # the same file without a mistake
        read_tables(path, change=1)
        return
    with pytest.raises(TableFileError) as caught:
        read_tables(path, change=1)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "sk-staff" not in str(caught.value)


def test_an_audience_with_a_weight_needs_a_canary(path: Path) -> None:
    path.write_text(re.sub(r"canary: .*8002.*\n", "", BASE) + CLIENTS)

    with pytest.raises(
        TableFileError, match=r"audience_bp.staff 10000, category_bp.code 2500 without a canary"
    ):
        read_tables(path, change=1)


# ---- several services


def test_several_services_share_what_stands_beside_them(path: Path) -> None:
    path.write_text(SEVERAL)
    tables = read_tables(path, change=1)

    assert list(tables) == ["chat", "code"]
    assert [list(table.access.keys) for table in tables.values() if table.access] == [[STAFF], [OPS]]
    assert [table.access.keys_required for table in tables.values() if table.access] == [False, True]
    assert all(table.affinity is not None for table in tables.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SEVERAL.replace("service: code", "service: chat"), "service chat is given twice"),
        (SEVERAL.replace("salt: a", "salt: 5"), "services.0.salt 5: is no text; put it in quotes"),
        (SEVERAL + "weight_bp: 5", "weight_bp stands beside services; give it to one of them"),
        ("services: []", "services is no list of services"),
        ("services: [5]", "services.0."),
        (SEVERAL.replace("service: code", "service: v1"), "is the beginning of a route, /v1; choose another"),
    ],
)
def test_a_mistake_in_one_of_several_services_names_it(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(TableFileError) as caught:
        read_tables(path, change=1)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_one_table_changes_none(path: Path) -> None:
    path.write_text(SEVERAL)
    front = make_front(path)
    before = [core.table for core in front.cores.values()]
    source = front._background
    assert isinstance(source, FileTableSource)
    path.write_text(SEVERAL.replace("8001", "8009").replace("salt: a", "salt: 5"))

    assert "services.0.salt" in (source.reload() or "")
    assert [core.table for core in front.cores.values()] == before


def test_a_key_that_one_service_requires_is_not_asked_of_another(path: Path) -> None:
    path.write_text(SEVERAL)
    cores = make_front(path).cores
    request = Request("POST", Target("/v1/completions"), (), b"{}")
    answers = [
        core.begin(request, request_id="req-1", now_s=1e9, wall_s=1e9)
        for core in (cores["chat"], cores["code"])
    ]

    assert [isinstance(answer, Refusal) for answer in answers] == [False, True]


def test_a_key_that_sends_most_requests_is_published_as_heavy(path: Path) -> None:
    path.write_text(BASE + "weight_bp: 5000")
    front = make_front(path)
    source = front._background
    assert isinstance(source, FileTableSource)
    for n in range(400):
        body = b'{"user": "app"}' if n % 2 else b'{"user": "u-%d"}' % n
        request = Request("POST", Target("/v1/completions"), (), body)
        assert isinstance(front.core.begin(request, request_id=f"r-{n}", now_s=1e9, wall_s=1e9), Exchange)
    source.count(front.core, now_s=1e9)

    assert front.core.table is not None
    assert len(front.core.table.heavy) == 1
    path.write_text(BASE + "weight_bp: 6000")
    source.reload()
    assert (len(front.core.table.heavy), front.core.table.weight_bp) == (1, 6000)


# ---- affinity tokens

TOKENS = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 10000
salt: spring
affinity: {key_file: key}
"""
WITHOUT = re.sub(r"canary: .*\nweight_bp.*\n", "", TOKENS)


class TokenRouter:
    """A router of a table file, whose tokens are signed by a key that others share."""

    def __init__(self, path: Path) -> None:
        (path.parent / "key").write_text("k" * 32)
        path.write_text(TOKENS)
        self.path = path
        self.front = make_front(path)
        self.asked = 0

    def write(self, text: str) -> None:
        source = self.front._background
        assert isinstance(source, FileTableSource)
        self.path.write_text(text)
        self.asked += 1
        os.utime(self.path, ns=(self.asked, self.asked))
        assert source.reload() is None

    def ask(self, token: bytes | None = None) -> tuple[str, bytes]:
        """(assigned_by, token) of a request."""
        self.asked += 1
        headers = () if token is None else ((b"x-canaryctl-affinity", token),)
        request = Request("POST", Target("/v1/completions"), headers, b"{}")
        exchange = self.front.core.begin(request, request_id=f"r-{self.asked}", now_s=1e9, wall_s=1e9)
        assert isinstance(exchange, Exchange)
        found = exchange.start.assignment
        return found.assigned_by, dict(found.answer_headers).get(b"x-canaryctl-affinity", b"")


@pytest.mark.parametrize("removed", [WITHOUT, TOKENS.replace("10000", "0"), TOKENS.replace("8002", "8003")])
def test_a_token_does_not_live_again_with_the_canary(path: Path, removed: str) -> None:
    router = TokenRouter(path)
    _, token = router.ask()
    before = router.ask(token)[0]
    router.write(removed)
    router.write(TOKENS)
    after, new = router.ask(token)
    router.write(removed)
    router.write(TOKENS)

    assert (before, after) == ("pinned", "request")
    assert [router.ask(one)[0] for one in (token, new)] == ["request", "request"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('8002"', '8002", model: other'),
        ('8001"', '8001", model: other'),
        ('8002"', '8002", version: v9'),
        ('8002"', '8002", since: 2026-11-29'),
        ("spring", "autumn"),
    ],
)
def test_a_token_ends_with_what_it_was_drawn_for(path: Path, old: str, new: str) -> None:
    router = TokenRouter(path)
    _, token = router.ask()
    router.write(TOKENS.replace(old, new))

    assert router.ask(token)[0] == "request"


def test_a_token_outlives_a_reload_a_restart_and_another_weight(path: Path) -> None:
    router = TokenRouter(path)
    _, token = router.ask()
    router.write(TOKENS.replace("10000", "9999") + "burst_cap: 100\n")
    words = [router.ask(token)[0]]
    words.append(TokenRouter(path).ask(token)[0])

    assert words == ["pinned", "pinned"]


def test_since_makes_routers_agree_that_know_nothing_of_the_canarys_removal(path: Path) -> None:
    routers = TokenRouter(path), TokenRouter(path)
    _, old = routers[0].ask()
    routers[0].write(WITHOUT)  # the other router, or one that starts later, does not see this
    for router in routers:
        router.write(TOKENS.replace('8002"', '8002", since: 2026-11-29'))
    _, new = routers[0].ask()

    assert [router.ask(old)[0] for router in routers] == ["request", "request"]
    assert [router.ask(new)[0] for router in routers] == ["pinned", "pinned"]


def test_stable_has_no_since(path: Path) -> None:
    path.write_text(TOKENS.replace('8001"', '8001", since: x').replace("{key_file: key}", "{}"))

    with pytest.raises(TableFileError, match=r"stable.since 'x': is no key here"):
        read_tables(path, change=1)


# ---- --check


def test_check_says_what_the_file_holds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(SEVERAL)

    assert check(path) == 0
    assert capsys.readouterr().out.splitlines() == [
        "chat: stable http://127.0.0.1:8001, canary http://127.0.0.1:8002 with 5 %, 1 client key, "
        "affinity tokens",
        "streams of chat's canary reach users when they are whole; late_commit: stream passes them on at "
        "once, and a canary that dies in mid-stream is then seen",
        "code: stable http://127.0.0.1:8003, 1 client key, one is required, affinity tokens",
    ]


def test_check_of_a_bad_file_is_one_line_and_exit_2(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("nonsense")

    assert check(path) == 2
    assert capsys.readouterr().err.count("\n") == 1
