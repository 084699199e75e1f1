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
      enabled: true                            # false: out for everybody, and its tokens end
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
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from serving.clock import boot_s
from serving.messages import RouteTable
from serving.router.front_wire import WireFront
from serving.router.health import TELL_S, UpstreamHealth
from serving.router.records_file import RecordsFile
from serving.router.router import RouterCore
from serving.router.table_reader import TableFile, TableFileError, listed, read_file
from serving.router.table_schema import TableSpec
from serving.router.table_summary import changes, notes
from serving.router.types import OwnRoutes
from serving.supervised import LoopState, SupervisedLoops
from serving.table.heavy_keys import HeavyKeys

RELOAD_CHECK_S = 0.25  # a change is in effect after one or two of these
HEALTH_PATHS = (b"/health", b"/healthz", b"/-/healthz")

log = logging.getLogger("canaryctl.router")

Stamp: TypeAlias = tuple[int, int, int]  # of a file: time of its change in ns, size, inode


class PuttingsIn:
    """How often each canary of a file has been put in again, as far as this process has seen.

    A token of a canary that was removed does not count for the same canary put in later. Routers that share a
    key of tokens, and one that was restarted, know of that only by `canary.since` of the file.
    """

    def __init__(self) -> None:
        self._current: dict[str, str] = {}  # generation in effect, by service
        self._times: dict[tuple[str, str], int] = {}  # by service and generation

    def use(self, file: TableFile) -> dict[str, RouteTable]:
        """The tables of a file that takes effect, each with the generation of its canary.

        A canary that is out because its key cannot be read has not left: its tokens hold when it is back. One
        that is off has left, also for a router that starts while it is.
        """
        tables, current = file.tables, {}
        for name, table in tables.items():
            is_waiting = name in file.without_key and self._current.get(name) == table.generation
            if table.canary is not None or is_waiting:
                current[name] = table.generation
            elif file.is_off(name):
                self._times.setdefault((name, table.generation), 0)
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
    """One core for each service of a file, with its tables as of the last change."""

    def __init__(self, path: Path, records: RecordsFile | None = None) -> None:
        """records: where the records of requests go; None: they are discarded."""
        self._records = records
        self.cores: dict[str, RouterCore] = {}  # by service, in the order of the file
        self.on_services: Callable[[tuple[RouterCore, ...]], None] | None = None  # they have changed
        self.on_limits: Callable[[float, float], None] | None = None  # a file has taken effect
        self.on_tables: Callable[[], None] | None = None  # a file has taken effect
        self.refused: str | None = None  # why the file as it is on disk is not in effect; None: it is
        self.refused_since_s: float | None = None  # boot clock; None: it is in effect
        self._path = path
        self._router = f"static:{os.getpid()}:{secrets.token_hex(3)}"
        self._file: TableFile | None = None  # in effect
        self._loaded: Stamp | None = None  # of the file when it was last read
        self._settling: Stamp | None = None  # of the file at the last poll
        self._loops = SupervisedLoops()
        self._capped: dict[str, tuple[int, float]] = {}  # by service: requests that were told, and when
        self._heavy: dict[str, HeavyKeys] = {}
        self._puttings_in = PuttingsIn()

    async def start(self, core: RouterCore) -> None:
        """Start to check the file, in the running event loop. core: one of these."""
        if not self._loops.are_running:
            self._loops.start("table file", self._run)

    async def stop(self) -> None:
        """Stop checking; write the last records."""
        await self._loops.stop()
        for core in self.cores.values():
            self.take_records(core)
        if self._records is not None:
            await self._records.close()

    @property
    def loops(self) -> tuple[LoopState, ...]:
        """The loop that checks."""
        return self._loops.states

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the file in effect cannot be used now, each in one line."""
        return self._file.problems if self._file is not None else ()

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """What the file in effect says, by service."""
        return self._file.specs if self._file is not None else {}

    def refused_for_s(self) -> float:
        """Seconds for which the file on disk is not in effect; 0: it is."""
        return 0.0 if self.refused_since_s is None else max(0.0, boot_s() - self.refused_since_s)

    def poll(self) -> None:
        """Load the file if it has changed and is the same as at the last poll: nobody is writing it now.

        A file that was refused, or of which a key could not be read, is tried again each time: the cause may
        lie in another file.
        """
        stamp = self._stamp()
        if stamp != self._settling:
            self._settling = stamp
        else:
            self.reload()

    def reload(self) -> str | None:
        """Load the file if it has changed. What is wrong with it, in one line; None: nothing new.

        All tables change, or none does. Requests under way keep the table that they began with, also those of
        a service that has been removed.
        """
        stamp = self._stamp()
        is_same = self._file is not None and stamp == self._loaded
        if is_same and self.refused is None and not self.problems:
            return None
        self._loaded = self._settling = stamp
        try:
            file = self._read()
        except TableFileError as exc:
            return self._refuse(str(exc))
        if is_same and self.refused is None and file.says_the_same_as(self._file):
            return None
        self._use(file)
        return None

    def _read(self) -> TableFile:
        """Raises TableFileError."""
        file = read_file(self._path, change=self._change + 1)
        if self.cores and not file.tables.keys() & self.cores.keys():  # more likely a mistake than a wish
            raise TableFileError(
                f"table {self._path}: service {listed(file.tables)} is none of those that are served, "
                f"{listed(self.cores)}; keep one of these, or start another router"
            )
        return file

    def _refuse(self, why: str) -> str | None:
        if why == self.refused:
            return None
        self.refused = why
        self.refused_since_s = self.refused_since_s or boot_s()
        if self._file is not None:
            log.error(f"table refused: {why}; the last good table stays")
        return why

    def _use(self, file: TableFile) -> None:
        last, self._file = self._file, file
        before, self.cores = self.cores, {name: self._core(name) for name in file.tables}
        self._heavy = {name: self._heavy.get(name, HeavyKeys()) for name in file.tables}
        for name, table in self._puttings_in.use(file).items():
            self._heavy[name].begin(table.rollout)
            self.cores[name].on_table(replace(table, heavy=self._heavy[name].units), sent_s=boot_s())
        for core in self.cores.values():
            core.limits = file.limits.limits()
            if core.health is not None:
                core.health.failures = file.limits.failures
        if self.on_services is not None and before.keys() != self.cores.keys():
            self.on_services(tuple(self.cores.values()))
        self._log_use(last, file)
        self.refused = self.refused_since_s = None
        self.tell_limits()
        if self.on_tables is not None:
            self.on_tables()

    def tell_limits(self) -> None:
        """Call `on_limits` with those of the connections."""
        if self.on_limits is not None and self._file is not None:
            limits = self._file.limits
            self.on_limits(limits.client_idle_s, limits.upstream_age_s)

    def _log_use(self, last: TableFile | None, file: TableFile) -> None:
        if self.refused is not None and last is not None:
            log.info(f"table {self._path} is good again")
        if last is not None:
            for line in changes(last.specs, file.specs):
                log.info(f"table applied: {line}")
            for name, spec in file.specs.items():
                known_notes = notes(last.specs[name]) if name in last.specs else []
                for note in notes(spec):
                    if note not in known_notes:
                        log.info(note)
            if len(last.specs) == 1 and len(file.specs) > 1:
                log.warning("several services: a path without a service's name needs its name as the model")
            if last.specs.keys() != file.specs.keys():
                log.info(f"services are now {listed(self.cores)}")
        known = last.problems if last is not None else ()
        for line in file.problems:
            if line not in known:
                log.error(line)
        for line in known:
            if line not in file.problems:
                log.info(f"no longer so: {line}")

    @property
    def _change(self) -> int:
        """Of the newest table."""
        return max((core.applied[1] for core in self.cores.values()), default=0)

    def _core(self, service: str) -> RouterCore:
        known = self.cores.get(service)
        if known is None:
            known = RouterCore(service, router=self._router, lease_s=math.inf)
            known.health = UpstreamHealth(service)
        return known

    def take_records(self, core: RouterCore) -> None:
        """Take all complete records, however many batches, for the file, if there is one."""
        while records := core.report(now_s=boot_s(), wall_s=time.time()).records:
            if self._records is not None:
                self._records.add(records, core.service)
            core.outbox.acknowledge()
        core.outbox.acknowledge()

    def tell_health(self, now_s: float) -> None:
        """Log which upstreams have begun to fail, and which answer again. Called at each poll."""
        for core in self.cores.values():
            for fails, line in core.health.tick(now_s, core.table) if core.health is not None else ():
                log.log(logging.WARNING if fails else logging.INFO, line)
            self._tell_capped(core, now_s)

    def _tell_capped(self, core: RouterCore, now_s: float) -> None:
        """Log, once a minute, how many requests a burst cap or overload has kept undrawn."""
        counts = dict(core.counters.requests).items()
        capped = sum(count for (_, _, assigned_by), count in counts if assigned_by == "capped")
        told, at_s = self._capped.get(core.service, (0, -TELL_S))
        if capped > told and now_s - at_s >= TELL_S:
            self._capped[core.service] = (capped, now_s)
            cap = core.table.burst_cap if core.table is not None else None
            why = f"burst_cap {cap:g} or overload" if cap is not None else "overload"
            log.warning(f"{core.service}: {capped - told} requests went to stable undrawn ({why})")

    def count(self, core: RouterCore, *, now_s: float) -> None:
        """Take this core's requests by unit; publish a unit that has become heavy."""
        counts, heavy = core.take_counts(now_s=now_s), self._heavy.get(core.service)
        if counts is None or heavy is None or core.table is None:
            return
        if heavy.add(counts, now_s=now_s):
            table = replace(core.table, heavy=heavy.units, change=core.table.change + 1)
            core.on_table(table, sent_s=now_s)

    def _stamp(self) -> Stamp | None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_CHECK_S)
            self.poll()
            self.tell_health(boot_s())
            for core in self.cores.values():
                core.on_table(None, sent_s=boot_s())
                self.take_records(core)
                self.count(core, now_s=boot_s())
            if self._records is not None:
                self._records.flush()


def make_front(path: Path) -> WireFront:
    """A router whose tables are in this file. Raises TableFileError."""
    return front_of(source_of(path))


def source_of(path: Path, records: RecordsFile | None = None) -> FileTableSource:
    """The tables of this file. Raises TableFileError."""
    source = FileTableSource(path, records)
    error = source.reload()
    if error is not None:
        raise TableFileError(error)
    return source


def front_of(source: FileTableSource) -> WireFront:
    """A router with these tables."""
    front = WireFront(tuple(source.cores.values()), source)
    source.on_services, source.on_tables, source.on_limits = (
        front.serve,
        front.tables_changed,
        front.use_limits,
    )
    source.tell_limits()
    front.serve_own_routes(_health_of(front), HEALTH_PATHS)
    return front


def _health_of(front: WireFront) -> OwnRoutes:
    """Answers a balancer's question, which needs no key."""

    async def answer(path: str) -> tuple[int, bytes] | None:
        if path.encode() not in HEALTH_PATHS:
            return None
        return (503, b"stopping\n") if front.is_stopping else (200, b"ok\n")

    return answer
