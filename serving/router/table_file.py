"""Standalone router: one process in front of OpenAI-compatible upstreams, its route table in a YAML file.

The same core as in Serve, without Ray. The file is reloaded when it changes; an invalid one is reported in
one line and the last good table stays in effect. No other process can withdraw this table, so its lease never
ends, and external upstreams have no fence: a removed canary gets no new request once the file is reloaded.

    service: chat
    stable: {url: "http://127.0.0.1:8001"}     # a base URL as written; a bare host serves at /v1
    canary:                                    # optional
      url: "https://api.example/v1beta/openai"
      model: example-large                     # its name there, put in place of the client's; optional
      api_key_env: EXAMPLE_KEY                 # or api_key_file: PATH; optional
    weight_bp: 500                             # 5 %
    salt: 2026-11-spring                       # a new salt assigns all keys anew
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Self

import uvloop
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serving.clock import boot_s
from serving.credentials import ENV_NAME, KeyReference, NoKey
from serving.files.strict_yaml import YamlError, load_yaml
from serving.messages import FULL_BP, Arm, Replica, RouteTable
from serving.router.front_wire import WireFront
from serving.router.router import RouterCore
from serving.targets import Endpoint

RELOAD_CHECK_S = 0.5
OK, BAD_INPUT, UNREACHABLE = 0, 2, 4


class TableFileError(ValueError):
    """The file is invalid or unreadable; one line with the value, the limit and the remedy."""


class _Upstream(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    version: str = ""
    model: str | None = Field(None, min_length=1)
    api_key_env: str | None = Field(None, pattern=ENV_NAME)
    api_key_file: str | None = Field(None, min_length=1)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        Endpoint.parsed(url)
        return url.rstrip("/")

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; keep one")
        return self


class _TableFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    service: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    stable: _Upstream
    canary: _Upstream | None = None
    weight_bp: int = Field(0, ge=0, le=FULL_BP, strict=True)
    salt: str = ""


def read_table(path: Path, *, change: int) -> RouteTable:
    """The table in the file, as revision `change`. Raises TableFileError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise TableFileError(f"table {path}: {reason}; name a readable YAML file") from exc
    try:
        spec = _TableFile.model_validate(load_yaml(text))
    except YamlError as exc:
        line = f" line {exc.line}" if exc.line is not None else ""
        raise TableFileError(f"table {path}{line}: {exc}") from exc
    except ValidationError as exc:
        raise TableFileError(f"table {path}: {_first_line(exc)}") from exc
    if spec.weight_bp and spec.canary is None:
        raise TableFileError(f"table {path}: weight_bp {spec.weight_bp} without a canary; add one or set 0")
    try:
        stable = _arm(spec.stable, "stable", path.parent)
        canary = _arm(spec.canary, "canary", path.parent) if spec.canary and spec.weight_bp else None
    except NoKey as exc:
        raise TableFileError(f"table {path}: {exc}") from exc
    return RouteTable(
        service=spec.service,
        epoch=1,
        revision=change,
        change=change,
        rollout=f"file-{spec.salt}" if canary else "",
        salt=spec.salt,
        weight_bp=spec.weight_bp,
        stable=stable,
        canary=canary,
    )


def _arm(upstream: _Upstream, name: str, folder: Path) -> Arm:
    """The upstream as an arm. Raises NoKey when its key cannot be read now."""
    file = upstream.api_key_file
    key_file = None if file is None else str((folder / Path(file).expanduser()).absolute())
    api_key = KeyReference.from_names(upstream.api_key_env, key_file)
    if api_key is not None:
        api_key.read()
    replicas = (Replica(upstream.url),)
    return Arm(upstream.version or name, replicas, True, upstream.model, api_key)


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the file"
    got = first.get("input")
    is_plain = isinstance(got, str | int | float | bool) and "key" not in str(first["loc"][-1:])
    value = f" {got!r}" if is_plain and "url" not in first["loc"] else ""  # a key must not be shown
    is_unknown = first["type"] == "extra_forbidden"
    known = "; keys are service, stable, canary, weight_bp, salt" if is_unknown else ""
    if is_unknown and len(first["loc"]) > 1:
        known = "; keys are url, version, model, api_key_env, api_key_file"
    return f"{where}{value}: {first['msg'].removeprefix('Value error, ')}{known}"


class FileTableSource:
    """Loads a core's table from a file whenever the file changes. Records are discarded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded: tuple[int, int, int] | None = None  # stamp of the file when it was last read
        self._task: asyncio.Task[None] | None = None

    async def start(self, core: RouterCore) -> None:
        """Start to check the file, in the running event loop."""
        self._task = asyncio.create_task(self._run(core))

    async def stop(self) -> None:
        """Stop checking."""
        if self._task is not None:
            self._task.cancel()

    def reload(self, core: RouterCore) -> str | None:
        """Load the file if it has changed. What is wrong with it, in one line; None: nothing."""
        stamp = self._stamp()
        if stamp == self._loaded:
            return None
        self._loaded = stamp
        try:
            table = read_table(self._path, change=core.applied[1] + 1)
            if table.service != core.service:
                raise TableFileError(
                    f"table {self._path}: service {table.service} is not {core.service}; start another router"
                )
        except TableFileError as exc:
            return str(exc)
        core.on_table(table, sent_s=boot_s())
        return None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def _run(self, core: RouterCore) -> None:
        while True:
            await asyncio.sleep(RELOAD_CHECK_S)
            error = self.reload(core)
            if error is not None:
                _print_line(f"{error}; the last good table stays")
            # A standalone router's records have no reader: discard them as soon as they are complete.
            core.on_table(None, sent_s=boot_s())
            core.report(now_s=boot_s(), wall_s=time.time())
            core.outbox.acknowledge()


def make_front(path: Path) -> WireFront:
    """A router whose table is in this file. Raises TableFileError."""
    service = read_table(path, change=1).service
    core = RouterCore(service, router=f"static:{os.getpid()}:{secrets.token_hex(3)}", lease_s=math.inf)
    source = FileTableSource(path)
    error = source.reload(core)
    if error is not None:
        raise TableFileError(error)
    return WireFront(core, source)


def main(table_path: str | Path, host: str = "127.0.0.1", port: int = 8000) -> int:
    """Serve until interrupted. The exit code: 0, or after one line 2 (file) or 4 (port)."""
    try:
        front = make_front(Path(table_path))
    except TableFileError as exc:
        _print_line(str(exc))
        return BAD_INPUT
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a port"
        _print_line(f"port {port} on {host}: {reason}; choose another with --port")
        return UNREACHABLE
    base = f"http://{host}:{listening.getsockname()[1]}/{front.core.service}/v1"
    _print_line(f"routing {front.core.service} at {base}")
    uvloop.run(_serve(front, listening))
    return OK


async def _serve(front: WireFront, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests under way end first, unless a second signal comes."""
    stopping, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (at_once if stopping.is_set() else stopping).set())
    await front.start()
    await front.listen(listening)
    await stopping.wait()
    ending = loop.create_task(front.stop())
    await asyncio.wait({ending, loop.create_task(at_once.wait())}, return_when=asyncio.FIRST_COMPLETED)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is a command's own output
