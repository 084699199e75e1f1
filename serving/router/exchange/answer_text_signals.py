"""Signals of answers that have ended: read in turns of their own, a step each, so that no client waits.

Rules:
1. A record waits for its signals; its request counts as open until then, so that the log's watermark holds.
2. What waits is bounded. Beyond TEXTS_LIMIT answers, or TEXTS_BYTES of them and their requests, a record goes
   without signals, on either arm.
3. A text that cannot be read is logged without its text, and its record goes without signals.
4. Every answer that a rollout compares is read. Of all others READ_PER_S are: to read a text costs up to
   several times what its request does.

Invariant: a text leaves memory with its signals. No record, log or error holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

from serving.answer_signals import Signals
from serving.judging.conversation import CALLS_LIMIT, called
from serving.judging.signals import Asked, asked_of, last_of, signals_in_steps
from serving.messages import LIMIT_REASONS, RequestRecord
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_facts import REFUSAL_REASONS

TEXTS_LIMIT = 1024
TEXTS_BYTES = 64 << 20  # 160 of the largest
READ_PER_S = 20  # of the answers that no rollout compares; what stable's are like is learned from these

log = logging.getLogger("canaryctl.router")


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer with the body of its request."""

    body: bytes | None  # None: it is too large to be read
    excerpt: AnswerExcerpt
    finish_reason: str | None
    via: bytes = b""  # through which routers the request came, this one included

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
        asked = asked_of(self.body) if self.body is not None else Asked()
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


class UnreadTexts:
    """Those of one router. `later` is set by its front: it calls a function in a later turn of the loop."""

    def __init__(self) -> None:
        self.later: Callable[[Callable[[], object]], object] = lambda work: work()
        self._waiting: dict[str, tuple[int, Generator[None, None, None]]] = {}  # by id, with their bytes
        self.bytes = 0  # of what waits
        self._spare, self._spare_at_s = float(READ_PER_S), 0.0  # answers that may be read, and since when

    def wants(self, *, is_compared: bool, now_s: float) -> bool:
        """Whether an answer that begins now is read. is_compared: its arm was drawn in a rollout."""
        if is_compared:
            return True
        self._spare = min(self._spare + (now_s - self._spare_at_s) * READ_PER_S, READ_PER_S)
        self._spare_at_s = now_s
        if self._spare < 1.0:
            return False
        self._spare -= 1.0
        return True

    def add(self, text: AnswerText, record: RequestRecord, on_read: Callable[[], None]) -> None:
        """Read the signals of this record's answer in later turns, then call on_read, once."""
        size = text.size
        if len(self._waiting) >= TEXTS_LIMIT or self.bytes + size > TEXTS_BYTES:
            on_read()
            return
        self.bytes += size
        self._waiting[record.request_id] = size, _reading(text, record, on_read)
        self.later(partial(self._take, record.request_id))

    def read_all(self) -> None:
        """Read what still waits: the router ends."""
        while self._waiting:
            for _ in self._drop(next(iter(self._waiting))):
                pass

    def _take(self, request_id: str) -> None:
        """Take one step of this reading."""
        if request_id not in self._waiting:
            return
        _, steps = self._waiting[request_id]
        has_ended = True
        try:
            next(steps)
            has_ended = False
        except StopIteration:
            pass
        finally:
            if has_ended:
                self._drop(request_id)
        if not has_ended:
            self.later(partial(self._take, request_id))

    def _drop(self, request_id: str) -> Generator[None, None, None]:
        """The steps that are left of a reading that waits no more."""
        size, steps = self._waiting.pop(request_id)
        self.bytes -= size
        return steps


def _reading(
    text: AnswerText, record: RequestRecord, on_read: Callable[[], None]
) -> Generator[None, None, None]:
    try:
        object.__setattr__(record, "signals", (yield from text.in_steps()))  # nobody has seen the record yet
    except Exception as exc:  # noqa: BLE001 - logged by its kind alone: its message may quote the text
        extra = {"request": record.request_id, "kind": type(exc).__name__}
        log.error("the signals of an answer were not read", extra=extra)
    finally:
        on_read()
