"""Checkpoints of public reports: what is the same version, and what is another.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from controller.planning.fingerprint import fingerprint_checkpoint

DIGEST = "from pathlib import Path; from controller.planning.fingerprint import fingerprint_checkpoint as f; "


def checkpoint(folder: Path, *, padding: int = 0) -> Path:
    folder.mkdir()
    tensor = {"model.a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}
    header = json.dumps(tensor).encode() + b" " * padding
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(64)))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "vocab_size": 8}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | layers))
    return folder


def test_a_header_that_was_padded_anew_is_the_same_version(tmp_path: Path) -> None:
    first, second = (checkpoint(tmp_path / str(padding), padding=padding) for padding in (0, 40))

    assert fingerprint_checkpoint(first).digest == fingerprint_checkpoint(second).digest


@pytest.mark.slow
def test_a_version_does_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    program = f"{DIGEST}print(f(Path({str(checkpoint(tmp_path / 'c'))!r})).digest)"
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
