"""Golden transcripts of the machine. `REGENERATE=1 pytest tests/scenarios` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
