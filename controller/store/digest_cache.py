"""Tensor digests of checkpoint files that were read before, in one file: 140 GB are hashed once."""

from __future__ import annotations

import json
import os
from pathlib import Path

KEPT = 10_000  # files; the newest stay


def read_hashes(path: Path) -> dict[str, str]:
    """What was kept; empty when there is nothing, or nothing readable: then files are simply hashed again."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}


def write_hashes(path: Path, hashes: dict[str, str]) -> None:
    """Keep `hashes`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    newest = dict(list(hashes.items())[-KEPT:])
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(newest))
    partial.replace(path)
