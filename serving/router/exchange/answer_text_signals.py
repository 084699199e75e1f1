"""Signals of answers that have ended: read in turns of their own, a step each, so that no client waits.

Rules:
1. A record waits for its signals; its request counts as open until then, so that the log's watermark holds.
2. What waits is bounded. Beyond TEXTS_LIMIT answers, or TEXTS_BYTES of them and their requests, a record of
   the client of which most waits goes without signals, on either arm.
3. A text that cannot be read is logged without its text, and its record goes without signals.
4. Every answer that a rollout compares is read. Of all others READ_PER_S are: to read a text costs up to
   several times what its request does.
5. A client's readings wait for each other, nobody else's for them. Whether its answer is checked by the form
   that a request asks for is known by the request alone, at the draw: by what such checks are taken to cost,
   and what its client has left (CLIENT_WORK). So it is alike on both arms, whatever was answered.

Invariant: a text leaves memory with its signals. No record, log or error holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial

from serving.answer_signals import Signals
from serving.clock import boot_s
from serving.judging.conversation import CALLS_LIMIT, called
from serving.judging.forms import Form, Forms, Key, form_of, key_of
from serving.judging.signals import REQUEST_LIMIT, Asked, asked_of, last_of, signals_in_steps
from serving.messages import LIMIT_REASONS, RequestRecord
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_facts import REFUSAL_REASONS
from serving.router.types import Body

TEXTS_LIMIT = 1024
TEXTS_BYTES = 64 << 20  # 160 of the largest
CLIENT_WORK = 4_000_000  # of checks by forms, a second and client, in the unit of `Work`: 200 ms
CLIENTS_LIMIT = 4096  # whose work is known; of the others none is
ALL_S = 2.0  # for what still waits when the router ends
READ_PER_S = 20  # of the answers that no rollout compares; what stable's are like is learned from these

log = logging.getLogger("canaryctl.router")


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer with the body of its request."""

    body: bytes | None  # None: it is too large to be read
    excerpt: AnswerExcerpt
    finish_reason: str | None
    via: bytes = b""  # through which routers the request came, this one included
    client: str = ""  # whose request it was
    form_by: Callable[[Key | None], Form] = form_of  # for what form it asked

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return len(self.body or b"") + self.excerpt.size

    def signals(self) -> Signals:
        """Its signals: some 0.1 ms for a short answer, 1 ms for one of 4000 tokens."""
        return last_of(self.in_steps())

    def in_steps(self) -> Generator[None, None, Signals]:
        """The same in steps, each of which is short whatever was asked and answered."""
        text, characters = self.excerpt.text()
        yield
        asked = asked_of(self.body, self.form_by) if self.body is not None else Asked()
        yield
        reason = (self.finish_reason or "").lower()
        return (
            yield from signals_in_steps(
                asked,
                text,
                refusal=self.excerpt.refuses or reason in REFUSAL_REASONS,
                is_cut=reason in LIMIT_REASONS,
                calls=self.excerpt.calls(),
                characters=characters,
            )
        )

    def judged(self) -> str | None:
        """What a judge is shown of it, its calls of tools too; None: it is not all here, or has no text."""
        text, characters = self.excerpt.text()
        calls = self.excerpt.calls()
        if self.body is None or characters > len(text) or calls is None:
            return None
        parts = [text.strip(), *(called(one.name, one.arguments) for one in calls[:CALLS_LIMIT])]
        return "\n".join(part for part in parts if part) or None


@dataclass(slots=True)
class _Client:
    """What of one client waits."""

    waiting: dict[str, _Reading] = field(default_factory=dict)  # by id of the request, the oldest first
    bytes: int = 0

    @property
    def share_ratio(self) -> float:
        """Of what may wait."""
        return max(len(self.waiting) / TEXTS_LIMIT, self.bytes / TEXTS_BYTES)


@dataclass(frozen=True, slots=True)
class _Reading:
    client: str
    size: int  # bytes
    steps: Generator[None, None, None]
    on_read: Callable[[], None]


class UnreadTexts:
    """Those of one router. `later` is set by its front: it calls a function of a client in a later turn."""

    def __init__(self) -> None:
        self.later: Callable[[Callable[[], object], str], object] = lambda work, _client: work()
        self.bytes = 0  # of what waits
        self._waiting: dict[str, _Reading] = {}  # by id of the request
        self._clients: dict[str, _Client] = {}
        self._spare, self._spare_at_s = float(READ_PER_S), 0.0  # answers that may be read, and since when
        self._forms = Forms()
        self._spent: dict[str, tuple[float, float]] = {}  # work by client that is not made up for, and when

    def wants(self, *, is_compared: bool, now_s: float) -> bool:
        """Whether an answer that begins now is read. is_compared: its arm was drawn in a rollout."""
        if is_compared:
            return True
        at_s = max(self._spare_at_s, now_s)  # an answer that ends now may have begun before the last one
        self._spare = min(self._spare + (at_s - self._spare_at_s) * READ_PER_S, READ_PER_S)
        self._spare_at_s = at_s
        if self._spare < 1.0:
            return False
        self._spare -= 1.0
        return True

    def may_check(self, client: str, body: Body, now_s: float) -> bool:
        """Whether the answer to this request is checked by the form that it asks for, which is charged."""
        if len(body) > REQUEST_LIMIT or (key := key_of(bytes(body))) is None:
            return True
        spent, before_s = self._spent.pop(client, (0.0, now_s))
        at_s = max(before_s, now_s)  # answers end in another order than they begin
        spent = max(0.0, spent - (at_s - before_s) * CLIENT_WORK)
        price = self._forms.price(key)
        is_checked = spent + price <= CLIENT_WORK
        self._spent[client] = spent + price if is_checked else spent, at_s
        if len(self._spent) > CLIENTS_LIMIT:
            del self._spent[next(iter(self._spent))]  # who has asked for nothing for the longest time
        return is_checked

    def form_by(self, *, is_checked: bool) -> Callable[[Key | None], Form]:
        """For what form a request asks by its texts. is_checked: `may_check` has said so."""
        return self._forms.of if is_checked else _any_form

    def add(self, text: AnswerText, record: RequestRecord, on_read: Callable[[], None]) -> None:
        """Read the signals of this record's answer in later turns, then call on_read, once."""
        one = _Reading(text.client, text.size, _reading(text, record), on_read)
        self._clients.setdefault(one.client, _Client()).waiting[record.request_id] = one
        self._clients[one.client].bytes += one.size
        self._waiting[record.request_id] = one
        self.bytes += one.size
        while len(self._waiting) > TEXTS_LIMIT or self.bytes > TEXTS_BYTES:
            most = max(self._clients.values(), key=lambda client: client.share_ratio)
            self._drop(next(reversed(most.waiting))).on_read()
        if record.request_id in self._waiting:
            self.later(partial(self._take, record.request_id), one.client)

    def read_all(self) -> None:
        """Read what still waits, as far as ALL_S are enough: the router ends."""
        end_s, unread = boot_s() + ALL_S, 0
        while self._waiting:
            one = self._drop(next(iter(self._waiting)))
            if boot_s() < end_s:
                for _ in one.steps:
                    pass
            else:
                unread += 1
            one.on_read()
        if unread:
            log.warning("the signals of answers were not read before the end", extra={"answers": unread})

    def _take(self, request_id: str) -> None:
        """Take one step of this reading."""
        if request_id not in self._waiting:
            return
        one, has_ended = self._waiting[request_id], True
        try:
            next(one.steps)
            has_ended = False
        except StopIteration:
            pass
        finally:
            if has_ended:
                self._drop(request_id).on_read()
        if not has_ended:
            self.later(partial(self._take, request_id), one.client)

    def _drop(self, request_id: str) -> _Reading:
        """A reading that waits no more."""
        one = self._waiting.pop(request_id)
        self.bytes -= one.size
        client = self._clients[one.client]
        client.bytes -= one.size
        del client.waiting[request_id]
        if not client.waiting:
            del self._clients[one.client]
        return one


def _any_form(_key: Key | None) -> Form:
    return Form()


def _reading(text: AnswerText, record: RequestRecord) -> Generator[None, None, None]:
    try:
        object.__setattr__(record, "signals", (yield from text.in_steps()))  # nobody has seen the record yet
    except Exception as exc:  # noqa: BLE001 - logged by its kind alone: its message may quote the text
        extra = {"request": record.request_id, "kind": type(exc).__name__}
        log.error("the signals of an answer were not read", extra=extra)
