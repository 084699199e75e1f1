"""A judge in the table of a standalone router: what the file may say, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import read_evidence
from serving.judging.questions import revision
from serving.loopback import bound
from serving.router.records.records_file import KeptFiles, RecordsFile
from serving.router.standalone.main import check
from serving.router.standalone.table_file import front_of, source_of
from serving.router.standalone.table_reader import TableFileError, read_file, read_tables
from serving.router.standalone.table_summary import summary
from tests.fakes.judge_endpoint import judge_endpoint, spoken
from tests.fakes.router_rig import Engine, running

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 5000
judge: {url: "http://127.0.0.1:8003/v1", model: judge}
"""
OTHER = 'service: other, stable: {url: "http://127.0.0.1:8004"}'
MARKED = "Zebulon-Quarterstaff"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    return path


def test_a_judge_is_an_order_while_the_canary_is_in(path: Path) -> None:
    order = read_tables(path, change=1)["chat"].judge
    assert order is not None
    assert (order.url, order.revision) == ("http://127.0.0.1:8003/v1", revision("judge"))
    assert (order.share_bp, order.per_minute, order.metric, order.api_key) == (2000, 60, "quality", None)
    path.write_text(TABLE.replace("8002", "8002', enabled: false, version: 'v").replace('"', "'"))
    assert read_tables(path, change=2)["chat"].judge is None


def test_a_key_that_cannot_be_read_is_told_and_the_judge_stays(path: Path) -> None:
    path.write_text(TABLE.replace("model: judge", "model: judge, api_key_file: missing"))
    file = read_file(path, change=1)
    assert file.tables["chat"].judge is not None
    assert [line for line in file.problems if "judge http://127.0.0.1:8003/v1 cannot be asked" in line]


@pytest.mark.parametrize(
    ("judge", "line"),
    [
        ('{url: "https://api.example.com/v1", model: m}', "its address is not in this network"),
        ('{url: "http://127.0.0.1:8003"}', "judge.model: is missing"),
        ('{url: "http://127.0.0.1:8003", model: m, share_bp: 0}', "judge.share_bp 0: is below 1"),
        ('{url: "http://127.0.0.1:8003", model: m, per_minute: 0}', "judge.per_minute 0: is below 1"),
        ('{url: "http://127.0.0.1:8003", model: m, rate: 3}', "judge.rate 3: is no key here"),
        (
            '{url: "http://127.0.0.1:8000", model: m}',
            "chat.judge http://127.0.0.1:8000 is the address of this",
        ),
    ],
)
def test_a_mistake_about_the_judge_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], judge: str, line: str
) -> None:
    path.write_text(TABLE.replace('{url: "http://127.0.0.1:8003/v1", model: judge}', judge))
    assert check(path) == 2
    told = capsys.readouterr().err.splitlines()
    assert (len(told), line in told[0]) == (1, True)


def test_a_judge_outside_is_allowed_by_a_word(path: Path) -> None:
    judge = '{url: "https://api.example.com/v1", model: m, off_cluster: true}'
    path.write_text(TABLE.replace('{url: "http://127.0.0.1:8003/v1", model: judge}', judge))
    spec = read_file(path, change=1).specs["chat"]
    assert "judge https://api.example.com/v1 as m of 20 %, 60 a minute at most" in summary(spec)


def test_without_records_nobody_is_asked(path: Path) -> None:
    core = source_of(path).cores["chat"]
    assert core.table is not None
    assert core.table.judge is None


def test_a_table_that_is_no_more_is_judged_no_more(path: Path, tmp_path: Path) -> None:
    source = source_of(path, KeptFiles(RecordsFile(tmp_path / "r.jsonl")))
    core = source.cores["chat"]
    assert core.judge._asking is not None
    path.write_text(TABLE.replace("judge:", "# judge:"))
    assert source.reload() is None
    assert core.judge._asking is None


@pytest.mark.slow
def test_a_service_that_left_and_came_back_while_a_request_was_open_is_judged(
    path: Path, tmp_path: Path
) -> None:
    source = source_of(path, KeptFiles(RecordsFile(tmp_path / "r.jsonl")))
    front_of(source)
    core = source.cores["chat"]
    core.outbox.opened("req-1", 1.0)
    both = f"services:\n  - {{{OTHER}}}\n"
    with_judged = both + "  - " + "    ".join(TABLE.strip().splitlines(keepends=True)) + "\n"
    path.write_text(with_judged)
    assert source.reload() is None
    path.write_text(both)
    assert source.reload() is None
    assert core.judge._asking is None
    core.judge.ask("", "req-1", b"{}", "")
    path.write_text(with_judged)
    assert source.reload() is None

    assert source.cores["chat"] is core
    assert core.judge._asking is not None
    core.judge.stop()


class _Marked(Engine):
    """Answers with marked words; its ids, which are recorded, have none."""

    async def well(self, request: web.Request) -> web.StreamResponse:
        message = {"role": "assistant", "content": f"{self.text} {MARKED}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": f"id-{len(self.seen)}", "choices": [choice]})


@pytest.mark.slow
async def test_verdicts_reach_the_file_and_backtest_and_no_text_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A router, two upstreams and a judge on sockets; the canary's answers are worse."""
    shown: list[str] = []

    def says(body: dict[str, Any]) -> tuple[int, Any]:
        text = str(body["messages"][1]["content"])
        shown.append(text)
        return spoken("yes" if f"bad {MARKED}" in text else "no")

    records, path = tmp_path / "requests.jsonl", tmp_path / "table.yaml"
    with caplog.at_level(logging.DEBUG), judge_endpoint(says) as judge:
        async with running(_Marked("good")) as stable, running(_Marked("bad")) as canary:
            judged = f"{{url: '{judge}', model: judge, share_bp: 5000, per_minute: 6000}}"
            path.write_text(
                f"service: chat\nstable: {{url: '{stable.url}'}}\ncanary: {{url: '{canary.url}'}}\n"
                f"weight_bp: 5000\njudge: {judged}\n"
            )
            front = front_of(source_of(path, KeptFiles(RecordsFile(records))))
            await front.start()
            port = await front.listen(bound("127.0.0.1", 0))
            worker = front.core.judge
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/chat/v1") as client:
                for number in range(60):
                    turns = [{"role": "user", "content": f"Who is {MARKED}?"}]
                    body = {"messages": turns, "user": f"u{number}"}
                    assert (await client.post("/chat/completions", json=body)).status_code == 200
            for _ in range(1000):
                await asyncio.sleep(0.01)
                if not any(item.label is None for item in worker._pending.values()):
                    break
            await front.stop(drain_s=0.0)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    requests = [one for one in lines if "kind" not in one]
    verdicts = {one["request_id"]: one["quality"] for one in lines if one.get("kind") == "judge"}
    drawn = {one["request_id"]: float(one["arm"] == "stable") for one in requests if one["judged"]}
    verdicts.pop("", None)
    assert (len(requests), verdicts) == (60, drawn)
    assert 10 < len(drawn) < 50
    found = read_evidence(records, options=ReadOptions())
    quality = [value for value in found.columns["quality"].tolist() if value == value]
    assert (sum(quality), len(quality)) == (sum(drawn.values()), len(drawn))
    assert any(MARKED in text for text in shown)
    for text in (records.read_text(), caplog.text, repr([vars(one) for one in caplog.records])):
        assert MARKED not in text


def test_a_file_that_is_refused_shows_no_address_of_the_judge(path: Path) -> None:
    path.write_text(TABLE.replace("http://127.0.0.1:8003/v1", "http://user:secret@judge/v1"))
    with pytest.raises(TableFileError) as caught:
        read_file(path, change=1)
    assert "secret" not in str(caught.value)


def test_check_says_that_a_judge_is_not_asked(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the log of the running router said so, and not of a table without a canary."""
    assert check(path, records=path.parent / "records.jsonl") == 0
    asked = "is not asked" in capsys.readouterr().out
    assert check(path) == 0
    unread = capsys.readouterr().out
    path.write_text(path.read_text().replace("weight_bp", "# weight_bp"))
    assert check(path, records=path.parent / "records.jsonl") == 0
    unused = capsys.readouterr().out

    assert not asked
    assert "the judge of chat is not asked: nobody would read its verdicts; add --records FILE" in unread
    assert "the judge of chat is not asked: the canary gets no share of the requests" in unused
