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
    affinity: {key_env: TOKEN_KEY}             # tokens that keep clients on their version; optional

With the keys of `files/client_rules.py` for its clients. Several services on one port are a list,
`services:`, each as above; `keys`, `keys_required`, `trust` and `affinity` beside it hold for those that have
none of their own.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import uvloop
from pydantic import BaseModel, ValidationError

from serving.access import Affinity
from serving.clock import boot_s
from serving.credentials import KeyReference, NoKey, UnitKey
from serving.files.client_rules import KeySpec, TrustSpec
from serving.files.strict_yaml import YamlError, load_yaml
from serving.messages import Arm, Replica, RouteTable
from serving.router.front_wire import WireFront
from serving.router.metrics import MetricsAddress, serve_metrics
from serving.router.router import RouterCore
from serving.router.table_schema import SHARED, AffinitySpec, TableSpec, UpstreamSpec
from serving.supervised import LoopState, SupervisedLoops
from serving.table.heavy_keys import HeavyKeys

RELOAD_CHECK_S = 0.5
OK, BAD_INPUT, UNREACHABLE = 0, 2, 4
SHORTEST_TOKEN_KEY = 16  # bytes
_FIRST = ("service", "stable", "canary", "weight_bp", "salt")  # in messages


class TableFileError(ValueError):
    """The file is invalid or unreadable; one line with the value, the limit and the remedy."""


def read_tables(path: Path, *, change: int) -> dict[str, RouteTable]:
    """The tables in the file by service, as revision `change`. Raises TableFileError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise TableFileError(f"table {path}: {reason}; name a readable YAML file") from exc
    try:
        entries = _entries(load_yaml(text))
    except YamlError as exc:
        line = f" line {exc.line}" if exc.line is not None else ""
        raise TableFileError(f"table {path}{line}: {exc}") from exc
    except ValueError as exc:
        raise TableFileError(f"table {path}: {exc}") from exc
    tables: dict[str, RouteTable] = {}
    for where, entry in entries:
        try:
            table = _table(TableSpec.model_validate(entry), path.parent, change)
        except ValidationError as exc:
            raise TableFileError(f"table {path}: {where}{_first_line(exc)}") from exc
        except ValueError as exc:
            raise TableFileError(f"table {path}: {where}{exc}") from exc
        if table.service in tables:
            raise TableFileError(f"table {path}: service {table.service} is given twice; keep one")
        tables[table.service] = table
    return tables


def read_table(path: Path, *, change: int) -> RouteTable:
    """The table of a file with one service. Raises TableFileError."""
    tables = read_tables(path, change=change)
    if len(tables) > 1:
        raise TableFileError(f"table {path}: has services {_list(tables)}; give a file with one")
    return next(iter(tables.values()))


def _entries(data: object) -> list[tuple[str, object]]:
    """(path, values) of each service. Raises ValueError."""
    if not isinstance(data, dict) or "services" not in data:
        return [("", data)]
    shared = {name: value for name, value in data.items() if name != "services"}
    if unknown := next((name for name in shared if name not in SHARED), None):
        raise ValueError(
            f"{unknown} stands beside services; give it to one of them, or one of {_list(SHARED)}"
        )
    services = data["services"]
    if not isinstance(services, list) or not services:
        raise ValueError("services is no list of services; write each with a dash")
    entries: list[tuple[str, object]] = []
    for number, one in enumerate(services):
        entry = {**shared, **one} if isinstance(one, dict) else one
        entries.append((f"services.{number}.", entry))
    return entries


def _table(spec: TableSpec, folder: Path, change: int) -> RouteTable:
    """Raises ValueError."""
    largest_bp = max(spec.weight_bp, spec.largest_bp)
    if largest_bp and spec.canary is None:
        name = "weight_bp" if spec.weight_bp else "a weight of"
        raise ValueError(f"{name} {largest_bp} without a canary; add one or set 0")
    stable = _arm(spec.stable, "stable", folder)
    canary = _arm(spec.canary, "canary", folder) if spec.canary and largest_bp else None
    affinity = _affinity(spec.affinity, folder)
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
        access=spec.access(),
        # Routers that share a key of tokens also name units alike: a token holds its unit.
        unit_key=UnitKey.of(affinity.key) if affinity is not None else None,
        affinity=affinity,
        # Tokens hold while neither upstream changes; with the canary's removal or a new salt they end.
        generation=" ".join(one.url for one in (spec.stable, spec.canary) if one is not None),
        burst_cap=spec.burst_cap,
        late_commit=spec.late_commit,
    )


def _affinity(spec: AffinitySpec | None, folder: Path) -> Affinity | None:
    """How tokens are signed. Without a key by a random one, so that they end with this process."""
    if spec is None:
        return None
    reference = KeyReference.from_names(spec.key_env, _located(spec.key_file, folder))
    if reference is None:
        return Affinity(_process_key(), spec.cookie)
    try:
        key = reference.read().encode()
    except NoKey as exc:
        raise ValueError(f"affinity: {str(exc).replace('api_key_', 'key_')}") from exc
    if len(key) < SHORTEST_TOKEN_KEY:
        raise ValueError(
            f"affinity: the key of {len(key)} bytes is shorter than {SHORTEST_TOKEN_KEY}; "
            "make one with: openssl rand -hex 32"
        )
    return Affinity(key, spec.cookie)


@functools.lru_cache(maxsize=1)
def _process_key() -> bytes:
    return secrets.token_bytes(32)


def _located(file: str | None, folder: Path) -> str | None:
    return None if file is None else str((folder / Path(file).expanduser()).absolute())


def _arm(upstream: UpstreamSpec, name: str, folder: Path) -> Arm:
    """The upstream as an arm. Raises NoKey when its key cannot be read now."""
    api_key = KeyReference.from_names(upstream.api_key_env, _located(upstream.api_key_file, folder))
    if api_key is not None:
        api_key.read()
    replicas = (Replica(upstream.url),)
    return Arm(upstream.version or name, replicas, True, upstream.model, api_key)


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    loc = first["loc"]
    where = ".".join(str(part) for part in loc)
    got = first.get("input")
    is_plain = isinstance(got, str | int | float | bool) and "key" not in str(loc[-1:])
    is_shown = is_plain and not {"url", "sha256"} & set(loc)  # a key must not be shown
    value = f" {got!r}" if is_shown else ""
    is_unknown = first["type"] == "extra_forbidden"
    known = f"; keys are {_known_at(loc)}" if is_unknown else ""
    colon = f"{where}{value}: " if where else ("" if first["type"] == "value_error" else "the file: ")
    return f"{colon}{first['msg'].removeprefix('Value error, ')}{known}"


def _known_at(loc: tuple[int | str, ...]) -> str:
    """The keys that the mapping around this place may have."""
    kinds: dict[object, type[BaseModel]] = {
        "stable": UpstreamSpec,
        "canary": UpstreamSpec,
        "keys": KeySpec,
        "trust": TrustSpec,
        "affinity": AffinitySpec,
    }
    fields = (kinds[loc[0]] if len(loc) > 1 and loc[0] in kinds else TableSpec).model_fields
    names = [field.alias or name for name, field in fields.items()]
    return _list(sorted(names, key=lambda name: name not in _FIRST))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


class FileTableSource:
    """Loads the tables of some cores from a file whenever it changes. Records are discarded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded: tuple[int, int, int] | None = None  # stamp of the file when it was last read
        self._loops = SupervisedLoops()
        self._cores: list[RouterCore] = []
        self._heavy: dict[str, HeavyKeys] = {}

    async def start(self, core: RouterCore) -> None:
        """Start to check the file for this core, in the running event loop."""
        self._cores.append(core)
        if not self._loops.are_running:
            self._loops.start("table file", self._run)

    async def stop(self) -> None:
        """Stop checking."""
        await self._loops.stop()

    @property
    def loops(self) -> tuple[LoopState, ...]:
        """The loop that checks."""
        return self._loops.states

    def reload(self, *cores: RouterCore) -> str | None:
        """Load the file if it has changed. What is wrong with it, in one line; None: nothing.

        All tables change, or none does. Requests under way keep the table that they began with.
        """
        stamp = self._stamp()
        if stamp == self._loaded:
            return None
        self._loaded = stamp
        try:
            tables = read_tables(self._path, change=max(core.applied[1] for core in cores) + 1)
            found, served = sorted(tables), sorted(core.service for core in cores)
            if found != served:
                raise TableFileError(
                    f"table {self._path}: service {_list(found)} is not {_list(served)}; start another router"
                )
        except TableFileError as exc:
            return str(exc)
        for core in cores:
            table, heavy = tables[core.service], self._heavy.setdefault(core.service, HeavyKeys())
            heavy.begin(table.rollout)
            core.on_table(replace(table, heavy=heavy.units), sent_s=boot_s())
        return None

    def count(self, core: RouterCore, *, now_s: float) -> None:
        """Take this core's requests by unit; publish a unit that has become heavy."""
        counts, heavy = core.take_counts(now_s=now_s), self._heavy.get(core.service)
        if counts is None or heavy is None or core.table is None:
            return
        if heavy.add(counts, now_s=now_s):
            table = replace(core.table, heavy=heavy.units, change=core.table.change + 1)
            core.on_table(table, sent_s=now_s)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_CHECK_S)
            error = self.reload(*self._cores)
            if error is not None:
                _print_line(f"{error}; the last good table stays")
            for core in self._cores:
                # A standalone router's records have no reader: discard them as soon as they are complete.
                core.on_table(None, sent_s=boot_s())
                core.report(now_s=boot_s(), wall_s=time.time())
                core.outbox.acknowledge()
                self.count(core, now_s=boot_s())


def make_front(path: Path) -> WireFront:
    """A router whose tables are in this file. Raises TableFileError."""
    router = f"static:{os.getpid()}:{secrets.token_hex(3)}"
    services = read_tables(path, change=1)
    cores = [RouterCore(service, router=router, lease_s=math.inf) for service in services]
    source = FileTableSource(path)
    error = source.reload(*cores)
    if error is not None:
        raise TableFileError(error)
    return WireFront(cores, source)


def check(table_path: str | Path) -> int:
    """Read the file and say what it holds, one line a service. The exit code: 0, or 2 after one line."""
    try:
        tables = read_tables(Path(table_path), change=1)
    except TableFileError as exc:
        _print_line(str(exc))
        return BAD_INPUT
    for table in tables.values():
        arms = [f"stable {_urls(table.stable)}"]
        if table.canary is not None:
            arms.append(f"canary {_urls(table.canary)} with {table.weight_bp / 100:g} %")
        if table.access is not None:
            count = len(table.access.keys)
            arms.append(f"{count} client key{'' if count == 1 else 's'}")
        _print_line(f"{table.service}: {', '.join(arms)}")
    return OK


def _urls(arm: Arm | None) -> str:
    return _list(one.url for one in arm.replicas) if arm is not None else "none"


def main(
    table_path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics: MetricsAddress | None = None,
) -> int:
    """Serve until interrupted, with Prometheus metrics at `metrics`; None: without.

    The exit code: 0, or after one line 2 (file) or 4 (port).
    """
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
    for service in front.services:
        _print_line(f"routing {service} at http://{host}:{listening.getsockname()[1]}/{service}/v1")
    if metrics is not None:
        try:
            _, metrics_port = serve_metrics(front, metrics)
        except (OSError, OverflowError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not a port"
            where = f"port {metrics.port} on {metrics.host}"
            _print_line(f"metrics {where}: {reason}; choose another with --metrics-port")
            return UNREACHABLE
        _print_line(f"metrics at http://{metrics.host}:{metrics_port}/metrics")
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
