"""Results of the fault matrix: a JSON file a class, and a small one of all that is committed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent.parent / "results"


class Results:
    """Figures by part and class. A class that has been measured is not measured again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, part: str, name: str) -> dict[str, Any] | None:
        """The figures of a class; None: not measured."""
        path = self._path(part, name)
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def write(self, part: str, name: str, figures: Mapping[str, Any]) -> None:
        """Keep the figures of a class, with the revision of the code that they are of."""
        revision = {"revision": _revision()}
        path = self._path(part, name)
        path.with_suffix(".new").write_text(json.dumps({**figures, **revision}, indent=1, sort_keys=True))
        path.with_suffix(".new").replace(path)

    def collect(self, wanted: Mapping[str, Sequence[str]], command: str) -> dict[str, Any]:
        """All figures so far, for the committed file."""
        parts = {
            part: {name: one for name in names if (one := self.read(part, name)) is not None}
            for part, names in wanted.items()
        }
        missing = {
            part: [name for name in names if name not in parts[part]] for part, names in wanted.items()
        }
        return {
            "what": "faults of a canary under load, every byte of every answer checked (docs/soak.md)",
            "command": command,
            "machine": machine(),
            "not_measured": {part: names for part, names in missing.items() if names},
            **parts,
        }

    def _path(self, part: str, name: str) -> Path:
        return self._folder / f"{part}-{name.replace(' ', '-').replace('%', '')}.json"


def machine() -> str:
    """The machine, in words."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def _revision() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, check=False)
    return done.stdout.strip()
