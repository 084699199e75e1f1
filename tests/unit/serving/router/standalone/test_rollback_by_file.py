"""Rolling back by the table file: one key takes the canary out, whatever else stands in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.access import digest_of
from serving.messages import CANARY, STABLE
from serving.router.exchange.exchange import Exchange
from serving.router.router import RouterCore
from serving.router.standalone.main import check
from serving.router.standalone.table_file import FileTableSource, make_front
from serving.router.standalone.table_reader import TableFileError, read_file, read_tables
from serving.router.types import Request
from serving.targets import Target
from tests.unit.serving.router.test_metrics import read, value

WEIGHED = f"""
service: chat
stable: {{url: "http://127.0.0.1:8001"}}
canary: {{url: "http://127.0.0.1:8002"ENABLED}}
weight_bp: 9999
audience_bp: {{staff: 10000}}
category_bp: {{code: 10000}}
keys:
  - {{name: staff, sha256: "{digest_of("sk-staff")}", audiences: [staff], categories: [code]}}
  - {{name: ops, sha256: "{digest_of("sk-ops")}", force: true}}
affinity: {{key_file: token}}
"""
STAFF = ((b"authorization", b"Bearer sk-staff"),)
FORCED = ((b"authorization", b"Bearer sk-ops"), (b"x-canaryctl-force", b"canary"))
KEYED = """
services:
  - service: chat
    stable: {url: "http://127.0.0.1:8001"}
    canary: {url: "http://127.0.0.1:8002"}
    weight_bp: 5000
  - service: code
    stable: {url: "http://127.0.0.1:8003"}
    canary: {url: "http://127.0.0.1:8004", api_key_file: key}
    weight_bp: 5000
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "key").write_text("sk-1")
    one = tmp_path / "table.yaml"
    one.write_text(WEIGHED.replace("ENABLED", ""))
    return one


def source_of(path: Path) -> FileTableSource:
    background = make_front(path)._background
    assert isinstance(background, FileTableSource)
    return background


def drawn(core: RouterCore, headers: tuple[tuple[bytes, bytes], ...]) -> Exchange:
    request = Request("POST", Target("/v1/completions"), headers, b'{"user": "u"}')
    exchange = core.begin(request, request_id="req-1", now_s=1e9, wall_s=1e9)
    assert isinstance(exchange, Exchange)
    return exchange


def arm(core: RouterCore, headers: tuple[tuple[bytes, bytes], ...]) -> int:
    return drawn(core, headers).start.assignment.arm


@pytest.mark.parametrize("headers", [(), STAFF, FORCED])
def test_enabled_false_beats_every_weight_and_force(
    path: Path, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    source = source_of(path)
    before = arm(source.cores["chat"], headers)
    path.write_text(WEIGHED.replace("ENABLED", ", enabled: false"))
    error = source.reload()

    assert (before, error, arm(source.cores["chat"], headers)) == (CANARY, None, STABLE)


@pytest.mark.parametrize("restarts", [False, True])
def test_enabled_false_ends_tokens_for_good(path: Path, restarts: bool) -> None:
    source = source_of(path)
    token = dict(drawn(source.cores["chat"], STAFF).start.assignment.answer_headers)[b"x-canaryctl-affinity"]
    pinned = (*STAFF, (b"x-canaryctl-affinity", token))
    assert drawn(source.cores["chat"], pinned).start.assignment.assigned_by == "pinned"

    path.write_text(WEIGHED.replace("ENABLED", ", enabled: false"))
    source.reload()
    if restarts:
        source = source_of(path)
    path.write_text(WEIGHED.replace("ENABLED", ", enabled: true"))
    source.reload()

    assert drawn(source.cores["chat"], pinned).start.assignment.assigned_by == "sticky"


def test_a_deleted_canary_names_every_key_that_still_speaks_of_it(path: Path) -> None:
    text = WEIGHED.replace('canary: {url: "http://127.0.0.1:8002"ENABLED}\n', "")
    path.write_text(text)
    with pytest.raises(TableFileError) as caught:
        read_tables(path, change=1)

    message = str(caught.value)
    assert "weight_bp 9999, audience_bp.staff 10000, category_bp.code 10000 without a canary" in (message)
    assert "enabled: false" in message


def test_one_services_key_does_not_hold_up_the_rollback_of_another(path: Path) -> None:
    path.write_text(KEYED)
    source = source_of(path)
    (path.parent / "key").unlink()
    path.write_text(KEYED.replace("weight_bp: 5000", "weight_bp: 0", 1))
    error = source.reload()
    chat, code = (source.cores[name].table for name in ("chat", "code"))

    assert chat is not None
    assert code is not None
    assert (error, chat.canary, code.canary) == (None, None, None)
    assert source.problems == (
        f"code: canary http://127.0.0.1:8004 is out: api_key_file {path.parent}/key: No such file or "
        "directory; name a readable file",
    )


async def test_a_key_that_comes_back_puts_its_arm_in_again_with_its_tokens(path: Path) -> None:
    path.write_text(KEYED.replace("services:", "affinity: {key_file: token}\nservices:"))
    source = source_of(path)
    generation = source.cores["code"].table.generation  # type: ignore[union-attr]
    (path.parent / "key").rename(path.parent / "away")
    path.write_text(path.read_text() + "\n")
    source.reload()
    (path.parent / "away").rename(path.parent / "key")
    await source.poll()
    table = source.cores["code"].table

    assert table is not None
    assert table.canary is not None
    assert (table.generation, source.problems) == (generation, ())


@pytest.mark.parametrize("text", [None, "12345"])
async def test_a_key_of_tokens_that_is_of_no_use_keeps_nobody_from_starting(
    path: Path, text: str | None
) -> None:
    (path.parent / "token").unlink()
    if text is not None:
        (path.parent / "token").write_text(text)
    source = source_of(path)
    (path.parent / "token").write_text("0123456789abcdef")
    before = source.problems
    await source.poll()

    assert arm(source.cores["chat"], STAFF) == CANARY
    assert "chat: no affinity tokens: affinity: " in before[0]
    assert source.problems == ()
    assert source.cores["chat"].table.affinity is not None  # type: ignore[union-attr]


def test_stable_starts_with_a_key_that_cannot_be_read(path: Path) -> None:
    path.write_text('service: chat\nstable: {url: "http://127.0.0.1:8001", api_key_file: none}')
    file = read_file(path, change=1)

    assert file.tables["chat"].stable is not None
    assert "chat: stable http://127.0.0.1:8001 cannot be asked: api_key_file" in file.problems[0]


def test_check_tells_all_of_a_file_and_its_unreadable_keys(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path.parent / "token").unlink()
    path.write_text(WEIGHED.replace("ENABLED", "") + "burst_cap: 50\nlate_commit: stream\n")
    code = check(path)
    said = capsys.readouterr()
    shown = said.out + said.err

    assert code == 2
    assert said.err.startswith("error: chat: no affinity tokens: affinity: key_file")
    for part in (
        "chat: stable http://127.0.0.1:8001, canary http://127.0.0.1:8002 with 99.99 %",
        "audience staff 100 %",
        "category code 100 %",
        "2 client keys",
        "force by ops",
        "at most 50 canary requests in 10 s",
        "affinity tokens",
        "late_commit stream",
        "no affinity tokens: affinity: key_file",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "canary http://127.0.0.1:8002 with 0 %"),
        ("weight_bp: 5", "canary http://127.0.0.1:8002 with 0.05 %"),
        ("weight_bp: 10000", "canary http://127.0.0.1:8002 with 100 %"),
    ],
)
def test_check_shows_a_canary_of_any_weight(
    path: Path, capsys: pytest.CaptureFixture[str], text: str, shown: str
) -> None:
    path.write_text(
        'service: chat\nstable: {url: "http://127.0.0.1:8001"}\n'
        f'canary: {{url: "http://127.0.0.1:8002"}}\n{text}'
    )

    assert check(path) == 0
    assert shown in capsys.readouterr().out


def test_check_says_that_a_canary_is_off(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(WEIGHED.replace("ENABLED", ", enabled: false"))

    assert check(path) == 0
    assert "canary http://127.0.0.1:8002 off" in capsys.readouterr().out


def weights(path: Path) -> list[float]:
    metrics = read(make_front(path))
    prefix = "canaryctl_router_canary_"
    return [value(metrics, prefix + name) for name in ("weight_ratio", "largest_weight_ratio", "in_table")]


@pytest.mark.slow
def test_the_metrics_tell_who_may_reach_the_canary(path: Path) -> None:
    path.write_text(WEIGHED.replace("ENABLED", "").replace("weight_bp: 9999", "weight_bp: 0"))
    by_audience = weights(path)
    path.write_text(WEIGHED.replace("ENABLED", ", enabled: false"))

    assert by_audience == [0.0, 1.0, 1.0]
    assert weights(path) == [0.0, 0.0, 0.0]
