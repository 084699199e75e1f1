"""Golden transcripts of the machine. `REGENERATE=1 pytest tests/scenarios` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from controller.store.sql import SqlStore
from tests.scenarios.stored_transcript import StoredPlayer
from tests.scenarios.transcript import replay

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_machine_writes_the_golden_transcript(path: Path) -> None:
    current = replay(path)
    if os.environ.get("REGENERATE") == "1":
        path.write_text(current)

    assert current == path.read_text()


def test_the_transcripts_are_found() -> None:
    assert len(TRANSCRIPTS) >= 15


@pytest.mark.integration
@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_service_loop_writes_the_same_transcript(path: Path, database_url: str) -> None:
    store = SqlStore(database_url)

    current = replay(path, lambda plan_line: StoredPlayer(plan_line, store))

    assert current == path.read_text()
