"""Store of mirrored pairs: the text of a request and of both answers, for a judge and for people.

A folder with one file a pair, so that several routers share it and a judge takes what it has read away.

Rules:
1. Bounded: at most MAX_COUNT files and MAX_BYTES in all, none older than MAX_AGE_S; the oldest go first.
2. Files have mode 0600 and the folder 0700. A file is written under another name first, so that a reader sees
   it whole or not at all.
3. What names a user in a request (`user`, `safety_identifier`, `prompt_cache_key`, `metadata`) is left out.
   Every text is redacted (`redaction.py`) before it is written.

Invariant: only here is any text of users kept; records, logs and errors hold none.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serving.judging.redaction import Redaction

SETTING = "CANARYCTL_SAMPLES"  # environment variable: a folder, or `off`
MAX_COUNT = 2_000
MAX_BYTES = 256 << 20
MAX_AGE_S = 24 * 3600.0
FORMAT = 1

_NAMING = ("user", "safety_identifier", "prompt_cache_key", "metadata")
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair. `stable` and `canary`: an object for each choice (`serving.router.answers.answer_text`)."""

    service: str
    rollout: str
    request_id: str
    unit: str  # HMAC of the key: one pair a unit is independent of the others
    at_s: float  # wall clock
    path: str
    stable_version: str
    canary_version: str
    same_text: bool | None
    request: Mapping[str, Any]  # the request's body
    stable: tuple[Mapping[str, Any], ...]
    canary: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class SampleStore:
    """The pairs of one folder. `add` blocks on the disk; safe to call from any thread."""

    folder: Path
    max_count: int = MAX_COUNT
    max_bytes: int = MAX_BYTES
    max_age_s: float = MAX_AGE_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> SampleStore | None:
        """The store in `CANARYCTL_SAMPLES`, by default `samples` of the state folder; None: `off`."""
        text = environ.get(SETTING)
        if text == "off":
            return None
        home = Path(environ.get("CANARYCTL_HOME") or Path.home() / ".canaryctl")
        return cls((Path(text) if text else home / "samples").expanduser().absolute())

    def add(self, sample: Sample) -> bool:
        """Write the pair, then delete the oldest; False: it alone exceeds the bound. Raises OSError."""
        plain, redaction = asdict(sample), Redaction()
        request = {key: value for key, value in sample.request.items() if key not in _NAMING}
        texts = {"request": request, "stable": plain["stable"], "canary": plain["canary"]}
        values = {"format": FORMAT, **plain, **{name: redaction.value(one) for name, one in texts.items()}}
        data = json.dumps(values, ensure_ascii=True).encode()
        if len(data) > self.max_bytes or self.max_count < 1:
            return False
        name = f"{int(sample.at_s * 1000):015d}-{_plain(sample.request_id)}"
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = self.folder / f".{name}.{os.getpid()}.new"
            try:
                descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                unfinished.rename(self.folder / (name + _SUFFIX))
            except OSError:
                with contextlib.suppress(OSError):
                    unfinished.unlink()
                raise
            self._prune(sample.at_s)
        return True

    def read(self) -> list[Mapping[str, Any]]:
        """Every pair, the oldest first; a file that cannot be read, or is gone meanwhile, is left out."""
        found: list[Mapping[str, Any]] = []
        for path in self._paths():
            try:
                values = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(values, dict) and values.get("format") == FORMAT:
                found.append(values)
        return found

    def _paths(self) -> list[Path]:
        """The files of pairs; their names begin with their time."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return []

    def _prune(self, now_s: float) -> None:
        paths = self._paths()
        sizes: list[int] = []
        for path in paths:
            try:
                sizes.append(path.stat().st_size)
            except OSError:  # another router or a judge was faster
                sizes.append(0)
        count, total = len(paths), sum(sizes)
        for path, size in zip(paths, sizes, strict=True):
            is_old = path.name < f"{int((now_s - self.max_age_s) * 1000):015d}"
            if count <= self.max_count and total <= self.max_bytes and not is_old:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            count, total = count - 1, total - size
        for path in self.folder.glob(".*.new"):  # of a router that was killed while it wrote
            with contextlib.suppress(OSError):
                if now_s - path.stat().st_mtime > 60:
                    path.unlink()


def _plain(request_id: str) -> str:
    return "".join(one for one in request_id if one.isascii() and (one.isalnum() or one in "-_"))[:64]
