"""One copy of a request to a mirrored canary: sent once, read up to a limit, compared, and recorded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.clock import boot_s
from serving.messages import CANARY, Arm, MirrorOutcome, MirrorRecord, Replica, RouteTable
from serving.router.answers.answer_scan import AnswerScan
from serving.router.answers.answer_text import Said, reading
from serving.router.exchange.sending import engine_headers, refused_by_front
from serving.router.headers import content_type
from serving.router.mirror.mirror_rules import copied_body
from serving.router.turns import take_in_turns
from serving.router.types import Attempt, Failure
from serving.router.upstreams.engine_connection import Headers
from serving.router.upstreams.upstream import Call
from serving.targets import Endpoint

if TYPE_CHECKING:
    from serving.router.mirror.mirror import Kept
    from serving.router.router import RouterCore

ANSWER_LIMIT = 256 << 10  # bytes of an answer, of either arm
PART_COST = 64  # bytes by which each piece of an answer counts beside its own

log = logging.getLogger("canaryctl.router")


@dataclass(frozen=True, slots=True)
class CopyEnd:
    """How a copy ended. at_s: wall clock."""

    outcome: MirrorOutcome
    cause: str | None
    at_s: float
    latency_ms: float | None = None  # None: not ok
    same_text: bool | None = None
    stable: tuple[Said, ...] | None = None
    canary: tuple[Said, ...] | None = None


class Copy:
    """A listener of the one call that the copy is."""

    def __init__(
        self,
        kept: Kept,
        table: RouteTable,
        arm: Arm,
        replica: Replica,
        on_end: Callable[[Copy, CopyEnd], None],
    ) -> None:
        """table: the current one, with the mirrored canary `arm`."""
        self.kept = kept
        self.url = replica.url
        self.status: int | None = None
        self.scan: AnswerScan | None = None
        self._table = table
        self._arm = arm
        self._on_end = on_end
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_s = boot_s()
        self._parts: list[bytes] = []
        self._cost = 0
        self._is_over = False

    def send(self) -> None:
        """Send it. Its end comes once, perhaps before this returns."""
        start, limits = self.kept.start, self.kept.upstream.limits
        body = copied_body(bytes(start.request.body), start.request.headers, self._arm)
        if body is None:
            self._end("withheld", "not written")
            return
        sent_id = start.request_id + "-mirror"
        headers = engine_headers(start, self._table, self._arm, sent_id, is_canary=True)
        endpoint = Endpoint.parsed(self.url)
        first_s = min(limits.mirror_s, limits.canary_stream_s if start.streams else limits.canary_whole_s)
        attempt = Attempt(
            CANARY, endpoint, endpoint.path(start.request.target), headers, body, first_s, self._arm.api_key
        )
        self._timer = asyncio.get_running_loop().call_later(limits.mirror_s, self._late)
        call = self.kept.upstream.open(attempt, "POST", self)
        if self._is_over:
            call.close()
        else:
            self._call = call

    def withdraw(self) -> None:
        """Its canary is no longer the mirrored one: end it."""
        self._end("withheld", "withheld")

    # ---- of the call

    def may_start(self) -> bool:
        """Whether it may be sent now."""
        self._sent_s = boot_s()
        return is_published(self.kept.core, self._arm)

    def on_head(self, status: int, headers: Headers) -> None:
        """The engine's head arrived."""
        refused = refused_by_front(self._arm, headers)
        if refused is not None:
            self._end("withheld" if refused == "withheld" else "failed", "refused")
            return
        self.status = status
        if not 200 <= status < 300:
            self._end("failed", f"status {status}")
            return
        self.scan = self.kept.start.scan(content_type(headers), is_ours=self._arm.has_fence)

    def on_data(self, data: bytes) -> None:
        """Bytes of the answer arrived."""
        self._cost += len(data) + PART_COST
        if self._cost > ANSWER_LIMIT or self.scan is None:
            self._end("failed", "too large")
            return
        try:
            self._parts.append(self.scan.feed(data))
        except Exception:
            log.exception("a copy's answer was not read", extra={"request": self.kept.start.request_id})
            self._end("failed", "malformed")
            return
        if self._call is not None:
            self._call.deadline_s = boot_s() + self.kept.upstream.limits.stall_s

    def on_end(self) -> None:
        """The answer ended."""
        try:
            self._ended()
        except Exception:
            log.exception("a copy's answer was not compared", extra={"request": self.kept.start.request_id})
            self._end("failed", "malformed")

    def on_silent(self) -> bool:
        """Nothing has come in time: it fails."""
        return True

    def on_failed(self, why: Failure) -> None:
        """No answer, or one that broke off."""
        self._end("withheld" if why == "withheld" else "failed", why)

    # ---- inside

    def _ended(self) -> None:
        scan, latency_ms = self.scan, (boot_s() - self._sent_s) * 1000
        assert scan is not None, "an answer has a head"
        cause = scan.end()
        self._parts.append(scan.rest or b"")
        if cause is not None or self.kept.scan is None:
            self._end("failed", cause)
            return
        if self._timer is not None:
            self._timer.cancel()  # it has come in time, however long it waits to be compared
        parts = scan.is_stream, self.kept.scan.is_stream, latency_ms
        take_in_turns(self.kept.upstream.turns, self._comparing(*parts))

    def _comparing(self, is_stream: bool, is_stables_stream: bool, latency_ms: float) -> Iterator[None]:
        try:
            canary = yield from reading(b"".join(self._parts), is_stream=is_stream)
            stable = yield from reading(self.kept.body, is_stream=is_stables_stream)
            same = None if canary is None or stable is None else canary == stable
            self._end("ok", None, latency_ms, same, stable, canary)
        except Exception:
            log.exception("a copy's answer was not compared", extra={"request": self.kept.start.request_id})
            self._end("failed", "malformed")

    def _late(self) -> None:
        self._end("failed", "timeout")

    def _end(
        self,
        outcome: MirrorOutcome,
        cause: str | None,
        latency_ms: float | None = None,
        same_text: bool | None = None,
        stable: tuple[Said, ...] | None = None,
        canary: tuple[Said, ...] | None = None,
    ) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        call, self._call = self._call, None
        if call is not None:
            call.close()
        self._parts = []
        end = CopyEnd(outcome, cause, time.time(), latency_ms, same_text, stable, canary)
        self._on_end(self, end)


def mirror_record(kept: Kept, copy: Copy, end: CopyEnd) -> MirrorRecord:
    """The record of a copy that has ended."""
    start, table = kept.start, kept.start.table
    stable, canary = kept.scan, copy.scan if end.outcome == "ok" else None
    return MirrorRecord(
        seq=0,
        request_id=start.request_id,
        unit=start.assignment.unit,
        rollout=table.rollout,
        at_s=end.at_s,
        path=start.request.path,
        outcome=end.outcome,
        cause=end.cause,
        status=copy.status,
        latency_ms=end.latency_ms,
        stable_latency_ms=(kept.ended_s - start.now_s) * 1000,
        completion_tokens=canary.completion_tokens if canary is not None else None,
        stable_completion_tokens=stable.completion_tokens if stable is not None else None,
        finish_reason=canary.finish_reason if canary is not None else None,
        stable_finish_reason=stable.finish_reason if stable is not None else None,
        same_text=end.same_text,
        router=kept.core.router,
        epoch=table.epoch,
        revision=table.revision,
        prompt_tokens=canary.prompt_tokens if canary is not None else None,
    )


def is_published(core: RouterCore, arm: Arm) -> bool:
    """True while this canary is still the mirrored one and the lease holds."""
    table = core.table
    is_same = table is not None and table.mirror is not None and table.mirror.version == arm.version
    return is_same and core.has_lease(boot_s())
