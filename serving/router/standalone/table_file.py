"""Standalone router: one process in front of OpenAI-compatible upstreams, its route table in a YAML file.

The same core as in Serve, without Ray. The file is reloaded when it changes, services that were added or
removed included; an invalid one is reported in one line and the last good table stays in effect. No other
process can withdraw this table, so its lease never ends, and external upstreams have no fence: a removed
canary gets no new request once the file is reloaded, and whoever waits for it gets stable's answer.

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
    judge: {url: "http://judge:8000/v1", model: judge}  # is asked of answers (`JudgeSpec`); optional
    limits: {client_idle_s: 620}               # of the whole router (`LimitsSpec`); optional

With the keys of `files/client_rules.py` for its clients. Several services on one port are a list,
`services:`, each as above; `keys`, `keys_required`, `trust` and `affinity` beside it hold for those that have
none of their own, and `limits` stands there alone. GET /health, /healthz and /-/healthz answer 200 without a
key, and 503 while the router stops. SIGHUP reads the file at once (`main.py`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from serving.clock import boot_s
from serving.router.front.front_wire import WireFront
from serving.router.records.records_file import KeptFiles
from serving.router.router import RouterCore
from serving.router.standalone.puttings_in import PuttingsIn
from serving.router.standalone.table_mistakes import listed
from serving.router.standalone.table_reader import TableFile, TableFileError, read_file
from serving.router.standalone.table_schema import TableSpec
from serving.router.standalone.table_summary import changes, notes
from serving.router.types import OwnRoutes
from serving.router.upstreams.health import TELL_S, UpstreamHealth
from serving.supervised import LoopState, SupervisedLoops
from serving.table.heavy_keys import HeavyKeys

RELOAD_CHECK_S = 0.25  # a change is in effect after one or two of these
RETRY_S = 5.0  # until a file that was refused is read again though it has not changed
NONE: frozenset[str] = frozenset()
HEALTH_PATHS = (b"/health", b"/healthz", b"/-/healthz")

log = logging.getLogger("canaryctl.router")

Stamp: TypeAlias = tuple[int, int, int]  # of a file: time of its change in ns, size, inode


@dataclass(frozen=True, slots=True)
class _Read:
    """A file that was read."""

    file: TableFile
    is_new: bool  # it says something else than what was known of it
    news: tuple[str, ...]  # what it changes, in lines


def _news(last: TableFile | None, file: TableFile) -> tuple[str, ...]:
    """What a file changes that is to take effect after `last`, each in one line."""
    if last is None:
        return ()
    lines = [f"table applied: {line}" for line in changes(last.specs, file.specs)]
    for name, spec in file.specs.items():
        known = notes(last.specs[name]) if name in last.specs else []
        lines += [note for note in notes(spec) if note not in known]
    return tuple(lines)


class FileTableSource:
    """One core for each service of a file, with its tables as of the last change."""

    def __init__(self, path: Path, kept: KeptFiles | None = None, own: frozenset[str] = NONE) -> None:
        """kept: where records and feedback go; None: they are discarded. own: as in `read_file`."""
        self.own = own
        self._kept = kept or KeptFiles()
        self.cores: dict[str, RouterCore] = {}  # by service, in the order of the file
        self.on_tables: Callable[[tuple[RouterCore, ...]], None] | None = None  # a file has taken effect
        self.mistakes: tuple[str, ...] = ()  # of the file that was refused last, a line each
        self.refused: str | None = None  # why the file as it is on disk is not in effect; None: it is
        self.refused_since_s: float | None = None  # boot clock; None: it is in effect
        self._path = path
        self._router = f"static:{os.getpid()}:{secrets.token_hex(3)}"
        self._file: TableFile | None = None  # in effect
        self._tried_s = 0.0  # when the file was read last
        self._loaded: Stamp | None = None  # of the file when it was last read
        self._settling: Stamp | None = None  # of the file at the last poll
        self._loops = SupervisedLoops()
        self._reading = asyncio.Lock()  # of the file, in a thread
        self._capped: dict[str, tuple[int, float]] = {}  # by service: requests that were told, and when
        self._heavy: dict[str, HeavyKeys] = {}
        self._leaving: list[RouterCore] = []  # whose service has left the file, and requests have not ended
        self._puttings_in = PuttingsIn()

    async def start(self, core: RouterCore) -> None:
        """Start to check the file, in the running event loop. core: one of these."""
        if not self._loops.are_running:
            self._loops.start("table file", self._run)

    async def stop(self) -> None:
        """Stop checking; write the last records."""
        await self._loops.stop()
        try:
            for core in (*self.cores.values(), *self._leaving):
                core.unread.read_all()
                self.take_records(core)
        finally:
            await self._kept.close()

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

    async def poll(self) -> None:
        """Load the file if it has changed and is the same as at the last poll: nobody is writing it now.

        It is read in a thread: a thousand keys take 0.2 s. A file of which a key could not be read is tried
        again each time, one that was refused every RETRY_S: the cause may lie in another file.
        """
        stamp = self._stamp()
        if stamp != self._settling:
            self._settling = stamp
            return
        is_tried = self.refused is not None and stamp == self._loaded
        if not (is_tried and boot_s() - self._tried_s < RETRY_S) and not self._reading.locked():
            async with self._reading:
                await self._load()

    async def read_again(self) -> None:
        """Load the file now, and log what is wrong with it, or that it has not changed. Calls wait for each
        other: the last one loads what the file says then."""
        async with self._reading:
            file, error = self._file, await self._load()
            if error is None and self.refused is not None:
                log.error(f"table refused: {self.refused}; the last good table stays")
            elif error is None and self._file is file:
                log.info("the table file has not changed")

    async def _load(self) -> str | None:
        """As `reload`, in a thread."""
        while self._is_due(stamp := self._stamp()):
            before, known = (self._loaded, self._change), self._known(stamp)
            found = await asyncio.to_thread(self._read, known)
            if before == (self._loaded, self._change):
                return self._take(stamp, found)
        return None  # `reload` was faster

    def reload(self) -> str | None:
        """Load the file if it has changed. What is wrong with it, in one line; None: nothing new.

        All tables change, or none does. Requests under way keep the table that they began with, also those of
        a service that has been removed.
        """
        stamp = self._stamp()
        if not self._is_due(stamp):
            return None
        known = self._known(stamp)
        return self._take(stamp, self._read(known))

    def _is_due(self, stamp: Stamp | None) -> bool:
        """Whether a file with this stamp may say something new."""
        is_same = self._file is not None and stamp == self._loaded
        return not is_same or self.refused is not None or bool(self.problems)

    def _known(self, stamp: Stamp | None) -> TableFile | None:
        """What a file with this stamp says, keys apart; None: it must be read."""
        return self._file if stamp == self._loaded and self.refused is None else None

    def _read(self, known: TableFile | None) -> _Read | TableFileError:
        """The file, or what is wrong with it. known: as in `read_file`. Of 10,000 keys it takes seconds."""
        try:
            file = read_file(self._path, change=self._change + 1, known=known, own=self.own)
        except TableFileError as exc:
            return exc
        return _Read(file, file != known, _news(self._file, file))

    def _take(self, stamp: Stamp | None, found: _Read | TableFileError) -> str | None:
        """Let what was read take effect; what is wrong with it, in one line."""
        self._loaded, self._settling, self._tried_s = stamp, stamp, boot_s()
        if isinstance(found, TableFileError):
            self.mistakes = found.lines
            return self._refuse(str(found))
        tables = found.file.tables
        if self.cores and not tables.keys() & self.cores.keys():  # more likely a mistake than a wish
            return self._refuse(
                f"table {self._path}: service {listed(tables)} is none of those that are served, "
                f"{listed(self.cores)}; keep one of these, or start another router"
            )
        if found.is_new:
            self._use(found)
        return None

    def _refuse(self, why: str) -> str | None:
        if why == self.refused:
            return None
        self.refused = why
        self.refused_since_s = self.refused_since_s or boot_s()
        if self._file is not None:
            log.error(f"table refused: {why}; the last good table stays")
        return why

    def _use(self, found: _Read) -> None:
        file = found.file
        last, self._file = self._file, file
        before = self.cores
        self.cores = {name: self._core(name) for name in file.tables}
        self._leaving += [core for name, core in before.items() if name not in self.cores]
        self._heavy = {name: self._heavy.get(name, HeavyKeys()) for name in file.tables}
        for name, table in self._puttings_in.use(file).items():
            self._heavy[name].begin(table.rollout)
            table = table if self._kept.keeps_records else replace(table, judge=None)  # nobody would read it
            self.cores[name].on_table(replace(table, heavy=self._heavy[name].units), sent_s=boot_s())
        for core in self.cores.values():
            core.limits = file.limits.limits()
            if core.health is not None:
                core.health.failures = file.limits.failures
        self._log_use(last, found)
        self.refused = self.refused_since_s = None
        if self.on_tables is not None:
            self.on_tables(tuple(self.cores.values()))

    def _log_use(self, last: TableFile | None, found: _Read) -> None:
        file = found.file
        if self.refused is not None and last is not None:
            log.info(f"table {self._path} is good again")
        for line in found.news:
            log.info(line)
        if last is not None:
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
        left = {core.service: core for core in self._leaving}
        known = self.cores.get(service) or left.get(service)
        self._leaving = [core for core in self._leaving if core is not known]
        if known is None:
            known = RouterCore(service, router=self._router, lease_s=math.inf)
            known.health = UpstreamHealth(service, now_s=boot_s())
            known.outbox.votes.are_kept = self._kept.keeps_feedback
        return known

    def take_records(self, core: RouterCore) -> None:
        """Take all complete records, however many batches, for the file, if there is one."""
        core.on_table(None, sent_s=boot_s())  # what was drawn until now is confirmed: nobody withdraws a file
        has_more = True
        while has_more:
            batch = core.report(now_s=boot_s(), wall_s=time.time())
            core.outbox.acknowledge()  # first: a batch that could not be kept would come again for ever
            self._kept.add(batch, core.service)
            has_more = bool(batch.records or batch.scores)

    def tell_health(self, now_s: float) -> None:
        """Log which upstreams have begun to fail, and which answer again. Called at each poll."""
        for core in self.cores.values():
            health = core.health
            for fails, line in health.tick(now_s, core.table, core.unreachable) if health is not None else ():
                log.log(logging.WARNING if fails else logging.INFO, line)
            self._tell_capped(core, now_s)

    def _tell_capped(self, core: RouterCore, now_s: float) -> None:
        """Log, once a minute, how many requests a burst cap or overload has kept undrawn."""
        requests = core.counters.requests
        capped = sum(count for (_, _, assigned_by), count in requests.items() if assigned_by == "capped")
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
            await self.poll()
            self.tell_health(boot_s())
            for core in (*self.cores.values(), *self._leaving):
                self.take_records(core)
                self.count(core, now_s=boot_s())
            self._leaving = [core for core in self._leaving if not core.is_recorded]
            self._kept.flush()


def make_front(path: Path) -> WireFront:
    """A router whose tables are in this file. Raises TableFileError."""
    return front_of(source_of(path))


def source_of(path: Path, kept: KeptFiles | None = None, own: frozenset[str] = NONE) -> FileTableSource:
    """The tables of this file. Raises TableFileError."""
    source = FileTableSource(path, kept, own)
    error = source.reload()
    if error is not None:
        raise TableFileError(error, source.mistakes)
    return source


def front_of(source: FileTableSource) -> WireFront:
    """A router with these tables."""
    front = WireFront(tuple(source.cores.values()), source)
    source.on_tables = front.serve
    front.serve_own_routes(_health_of(front), HEALTH_PATHS)
    return front


def _health_of(front: WireFront) -> OwnRoutes:
    """Answers a balancer's question, which needs no key."""

    async def answer(path: str) -> tuple[int, bytes] | None:
        if path.encode() not in HEALTH_PATHS:  # it only begins like one
            return None
        return (503, b"stopping\n") if front.is_stopping else (200, b"ok\n")

    return answer
