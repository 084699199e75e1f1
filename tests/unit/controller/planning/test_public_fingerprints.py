"""Checkpoints of public reports: what is the same version, and what is another.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from controller.planning.fingerprint import fingerprint_checkpoint
from tests.fakes.checkpoints import write_checkpoint

DIGEST = "from pathlib import Path; from controller.planning.fingerprint import fingerprint_checkpoint as f; "


def padded(folder: Path, padding: int) -> Path:
    """A checkpoint whose header of weights ends with so many blanks more."""
    weights = write_checkpoint(folder) / "model.safetensors"
    data = weights.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length] + b" " * padding
    weights.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return folder


def test_a_header_that_was_padded_anew_is_the_same_version(tmp_path: Path) -> None:
    first, second = (padded(tmp_path / str(padding), padding) for padding in (0, 40))

    assert fingerprint_checkpoint(first).digest == fingerprint_checkpoint(second).digest


@pytest.mark.slow
def test_a_version_does_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    program = f"{DIGEST}print(f(Path({str(write_checkpoint(tmp_path / 'c'))!r})).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(digests) == 1
