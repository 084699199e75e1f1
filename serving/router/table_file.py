"""Standalone router: one process in front of OpenAI-compatible upstreams, its route table in a YAML file.

The same core as in Serve, without Ray. The file is reloaded when it changes, services that were added or
removed included; an invalid one is reported in one line and the last good table stays in effect. No other
process can withdraw this table, so its lease never ends, and external upstreams have no fence: a removed
canary gets no new request once the file is reloaded.

    service: chat
    stable: {url: "http://127.0.0.1:8001"}     # a base URL as written; a bare host serves at /v1
    canary:                                    # optional
      url: "https://api.example/v1beta/openai"
      model: example-large                     # its name there, put in place of the client's; optional
      api_key_env: EXAMPLE_KEY                 # or api_key_file: PATH; optional
      since: 2026-11-20                        # another at each putting-in; optional
    weight_bp: 500                             # 5 %
    salt: 2026-11-spring                       # a new salt assigns all keys anew
    affinity: {key_env: TOKEN_KEY}             # tokens that keep clients on their version; optional
    limits: {client_idle_s: 620}               # of the whole router (`LimitsSpec`); optional

With the keys of `files/client_rules.py` for its clients. Several services on one port are a list,
`services:`, each as above; `keys`, `keys_required`, `trust` and `affinity` beside it hold for those that have
none of their own, and `limits` stands there alone. GET /health answers 200 without a key.
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
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import uvloop

from serving.clock import boot_s
from serving.messages import Arm, RouteTable
from serving.router.front_wire import WireFront
from serving.router.heap import keep_collections_short
from serving.router.metrics import MetricsAddress, serve_metrics
from serving.router.router import RouterCore
from serving.router.table_reader import TableFileError, listed, read_file, read_tables
from serving.router.table_schema import LimitsSpec
from serving.router.types import OwnRoutes
from serving.supervised import LoopState, SupervisedLoops
from serving.table.heavy_keys import HeavyKeys

RELOAD_CHECK_S = 0.5
HEALTH_PATHS = (b"/health", b"/healthz")
OK, BAD_INPUT, UNREACHABLE = 0, 2, 4


class PuttingsIn:
    """How often each canary of a file has been put in again, as far as this process has seen.

    A token of a canary that was removed does not count for the same canary put in later. Routers that share a
    key of tokens, and one that was restarted, know of that only by `canary.since` of the file.
    """

    def __init__(self) -> None:
        self._current: dict[str, str] = {}  # generation in effect, by service
        self._times: dict[tuple[str, str], int] = {}  # by service and generation

    def use(self, tables: Mapping[str, RouteTable]) -> dict[str, RouteTable]:
        """The tables of a file that takes effect, each with the generation of its canary."""
        current = {name: table.generation for name, table in tables.items() if table.canary is not None}
        for one in current.items() - self._current.items():
            self._times[one] = self._times.get(one, -1) + 1
        self._current = current
        used = dict(tables)
        for name, generation in current.items():
            times = self._times[name, generation]
            if times:
                used[name] = replace(tables[name], generation=f"{generation}\n{times}")
        return used


class FileTableSource:
    """One core for each service of a file, with its tables as of the last change. Records are discarded."""

    def __init__(self, path: Path) -> None:
        self.cores: dict[str, RouterCore] = {}  # by service, in the order of the file
        self.on_services: Callable[[tuple[RouterCore, ...]], None] | None = None  # they have changed
        self.limits = LimitsSpec()
        self.on_limits: Callable[[float, float], None] | None = None  # the file was read
        self._path = path
        self._router = f"static:{os.getpid()}:{secrets.token_hex(3)}"
        self._loaded: tuple[int, int, int] | None = None  # stamp of the file when it was last read
        self._loops = SupervisedLoops()
        self._heavy: dict[str, HeavyKeys] = {}
        self._puttings_in = PuttingsIn()

    async def start(self, core: RouterCore) -> None:
        """Start to check the file, in the running event loop. core: one of these."""
        if not self._loops.are_running:
            self._loops.start("table file", self._run)

    async def stop(self) -> None:
        """Stop checking."""
        await self._loops.stop()

    @property
    def loops(self) -> tuple[LoopState, ...]:
        """The loop that checks."""
        return self._loops.states

    def reload(self) -> str | None:
        """Load the file if it has changed. What is wrong with it, in one line; None: nothing.

        All tables change, or none does. Requests under way keep the table that they began with, also those of
        a service that has been removed.
        """
        stamp = self._stamp()
        if self.cores and stamp == self._loaded:
            return None
        self._loaded = stamp
        try:
            file = read_file(self._path, change=self._change + 1)
            tables = file.tables
            if self.cores and not tables.keys() & self.cores.keys():  # more likely a mistake than a wish
                raise TableFileError(
                    f"table {self._path}: service {listed(tables)} is none of those that are served, "
                    f"{listed(self.cores)}; keep one of these, or start another router"
                )
        except TableFileError as exc:
            return str(exc)
        self.limits = file.limits
        if self.on_limits is not None:
            self.on_limits(file.limits.client_idle_s, file.limits.upstream_age_s)
        before, self.cores = self.cores, {name: self._core(name) for name in tables}
        self._heavy = {name: self._heavy.get(name, HeavyKeys()) for name in tables}
        for name, table in self._puttings_in.use(tables).items():
            self._heavy[name].begin(table.rollout)
            self.cores[name].on_table(replace(table, heavy=self._heavy[name].units), sent_s=boot_s())
        if self.on_services is not None and before.keys() != self.cores.keys():
            self.on_services(tuple(self.cores.values()))
        return None

    @property
    def _change(self) -> int:
        """Of the newest table."""
        return max((core.applied[1] for core in self.cores.values()), default=0)

    def _core(self, service: str) -> RouterCore:
        known = self.cores.get(service)
        return known or RouterCore(service, router=self._router, lease_s=math.inf)

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
            before = self.cores.keys()
            error = self.reload()
            if error is not None:
                _print_line(f"{error}; the last good table stays")
            elif before != self.cores.keys():
                _print_line(f"services are now {listed(self.cores)}")
            for core in self.cores.values():
                core.on_table(None, sent_s=boot_s())
                discard_records(core)
                self.count(core, now_s=boot_s())


def discard_records(core: RouterCore) -> None:
    """Take all complete records, however many batches: a standalone router's have no reader."""
    while core.report(now_s=boot_s(), wall_s=time.time()).records:
        core.outbox.acknowledge()
    core.outbox.acknowledge()


def make_front(path: Path) -> WireFront:
    """A router whose tables are in this file. Raises TableFileError."""
    source = FileTableSource(path)
    error = source.reload()
    if error is not None:
        raise TableFileError(error)
    front = WireFront(tuple(source.cores.values()), source)
    source.on_services, source.on_limits = front.serve, front.use_limits
    front.use_limits(source.limits.client_idle_s, source.limits.upstream_age_s)
    front.serve_own_routes(_health_of(front), HEALTH_PATHS)
    return front


def _health_of(front: WireFront) -> OwnRoutes:
    """Answers a balancer's question, which needs no key."""

    async def answer(path: str) -> tuple[int, bytes] | None:
        if path.encode() not in HEALTH_PATHS:
            return None
        return (503, b"stopping\n") if front.is_stopping else (200, b"ok\n")

    return answer


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
    return listed(one.url for one in arm.replicas) if arm is not None else "none"


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
    keep_collections_short()
    await stopping.wait()
    ending = loop.create_task(front.stop())
    await asyncio.wait({ending, loop.create_task(at_once.wait())}, return_when=asyncio.FIRST_COMPLETED)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is a command's own output
