"""Each transcript is what the machine does today. `REGENERATE=1 pytest tests/scenarios` rewrites them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios.transcript import replay

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_machine_does_what_the_transcript_says(path: Path) -> None:
    now = replay(path)
    if os.environ.get("REGENERATE") == "1":
        path.write_text(now)

    assert now == path.read_text()


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 15
