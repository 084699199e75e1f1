"""Core of a router: its route table and lease, assignment of requests to arms. No socket, no clock.

Rules:
1. The arm is assigned once, before anything else about the request is known.
2. A canary gets requests only while the lease holds: 1 s from when the last answered poll was *sent*. Without
   a lease, or a canary replica that may be asked, nothing is randomised: all go to stable, no evidence.
3. Only requests that ask a model for an answer are eligible, assigned and recorded; all others go to stable.
4. Of an answer whose unit is drawn for it a judge is asked, when the answer has been recorded
   (`judging/worker.py`): no client waits for that, nor does a record.
5. A request open for `settle_s` is recorded as open (`report`), whichever arm it has.

Clocks: `now_s` and `sent_s` are CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial

from msgspec.structs import replace

from serving.judge_messages import JudgeRecord
from serving.judging.worker import JudgeWorker
from serving.messages import STABLE, RecordBatch, RequestRecord, RouteTable, UnitCounts
from serving.router.assignment.assigner import Assigner, canary_of
from serving.router.assignment.assignment import is_eligible
from serving.router.assignment.clients import reserved_field
from serving.router.assignment.judge_coin import JudgeCoin
from serving.router.bodies.as_sent import ids_as_sent
from serving.router.bodies.body_facts import BodyFacts
from serving.router.bodies.continuable import PATHS as CONTINUABLE_PATHS
from serving.router.bodies.named_ids import file_of_batch
from serving.router.bodies.prepared import Prepared, prepare
from serving.router.exchange.answer_text_signals import AnswerText, UnreadTexts
from serving.router.exchange.context import Start
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.held import HeldBytes
from serving.router.exchange.trial import PendingRecord, Trials
from serving.router.headers import coding_of, hop_of, is_preflight, value_of, via_of
from serving.router.records.counters import Counters
from serving.router.records.outbox import Outbox
from serving.router.records.owners import Owners
from serving.router.types import Assignment, Canary, Limits, Refusal, Request
from serving.router.upstreams.health import UpstreamHealth
from serving.router.upstreams.key_answers import KeyAnswers
from serving.router.upstreams.reachability import Unreachable
from serving.table.acknowledgements import TABLE_LEASE_S
from serving.targets import NAMING_PATHS, TEXT_PATHS, id_of, is_list, is_stateful

log = logging.getLogger("canaryctl.router")

SLOWDOWN_RATIO = 0.1  # by which a clock that was set back runs slower until the wall clock has caught up


class MonotonicWallClock:
    """The wall clock of records, which never goes back.

    The log's low watermark cannot go back. After a clock that had jumped ahead was corrected, every request
    would otherwise come too late to count until the time of the jump was reached again.
    """

    def __init__(self) -> None:
        self._now_s = self._at_s = -math.inf

    def at_s(self, now_s: float, wall_s: float) -> float:
        """`wall_s`; while that is behind the last value returned, a time that advances more slowly."""
        if wall_s < self._at_s:
            wall_s = self._at_s + (1 - SLOWDOWN_RATIO) * max(now_s - self._now_s, 0.0)
        self._now_s, self._at_s = now_s, wall_s
        return wall_s


class RouterCore:
    """One router of one service."""

    def __init__(
        self, service: str, *, router: str, limits: Limits | None = None, lease_s: float = TABLE_LEASE_S
    ) -> None:
        """`lease_s` infinite: a router whose table no other process can withdraw (a file)."""
        self.service = service
        self.router = router
        self.hop = hop_of(router, service)
        self.limits = limits or Limits()
        self.outbox = Outbox(router)
        self.counters = Counters()
        self.assigner = Assigner()
        self.table: RouteTable | None = None
        self.models: tuple[str, ...] = ()  # at the table's endpoints; a body is prepared for each
        self.needs_peer = False  # the table trusts headers of some addresses alone
        self.in_flight: dict[str, int] = {}
        self.vocabularies: dict[str, str] = {}
        self.unfit: set[str] = set()
        self.unreachable: Mapping[str, Unreachable] = {}  # of its front
        self.held = HeldBytes()  # of its front
        self.owners = Owners()  # of its front
        self.keys = KeyAnswers()
        self.trials = Trials()
        self.unread = UnreadTexts()
        self.judge = JudgeWorker(router, self._on_verdict)  # has a thread while a table has an order
        self._coin: JudgeCoin | None = None  # None: no judge is asked
        self.health: UpstreamHealth | None = None  # of the upstreams of a file; None: of a fleet
        self._clock = MonotonicWallClock()
        # Eligible requests by id, in order of assignment.
        self._unrecorded: dict[str, Exchange | PendingRecord] = {}
        self._lease_s = lease_s
        self._lease_until_s = -math.inf
        self._polled_s: float | None = None  # when the last answered poll was sent

    @property
    def applied(self) -> tuple[int, int]:
        """The (epoch, change) that every new request obeys: what a poll acknowledges."""
        return (self.table.epoch, self.table.change) if self.table else (0, 0)

    def on_table(self, table: RouteTable | None, *, sent_s: float) -> None:
        """A poll sent at `sent_s` was answered; `table` None: unchanged."""
        if table is not None:
            if (table.epoch, table.change) < self.applied:
                return  # of a table that went back: not obeyed, so no lease either
            self.table = table
            self.models = tuple(arm.model for arm in table.arms if arm.model is not None)
            self.needs_peer = table.access is not None and bool(table.access.trusted)
            self.assigner.use(table)
            # Of a canary that only gets copies pairs are judged (`mirror/`); other answers are no evidence.
            is_asked = table.judge is not None and (table.canary is not None or table.mirror is None)
            self._coin = JudgeCoin(table, table.judge) if table.judge is not None and is_asked else None
            self.judge.use(table.judge, table.rollout)
        self._polled_s = sent_s
        self._lease_until_s = max(self._lease_until_s, sent_s + self._lease_s)
        self.outbox.confirm(sent_s, canary_of(self.table))

    def has_lease(self, now_s: float) -> bool:
        """True while this router may start canary requests."""
        return now_s < self._lease_until_s

    def lease_left_s(self, now_s: float) -> float:
        """Seconds for which canary requests may start; 0: none may. Infinite with a table that never ends."""
        return max(0.0, self._lease_until_s - now_s)

    def table_age_s(self, now_s: float) -> float:
        """Seconds since the last answered poll was sent; infinite: none was answered."""
        return math.inf if self._polled_s is None else max(0.0, now_s - self._polled_s)

    def in_flight_by_arm(self) -> dict[str, int]:
        """Attempts at engines now, by arm of the current table; `left`: at replicas that have left it."""
        arms = {"stable": self.table.stable, "canary": self.table.canary} if self.table else {}
        names = {one.url: name for name, arm in arms.items() if arm is not None for one in arm.replicas}
        counts = {"stable": 0, "canary": 0, "left": 0}
        for url, count in dict(self.in_flight).items():
            counts[names.get(url, "left")] += count
        return counts

    def begin(
        self,
        request: Request,
        *,
        request_id: str,
        now_s: float,
        wall_s: float,
        prepared: Prepared | None = None,
        is_undrawn: bool = False,
        client_name: str = "",
    ) -> Exchange | Refusal:
        """Assign the request's arm. A Refusal, which is no evidence: no table, or an unusable body.

        prepared: by another process; None: prepare the body now. is_undrawn: its client has more than half of
        what the router can do. client_name: whose work it is.
        """
        if self.table is None:
            message = f"service {self.service} has no version in service yet; retry when `up` has finished"
            return Refusal(503, "no_table", message, retry_after_s=1)
        via = via_of(request.headers, self.hop)
        if via is None:
            message = f"an upstream of service {self.service} leads back to this router"
            return Refusal(508, "loop", f"{message}; the operator must correct it")
        client = self.assigner.identify(request)
        if isinstance(client, Refusal):
            return client
        if is_list(request.method, request.path) and self.assigner.hides_lists:
            text = (
                f"service {self.service}: its clients have keys of their own, and the endpoint keeps one list"
            )
            return Refusal(403, "list_of_all_clients", f"{text} for all; ask for what you made by its id")
        owner = client.key if self.assigner.hides_lists else None
        request = self.assigner.without_consumed(request)
        path = request.path
        eligible = is_eligible(request.method, path)
        if prepared is None:
            route = f"{request.method} {path}"
            body = bytes(request.body)  # no copy: it is not large
            prepared = prepare(body, request.headers, self.models, route=route, is_eligible=eligible)
        if prepared.refusal is not None:
            return prepared.refusal
        facts, bodies = prepared.facts, prepared.bodies
        if facts.reserved and (refusal := reserved_field(client, path, facts.reserved)) is not None:
            return refusal
        if owner is not None and (refusal := self._not_its_own(request, owner, facts)) is not None:
            return refusal
        wall_s = self._clock.at_s(now_s, wall_s)
        if not eligible:
            if is_stateful(path):
                assignment = self.assigner.lookup(self.table, request_id)
            else:
                assignment = Assignment(STABLE, 0.0, None, "", request_id, "request", None)
            parts = (request_id, request, self.table, assignment, False, False, wall_s, now_s, bodies)
            start = Start(*parts, owner=owner, via=via)
            return Exchange(self, start)
        is_once = facts.is_once
        aside = self._aside() if is_once else None
        drawn = self.assigner.assign(
            self.table,
            request,
            client,
            facts,
            request_id=request_id,
            now_s=now_s,
            wall_s=wall_s,
            has_lease=self.has_lease(now_s),
            is_aside=aside is not None,
            is_undrawn=is_undrawn,
        )
        if isinstance(drawn, Refusal):
            return drawn
        is_left_out = drawn.assigned_by == "no-capacity" and (drawn.bucket or 0) < self.table.weight_bp
        if aside is not None and self.health is not None and is_left_out:
            self.health.went_to_stable(aside)
        self.outbox.opened(request_id, wall_s)
        n = facts.choices if facts.streams else 1
        may = facts.continuable and path in CONTINUABLE_PATHS
        start = Start(
            *(request_id, request, self.table, drawn, True, facts.streams, wall_s, now_s, bodies, n, may),
            is_background=facts.is_background,
            is_once=is_once,
            asks_whole=facts.asks_whole,
            is_judged=self._coin is not None and self._coin.falls(drawn, path, facts, request.body),
            owner=owner,
            via=via,
            client=client_name,
        )
        if start.is_compared and path in TEXT_PATHS:
            start = replace(start, is_checked=self.unread.may_check(client_name, request.body, now_s))
        exchange = self._unrecorded[request_id] = Exchange(self, start)
        return exchange

    def _not_its_own(self, request: Request, owner: str, facts: BodyFacts) -> Refusal | None:
        """Why a request for what another client made is refused; None: it names nothing that one did."""
        if is_preflight(request.method, request.headers):
            return None
        id, named = id_of(request.path), facts.named_ids
        if request.method == "POST" and request.path == "/v1/batches":
            named = file_of_batch(bytes(request.body))
        elif request.method == "POST" and request.path in NAMING_PATHS:
            coding = value_of(request.headers, b"content-encoding")
            named = ids_as_sent(bytes(request.body), coding_of(coding or ""))
        if named is None:
            text = (
                f"whose ids the body of {request.path} names cannot be told; send smaller, uncompressed JSON"
            )
            return Refusal(400, "ids_unreadable", text)
        found = self.owners.anothers((id, *named) if id is not None else named, owner)
        return None if found is None else Refusal(404, "not_found", f"{found!r} was not found")

    @property
    def is_canary_aside(self) -> bool:
        """Whether each of the canary's replicas is set aside."""
        return self._aside() is not None

    def _aside(self) -> str | None:
        """The canary's address while each of its replicas is set aside; None: one may be asked."""
        health, canary = self.health, self.table.canary if self.table is not None else None
        if health is None or not health.failing or canary is None or not canary.replicas:
            return None
        is_aside = all(health.is_aside(one.url) for one in canary.replicas)
        return canary.replicas[0].url if is_aside else None

    def may_start(self, canary: Canary | None, now_s: float) -> bool:
        """True while the lease holds and this canary is still published."""
        return self.has_lease(now_s) and canary_of(self.table) == canary

    def take_counts(self, *, now_s: float) -> UnitCounts | None:
        """Requests by unit since the last report, when one is due; goes with a poll."""
        return self.assigner.take_counts(now_s=now_s)

    def on_pending(self, request_id: str, pending: PendingRecord) -> None:
        """This request has ended; its record waits for a trial."""
        self._unrecorded[request_id] = pending  # in its place

    def on_record(
        self,
        record: RequestRecord,
        *,
        assigned_s: float,
        canary: Canary | None,
        text: AnswerText | None = None,
    ) -> None:
        """Accept the one record of a request. text: from which its signals are read, in a later turn."""
        self._unrecorded.pop(record.request_id, None)
        self.counters.on_record(record)
        self.outbox.votes.answered(record)
        add = partial(self.outbox.add, record, assigned_s=assigned_s, canary=canary)
        if record.judged:
            add = partial(self._ask_judge, record, text, add)
        if text is None:
            add()
        else:
            self.unread.add(text, record, add)

    @property
    def is_recorded(self) -> bool:
        """True when no request is under way whose record is still to come, and no record waits."""
        return not self._unrecorded and not self.outbox.has_open and not self.outbox.waiting

    def _ask_judge(self, record: RequestRecord, text: AnswerText | None, add: Callable[[], None]) -> None:
        """Report a request of which the judge is asked, and have it asked; its signals have been read."""
        add()
        cause, answer = "no answer", None
        try:
            answer = text.judged() if text is not None else None
        except Exception as exc:  # noqa: BLE001 - by its kind alone: its message may quote the text
            log.error("an answer was not read for the judge", extra={"kind": type(exc).__name__})
            cause = "unreadable"
        if text is None or text.body is None or answer is None:
            self.judge.no_verdict(record.rollout, record.request_id, cause)
        else:
            self.judge.ask(record.rollout, record.request_id, text.body, answer, text.via)

    def _on_verdict(self, record: JudgeRecord) -> None:
        """What came of a question; from the judge's thread too, one at a time."""
        self.counters.on_verdict(record)
        self.outbox.add_verdict(record)

    def report(self, *, now_s: float, wall_s: float, last: bool = False) -> RecordBatch:
        """The next batch for the log; call `outbox.acknowledge` when the log has accepted it.

        Includes every request that by now has been open, or unconfirmed, for `settle_s`.
        """
        while self._unrecorded:
            exchange = next(iter(self._unrecorded.values()))
            if exchange.settle_deadline_s > now_s:
                break
            exchange.record_open()
        if last:
            self.unread.read_all()
        self.outbox.expire(now_s - self.limits.settle_s)
        return self.outbox.next_batch(now_s=self._clock.at_s(now_s, wall_s), last=last)
