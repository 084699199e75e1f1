"""A rollout of a table file is one canary beside one stable; its records name it and the version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.messages import RequestRecord
from serving.router.exchange.exchange import Exchange
from serving.router.records.records_file import line_of
from serving.router.standalone.table_file import make_front, source_of
from serving.router.standalone.table_reader import read_tables
from serving.router.types import Attempt, Request
from serving.targets import Target

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002", version: v1, model: m1, since: "1"}
weight_bp: 10000
salt: spring
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.yaml"


def rollout(path: Path, text: str) -> str:
    path.write_text(text)
    return read_tables(path, change=1)["chat"].rollout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("8002", "8003"),
        ("version: v1", "version: v2"),
        ("model: m1", "model: m2"),
        ('since: "1"', 'since: "2"'),
        ("8001", "8000"),
        ("spring", "summer"),
    ],
)
def test_another_canary_or_stable_is_another_rollout(path: Path, old: str, new: str) -> None:
    assert rollout(path, TABLE) != rollout(path, TABLE.replace(old, new))


def test_a_ramp_and_a_canary_that_is_off_for_a_while_are_one_rollout(path: Path) -> None:
    first = rollout(path, TABLE)

    assert rollout(path, TABLE.replace("10000", "500") + "burst_cap: 5\n") == first
    assert rollout(path, TABLE.replace('since: "1"', 'since: "1", enabled: false')) == ""
    assert rollout(path, TABLE) == first


def test_services_of_one_file_have_rollouts_of_their_own(path: Path) -> None:
    first = rollout(path, TABLE)
    path.write_text(TABLE.replace("service: chat", "service: code"))

    assert read_tables(path, change=1)["code"].rollout != first


@pytest.mark.parametrize(("weight", "version"), [("10000", "v1"), ("0", "stable")])
def test_a_record_names_the_version_of_its_arm(path: Path, weight: str, version: str) -> None:
    path.write_text(TABLE.replace("10000", weight))
    core = make_front(path).core
    exchange = core.begin(
        Request("POST", Target("/v1/completions"), (), b"{}"), request_id="q", now_s=1.0, wall_s=1.0
    )
    assert isinstance(exchange, Exchange)
    exchange.cancelled(now_s=1.0)

    [record] = core.report(now_s=2.0, wall_s=2.0).records
    assert isinstance(record, RequestRecord)
    assert json.loads(line_of(record, "chat"))["version"] == version


def test_the_file_from_before_a_promotion_with_its_canary_off_undoes_it(path: Path) -> None:
    """docs/router.md, step 5."""
    path.write_text('service: chat\nstable: {url: "http://127.0.0.1:8002", version: v1, model: m1}\n')
    source = source_of(path)
    path.write_text(TABLE.replace('since: "1"', 'since: "1", enabled: false'))
    assert source.reload() is None

    table = source.cores["chat"].table
    assert table is not None
    assert table.canary is None
    assert table.stable is not None
    assert table.stable.replicas[0].url == "http://127.0.0.1:8001"


def test_a_dead_stable_is_left_by_a_weight_of_all(path: Path) -> None:
    """docs/router.md, when an upstream fails."""
    path.write_text(TABLE)
    core = make_front(path).core
    for number in range(20):
        request = Request("POST", Target("/v1/completions"), (), b'{"user": "%d"}' % number)
        exchange = core.begin(request, request_id=f"q{number}", now_s=1.0, wall_s=1.0)
        assert isinstance(exchange, Exchange)
        attempt = exchange.next_attempt()
        assert isinstance(attempt, Attempt)
        assert "8002" in str(attempt.url)
