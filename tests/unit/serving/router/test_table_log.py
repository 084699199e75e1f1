"""What the log of a standalone router says: applied tables, refused files, signals."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from serving.router.log_lines import LOGGER, LineFormatter
from serving.router.table_file import FileTableSource, make_front

TABLE = """
service: chat
stable: {url: "http://127.0.0.1:8001"}
canary: {url: "http://127.0.0.1:8002"}
weight_bp: 2000
"""


@pytest.fixture
def source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> FileTableSource:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    caplog.set_level("INFO", LOGGER)
    background = make_front(path)._background
    assert isinstance(background, FileTableSource)
    return background


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("weight_bp: 2000", "weight_bp: 0", "table applied: chat canary 20 % -> 0 %"),
        ('8002"}', '8002", enabled: false}', "table applied: chat canary 20 % -> off"),
        (
            "8002",
            "8003",
            "table applied: chat canary URL http://127.0.0.1:8002 -> http://127.0.0.1:8003",
        ),
        (
            "weight_bp: 2000",
            "weight_bp: 50\nburst_cap: 5",
            "table applied: chat canary 20 % -> 0.5 %, burst_cap none -> 5",
        ),
        ('8002"}', '8002", since: x}', "table applied: chat other settings of canary changed"),
    ],
)
def test_an_applied_table_is_one_line_that_says_what_changed(
    source: FileTableSource, caplog: pytest.LogCaptureFixture, old: str, new: str, line: str
) -> None:
    source._path.write_text(TABLE.replace(old, new))
    source.reload()

    assert caplog.messages[0] == line
    assert len(caplog.messages) == 1


def test_a_refused_file_is_told_once_and_so_is_its_return(
    source: FileTableSource, caplog: pytest.LogCaptureFixture
) -> None:
    source._path.write_text("nonsense")
    source.reload()
    source.poll()
    since_s = source.refused_since_s
    source._path.write_text(TABLE)
    source.reload()

    assert [one.split(":")[0] for one in caplog.messages] == [
        "table refused",
        f"table {source._path} is good again",
    ]
    assert since_s is not None
    assert source.refused_since_s is None


def test_a_file_that_is_still_being_written_is_not_taken(source: FileTableSource) -> None:
    seen = []
    source._path.write_text(TABLE.replace("2000", "3000"))
    source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]
    source._path.write_text(TABLE.replace("2000", "4000") + "salt: x\n")
    source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]
    source.poll()
    seen.append(source.cores["chat"].table.weight_bp)  # type: ignore[union-attr]

    assert seen == [2000, 2000, 4000]


def test_a_line_has_time_level_text_and_fields() -> None:
    values = {
        "msg": "no API key\n",
        "levelname": "ERROR",
        "created": 1.5,
        "msecs": 500,
        "error": "x is not set",
    }
    line = LineFormatter().format(logging.makeLogRecord(values))

    assert line == "1970-01-01T00:00:01.500Z ERROR no API key error=x is not set"
