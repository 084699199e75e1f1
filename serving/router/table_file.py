"""The router by itself: one process in front of OpenAI-compatible upstreams that a YAML file names.

The same core as in Serve, without Ray. The file is read again when it changes; a broken one is reported in
one line and the last good table stays. Nobody can withdraw this table from outside, so its lease never ends,
and external upstreams have no fence: a removed canary gets no new request from the moment the file is read.

    service: chat
    stable: {url: "http://127.0.0.1:8001"}
    canary: {url: "http://127.0.0.1:8002"}     # may be left out
    weight_bp: 500                             # 5 %
    salt: 2026-11-spring                       # another salt draws anew
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import sys
import time
from pathlib import Path

import uvicorn
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving.clock import boot_s
from serving.messages import FULL_BP, Arm, Replica, RouteTable
from serving.router.front_asgi import RouterFront
from serving.router.router import RouterCore
from serving.table.route_table import root_url

LOOK_S = 0.5
OK, BAD_INPUT, UNREACHABLE = 0, 2, 4


class TableFileError(ValueError):
    """The file cannot be used; one line with the value, the limit and the remedy."""


class _Upstream(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    version: str = ""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url {url!r} is not http:// or https://")
        return root_url(url)


class _TableFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    service: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    stable: _Upstream
    canary: _Upstream | None = None
    weight_bp: int = Field(0, ge=0, le=FULL_BP, strict=True)
    salt: str = ""


def read_table(path: Path, *, change: int) -> RouteTable:
    """The table that the file describes, as its `change`-th. Raises TableFileError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise TableFileError(f"table {path}: {reason}; name a readable YAML file") from exc
    try:
        spec = _TableFile.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise TableFileError(f"table {path}: not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        raise TableFileError(f"table {path}: {_first(exc)}") from exc
    if spec.weight_bp and spec.canary is None:
        raise TableFileError(f"table {path}: weight_bp {spec.weight_bp} without a canary; add one or set 0")
    canary = _arm(spec.canary, "canary") if spec.canary and spec.weight_bp else None
    return RouteTable(
        service=spec.service,
        epoch=1,
        revision=change,
        change=change,
        rollout=f"file-{spec.salt}" if canary else "",
        salt=spec.salt,
        weight_bp=spec.weight_bp,
        stable=_arm(spec.stable, "stable"),
        canary=canary,
        secret="",
    )


def _arm(upstream: _Upstream, name: str) -> Arm:
    return Arm(upstream.version or name, (Replica(upstream.url),), external=True)


def _first(error: ValidationError) -> str:
    """The first thing wrong, in one line."""
    one = error.errors()[0]
    where = ".".join(str(part) for part in one["loc"]) or "the file"
    got = one.get("input")
    value = f" {got!r}" if isinstance(got, str | int | float | bool) else ""
    known = "; keys are service, stable, canary, weight_bp, salt" if one["type"] == "extra_forbidden" else ""
    return f"{where}{value}: {one['msg']}{known}"


class FileTableSource:
    """Gives a core the table of a file, again whenever the file changes. Records go nowhere."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, core: RouterCore) -> None:
        """Begins to look at the file, in the running event loop."""
        self._task = asyncio.create_task(self._run(core))

    async def stop(self) -> None:
        """Stops looking."""
        if self._task is not None:
            self._task.cancel()

    def look(self, core: RouterCore) -> str | None:
        """Takes the file if it has changed. Returns what is wrong with it; None: nothing."""
        seen = self._stamp()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            table = read_table(self._path, change=core.applied[1] + 1)
            if table.service != core.service:
                raise TableFileError(
                    f"table {self._path}: service {table.service} is not {core.service}; start another router"
                )
        except TableFileError as exc:
            return str(exc)
        core.heard(table, sent_s=boot_s())
        return None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def _run(self, core: RouterCore) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            wrong = self.look(core)
            if wrong is not None:
                _say(f"{wrong}; the last good table stays")
            # Nobody reads the records of a router that runs by itself: let them settle, and go.
            core.heard(None, sent_s=boot_s())
            core.report(now_s=boot_s(), wall_s=time.time())
            core.outbox.sent()


def make_front(path: Path) -> RouterFront:
    """A router over the table in this file. Raises TableFileError."""
    service = read_table(path, change=1).service
    core = RouterCore(service, router=f"static:{os.getpid()}:{secrets.token_hex(3)}", lease_s=math.inf)
    line = FileTableSource(path)
    wrong = line.look(core)
    if wrong is not None:
        raise TableFileError(wrong)
    return RouterFront(core, line)


def main(table_path: str | Path, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serves until interrupted. Returns the exit code: 0, or after one line 2 (file) or 4 (port)."""
    try:
        front = make_front(Path(table_path))
    except TableFileError as exc:
        _say(str(exc))
        return BAD_INPUT
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a port"
        _say(f"port {port} on {host}: {reason}; choose another with --port")
        return UNREACHABLE
    base = f"http://{host}:{listening.getsockname()[1]}/{front.core.service}/v1"
    _say(f"routing {front.core.service} at {base}")
    config = uvicorn.Config(front, lifespan="on", log_level="error", access_log=False, timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[listening])
    return OK


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is a command's own output
