"""Request records of a standalone router as JSON lines."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
from pathlib import Path

import pytest

from serving.clock import boot_s
from serving.messages import RequestRecord, ScoreRecord
from serving.router.exchange.exchange import Exchange
from serving.router.records.records_file import KeptFiles, RecordsFile
from serving.router.standalone.main import main
from serving.router.standalone.table_file import source_of
from serving.router.types import Attempt, Request
from serving.targets import Target

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 10000
limits: {failures: 0}
"""
OTHER = '{service: other, stable: {url: "http://127.0.0.1:8003"}}'
PROMPT = b'{"user": "alice", "messages": [{"role": "user", "content": "secret words"}]}'


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    return path


def asked(table: Path, records: RecordsFile, count: int = 1) -> None:
    """Requests whose canary is refused and whose stable answers, taken by the source of this table."""
    source = source_of(table, KeptFiles(records))
    core = source.cores["chat"]
    for index in range(count):
        request = Request("POST", Target("/v1/chat/completions"), (), PROMPT)
        exchange = core.begin(request, request_id=f"req-{index}", now_s=1.0, wall_s=1.0)
        assert isinstance(exchange, Exchange)
        answer(exchange, now_s=1.1)
    source.take_records(core)


def answer(exchange: Exchange, *, now_s: float) -> None:
    """The canary refuses, and stable answers."""
    assert isinstance(exchange.next_attempt(), Attempt)
    exchange.broken("refused", now_s=now_s)
    exchange.next_attempt()
    exchange.answered(200, [(b"content-type", b"application/json")])
    message = {"role": "assistant", "content": "an answer"}
    body = {"id": "c-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    exchange.received(json.dumps(body).encode(), now_s=now_s)
    exchange.ended(now_s=now_s)


async def test_a_request_is_one_line_with_the_fields_of_its_record(table: Path) -> None:
    path = table.parent / "records.jsonl"
    records = RecordsFile(path)
    asked(table, records)
    await records.close()
    text = path.read_text()
    (line,) = map(json.loads, text.splitlines())

    assert set(line) == {"service"} | {one.name for one in dataclasses.fields(RequestRecord)} - {"seq"}
    assert (line["service"], line["request_id"], line["arm"], line["w"]) == ("chat", "req-0", "canary", 1.0)
    assert (line["served_arm"], line["outcome"], line["cause"]) == ("stable", "fallback", "refused")
    assert line["attempts"][0] == {
        "arm": "canary",
        "replica": "http://127.0.0.1:8002",
        "cause": "refused",
        "tokens": 0,
    }
    assert "secret" not in text
    assert "alice" not in text
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_file_that_was_moved_away_is_begun_anew(table: Path) -> None:
    path = table.parent / "records.jsonl"
    records = RecordsFile(path)
    asked(table, records)
    await records.close()
    path.rename(path.with_suffix(".1"))
    asked(table, records, 2)
    await records.close()

    assert [len(one.read_text().splitlines()) for one in (path.with_suffix(".1"), path)] == [1, 2]


async def test_a_vote_of_which_no_line_can_be_made_blocks_no_other(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = table.parent / "feedback.jsonl"
    feedback = RecordsFile(path, option="--feedback")
    source = source_of(table, KeptFiles(feedback=feedback))
    core = source.cores["chat"]
    for id in ("before", "x\ud800", "after"):
        core.outbox.votes.waiting.append(ScoreRecord(0, id, "thumbs", 1.0, 1.0))
    source.take_records(core)
    source.take_records(core)
    await source.stop()

    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["before", "after"]
    assert feedback.dropped == 1
    assert "a record could not be written" in caplog.text


async def test_records_wait_within_bounds_while_the_file_cannot_be_written(table: Path) -> None:
    folder = table.parent / "later"
    records = RecordsFile(folder / "records.jsonl", limit=3)
    asked(table, records, 2)
    await records.close()
    asked(table, records, 4)
    folder.mkdir()
    await records.close()
    lines = (folder / "records.jsonl").read_text().splitlines()

    assert (len(lines), records.dropped) == (3, 3)


def test_a_records_file_that_cannot_be_written_ends_the_command_with_one_line(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(table, port=0, records=table.parent / "none" / "records.jsonl")
    shown = capsys.readouterr().err

    assert (code, shown.count("\n")) == (2, 1)
    assert "No such file or directory; name a file that can be written" in shown


async def test_votes_go_to_a_file_of_their_own_in_the_form_that_backtest_reads(table: Path) -> None:
    path = table.parent / "votes.jsonl"
    kept = KeptFiles(feedback=RecordsFile(path, option="--feedback"))
    source = source_of(table, kept)
    core = source.cores["chat"]
    core.outbox.votes.add(("req-1", "thumbs", 0.0), client="key a", now_s=1e6, wall_s=2.0)
    source.take_records(core)
    await kept.close()

    named = {"service": "chat", "id": "req-1", "metric": "thumbs", "score": 0.0, "at_s": 2.0}
    assert [json.loads(line) for line in path.read_text().splitlines()] == [named]
    assert not source_of(table).cores["chat"].outbox.votes.are_kept


async def test_a_batch_that_does_not_fit_is_written_whole_later(
    tmp_path: Path,
) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(b'{"id": "of a process that was kil')
    file = RecordsFile(path)
    file.add_scores([ScoreRecord(0, f"req-{n}", "thumbs", 1.0, 0.0) for n in range(50)], "chat")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        await file._write()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await file._write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    torn, *lines = path.read_text().splitlines()
    assert torn.endswith("kil")
    assert [json.loads(line)["id"] for line in lines] == [f"req-{n}" for n in range(50)]


async def test_a_request_whose_service_leaves_the_file_meanwhile_has_its_record(table: Path) -> None:
    path = table.parent / "records.jsonl"
    source = source_of(table, KeptFiles(RecordsFile(path)))
    core = source.cores["chat"]
    request = Request("POST", Target("/v1/chat/completions"), (), PROMPT)
    exchange = core.begin(request, request_id="req-1", now_s=boot_s(), wall_s=1.0)
    assert isinstance(exchange, Exchange)
    chat = TABLE.replace("limits: {failures: 0}", "").strip().replace("\n", ", ")
    for services in (f"{{{chat}}}, {OTHER}", OTHER):  # a file that keeps no service is refused
        table.write_text(f"limits: {{failures: 0}}\nservices: [{services}]")
        assert source.reload() is None
    assert list(source.cores) == ["other"]

    answer(exchange, now_s=boot_s())
    await source.stop()

    assert [json.loads(line)["request_id"] for line in path.read_text().splitlines()] == ["req-1"]
