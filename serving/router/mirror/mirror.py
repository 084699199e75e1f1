"""Copies of stable's requests to a mirrored canary, whose answers nobody is shown.

Rules:
1. A request is copied when its answer has ended, whole, and its client has it: a copy takes nothing from its
   own request, and what nobody waited for is not asked again. The client's bytes pass through unchanged.
2. Copies go first when anything is short: none is begun while the front is near its limits, the canary has no
   ready replica, IN_FLIGHT copies run and QUEUE wait, or TAPS answers are kept already. One is never sent
   twice, and its answer is read, compared and thrown away: nothing acts on it.
3. One pair a unit: the answers of one conversation are not independent.
4. A copy starts only while the lease holds and this canary is still the mirrored one; else it ends.
5. Both answers are read in turns (`turns.py`): 256 KiB of events at once held up all streams for 0.2 s.

Memory: at most TAPS + QUEUE + IN_FLIGHT + SAVES requests of BODY_LIMIT with two answers of ANSWER_LIMIT.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from serving.clock import boot_s
from serving.judging.samples import Sample, SampleStore
from serving.messages import Arm, RouteTable
from serving.router.answers.answer_events import json_object
from serving.router.answers.answer_scan import AnswerScan
from serving.router.exchange.context import Start
from serving.router.exchange.relay import Client
from serving.router.headers import content_type
from serving.router.mirror.mirror_copy import (
    ANSWER_LIMIT,
    PART_COST,
    Copy,
    CopyEnd,
    is_published,
    mirror_record,
)
from serving.router.mirror.mirror_judge import pair_of, takes_pair
from serving.router.mirror.mirror_rules import is_copied, is_drawn
from serving.router.router import RouterCore
from serving.router.turns import take_in_turns
from serving.router.types import Deliver, Refusal
from serving.router.upstreams.upstream import Upstream

IN_FLIGHT = 4  # copies at once
QUEUE = 16  # that wait for their turn
TAPS = 32  # answers of stable that are kept at once
SCANNED = 1 << 10  # bytes of an answer that are read at once
SAVES = 16  # pairs that wait for the disk
UNITS = 10_000  # units that are remembered to have a pair

log = logging.getLogger("canaryctl.router")


@dataclass(slots=True)
class Kept:
    """A request of stable and its whole answer. Times by the boot clock."""

    core: RouterCore
    upstream: Upstream
    start: Start
    arm: Arm  # the mirrored canary
    is_judged: bool = False  # a judge is asked of both answers
    parts: list[bytes] = field(default_factory=list)
    cost: int = 0  # bytes, of the parts
    scan: AnswerScan | None = None  # of its answer; None: it is not whole
    ended_s: float = 0.0

    @property
    def body(self) -> bytes:
        """Stable's answer."""
        return b"".join(self.parts)


class Tap:
    """Passes one answer on to its client, and keeps it. An error in here is no error of the request."""

    __slots__ = ("_client", "_content_type", "_kept", "_mirror", "_on_over", "_status")

    def __init__(self, mirror: Mirror, kept: Kept, client: Client, on_over: Callable[[], None]) -> None:
        self._mirror = mirror
        self._kept: Kept | None = kept
        self._client = client
        self._on_over = on_over
        self._status = 0
        self._content_type = ""

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for the client."""
        return self._client.unread_bytes

    def deliver(self, action: Deliver) -> None:
        """Send this, then note it."""
        self._client.deliver(action)
        kept = self._kept
        if kept is None:
            return
        try:
            if action.head is not None:
                self._status = action.head.status
                self._content_type = content_type(action.head.headers)
            kept.parts.append(action.data)
            kept.cost += len(action.data) + PART_COST
            if kept.cost > ANSWER_LIMIT or action.then == "break" or not 200 <= self._status < 300:
                self._give_up()
            elif action.then == "end":
                self._give_up()
                self._mirror.ended(kept, self._content_type)
        except Exception:
            log.exception("an answer was not kept for its copy", extra={"request": kept.start.request_id})
            self._give_up()

    def refuse(self, refusal: Refusal) -> None:
        """Send the router's own error."""
        self._give_up()
        self._client.refuse(refusal)

    def over(self) -> None:
        """The request has ended; what is delivered last comes at once."""
        self._on_over()
        if self._kept is not None:
            asyncio.get_running_loop().call_soon(self._give_up)

    def _give_up(self) -> None:
        if self._kept is not None:
            self._kept = None
            self._mirror.untapped()


class Mirror:
    """The copies of one router process."""

    def __init__(self) -> None:
        self.samples: SampleStore | None = None  # None: no text is stored
        self.is_strained = False  # the front is near its limits
        self._taps = self._scans = self._saves = 0
        self._queue: deque[Kept] = deque()
        self._copies: set[Copy] = set()
        self._units: OrderedDict[tuple[str, str], None] = OrderedDict()  # (rollout, unit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_store_failed = self._is_closed = False

    @property
    def counts(self) -> tuple[int, int, int]:
        """Answers that are kept, copies that wait, and copies under way."""
        return self._taps + self._scans, len(self._queue), len(self._copies)

    def tapped(
        self, core: RouterCore, start: Start, upstream: Upstream, client: Client, on_over: Callable[[], None]
    ) -> tuple[Client, Callable[[], None]]:
        """The client and the end of this request, for its relay: tapped when it is to be copied."""
        table = start.table
        arm = table.mirror
        if arm is None or self._is_closed or not is_drawn(table, start.request_id):
            return client, on_over
        if not is_copied(start) or (table.rollout, start.assignment.unit) in self._units:
            return client, on_over
        if self.is_strained or not arm.replicas or self._taps + self._scans >= TAPS:
            core.counters.on_copy("dropped")
            return client, on_over
        self._taps += 1
        tap = Tap(self, Kept(core, upstream, start, arm, takes_pair(core, start)), client, on_over)
        return tap, tap.over

    def untapped(self) -> None:
        """An answer has ended, or is too large."""
        self._taps -= 1

    def ended(self, kept: Kept, content_type: str) -> None:
        """Stable's answer has ended, and its client has it."""
        kept.ended_s = boot_s()
        self._scans += 1
        take_in_turns(kept.upstream.turns, self._scanning(kept, content_type))

    def _scanning(self, kept: Kept, content_type: str) -> Iterator[None]:
        try:
            scan, body = kept.start.scan(content_type, is_ours=False), kept.body
            for at in range(0, len(body), SCANNED):
                scan.feed(body[at : at + SCANNED])
                yield
            if scan.end() is None:
                kept.scan = scan
                self._add(kept)
        except Exception:
            log.exception("an answer was not read for its copy", extra={"request": kept.start.request_id})
        finally:
            self._scans -= 1

    def _add(self, kept: Kept) -> None:
        """The answer is whole: let the copy wait for its turn."""
        unit = (kept.start.table.rollout, kept.start.assignment.unit)
        if unit in self._units or self._is_closed:
            return
        if self.is_strained or len(self._queue) >= QUEUE:
            kept.core.counters.on_copy("dropped")
            return
        self._units[unit] = None
        if len(self._units) > UNITS:
            self._units.popitem(last=False)
        self._queue.append(kept)
        asyncio.get_running_loop().call_soon(self._start_next)

    def check(self, *, is_strained: bool) -> None:
        """Called a few times a second: end the copies whose canary is no longer the mirrored one."""
        self.is_strained = is_strained
        for copy in list(self._copies):
            if not is_published(copy.kept.core, copy.kept.arm):
                copy.withdraw()
        self._start_next()

    def close(self) -> None:
        """Begin no more; those under way end with the connections."""
        self._is_closed = True
        self._queue.clear()

    # ---- inside

    def _start_next(self) -> None:
        while self._queue and len(self._copies) < IN_FLIGHT and not self._is_closed:
            kept = self._queue.popleft()
            table = kept.core.table
            if table is None or not is_published(kept.core, kept.arm):
                continue
            if self.is_strained or table.mirror is None or not table.mirror.replicas:
                kept.core.counters.on_copy("dropped")
                continue
            try:
                self._start(kept, table, table.mirror)
            except Exception:
                log.exception("a copy was not sent", extra={"request": kept.start.request_id})

    def _start(self, kept: Kept, table: RouteTable, arm: Arm) -> None:
        counts = {one.url: 0 for one in arm.replicas}
        for copy in self._copies:
            counts[copy.url] = counts.get(copy.url, 0) + 1
        replica = min(arm.replicas, key=lambda one: counts[one.url])
        copy = Copy(kept, table, arm, replica, self._copied)
        self._copies.add(copy)
        copy.send()

    def _copied(self, copy: Copy, end: CopyEnd) -> None:
        """A copy has ended, in whatever way."""
        self._copies.discard(copy)
        kept = copy.kept
        try:
            kept.core.counters.on_copy(end.outcome)
            kept.core.outbox.add_mirrored(mirror_record(kept, copy, end))
            if kept.is_judged and end.outcome == "ok":
                kept.core.judge.ask_pair(pair_of(kept.start, end.stable, end.canary))
            has_room = not self._is_closed and self._saves < SAVES
            if self.samples is not None and end.outcome == "ok" and has_room:
                self._save(self.samples, kept, end)
        except Exception:  # called by the pool, where it would hold up the calls of users
            log.exception("a copy was not recorded", extra={"request": kept.start.request_id})
        if not self._is_closed:
            asyncio.get_running_loop().call_soon(self._start_next)

    def _save(self, samples: SampleStore, kept: Kept, end: CopyEnd) -> None:
        start, table = kept.start, kept.start.table
        sample = Sample(
            service=kept.core.service,
            rollout=table.rollout,
            request_id=start.request_id,
            unit=start.assignment.unit,
            at_s=end.at_s,
            path=start.request.path,
            stable_version=table.stable.version if table.stable is not None else "",
            canary_version=kept.arm.version,
            same_text=end.same_text,
            request=json_object(bytes(start.request.body)) or {},
            stable=end.stable or (),
            canary=end.canary or (),
        )
        self._saves += 1
        task = asyncio.get_running_loop().create_task(self._write(samples, sample))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, samples: SampleStore, sample: Sample) -> None:
        try:
            await asyncio.to_thread(samples.add, sample)
        except (OSError, ValueError) as exc:
            if not self._has_store_failed:
                extra = {"folder": str(samples.folder), "error": type(exc).__name__}
                log.error("the text of mirrored pairs is not stored", extra=extra)
            self._has_store_failed = True
        else:
            self._has_store_failed = False
        finally:
            self._saves -= 1
