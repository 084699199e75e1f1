"""The judge of one router: which answers it is asked of, anchors among them, and what came of each question.

Rules:
1. Every request whose unit is drawn ends in one `JudgeRecord`: a verdict, or a cause why there is none. What
   waits when the router stops, or its judge changes, ends as 'stopped' or 'no judge'.
2. Bounded: QUEUE_LIMIT questions and QUEUE_BYTES wait. A token bucket holds `per_minute`, anchors included.
   What is above has no verdict, 'over budget' or, while the budget has room, 'judge too slow': the newest
   goes, whichever arm answered.
3. Of BLOCK questions one is an anchor (`plants.py`), at a random place: an answer whose truth is known, asked
   as live ones are, by which it shows whether the judge still judges alike.
4. Only the judge that was examined is asked: with another revision each question ends as 'no judge'.
5. When the thread ends by an error, what waits ends as 'no judge', and the first answer after AGAIN_S begins
   another.

Threads: one for the questions (`asking.py`), while there is an order. `use`, `ask` and `stop` never block for
longer than a copy.

Invariant: no text is in a log, a record or an error.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable

from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.judging.asking import DEADLINE_S, Asking, Item
from serving.judging.plants import plants
from serving.judging.questions import revision

QUEUE_LIMIT = 64  # questions that wait or are under way
QUEUE_BYTES = 8 << 20  # of their requests and answers
BLOCK = 20  # questions of which one is an anchor
ANCHOR_DELAY_S = 10.0  # the longest, after the answer that an anchor was drawn beside
BURST_S = 15.0  # whose share of `per_minute` may be asked at once
AGAIN_S = 30.0  # without a thread after one has ended by an error
STOP_S = 1.0  # for the end of the thread when the router stops

log = logging.getLogger("canaryctl.router")


class JudgeWorker:
    """Asks the judge of a route table's order. `on_record` gets each `JudgeRecord`, one at a time."""

    def __init__(
        self,
        router: str,
        on_record: Callable[[JudgeRecord], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        deadline_s: float = DEADLINE_S,
        anchor_delay_s: float = ANCHOR_DELAY_S,
    ) -> None:
        self._router, self._on_record = router, on_record
        self._clock, self._wall = clock, wall
        self._deadline_s, self._anchor_delay_s = deadline_s, anchor_delay_s
        self._order: JudgeOrder | None = None
        self._rollout = ""
        self._is_stopped = False
        self._asking: Asking | None = None  # None: no order, or none that can be followed now
        self._begin_at_s = math.inf  # when it is tried again
        self._lock = threading.RLock()
        self._pending: dict[int, Item] = {}  # by number; whoever takes an item out records it
        self._bytes = 0
        self._numbers = itertools.count()
        self._tokens, self._filled_s = 0.0, 0.0
        self._random = random.SystemRandom()
        self._place, self._anchor_at = 0, self._random.randrange(BLOCK)

    def use(self, order: JudgeOrder | None, rollout: str) -> None:
        """Obey this order from now on; None: nobody is asked."""
        if self._is_stopped or (order == self._order and rollout == self._rollout):
            return
        before, self._order, self._rollout = self._order, order, rollout
        if order == before:
            return
        if self._asking is not None:
            self._asking.close()
            self._asking = None
        self._begin_at_s = math.inf
        self._end_all("no judge")
        if order is not None:
            self._tokens, self._filled_s = _capacity(order), self._clock()
            with self._lock:  # a thread that ends at once is known here before its end is
                self._asking = self._begun(order)

    def ask(self, rollout: str, request_id: str, body: bytes, answer: str, via: bytes = b"") -> None:
        """Ask of this answer. body: of its request; via: the routers that it came through, with this one."""
        order, asking = self._order, self._asking
        if order is not None and asking is None and self._clock() >= self._begin_at_s:
            with self._lock:
                asking = self._asking = self._begun(order)
        if order is None or asking is None or rollout != self._rollout:
            self.no_verdict(rollout, request_id, "no judge")
            return
        item = self._item(request_id, None, body, answer, via)
        with self._lock:
            if self._place == self._anchor_at and self._without_room(order, 0) is None:
                self._step()
                self._put(asking, self._anchor(via), delay_s=self._random.uniform(0.01, self._anchor_delay_s))
            if (cause := self._without_room(order, item.size)) is None:
                self._step()
                self._put(asking, item)
            else:
                self._record(item, None, cause, 0)

    def no_verdict(self, rollout: str, request_id: str, cause: str) -> None:
        """There is nothing to ask of this request: 'no answer', or another fixed word."""
        order = self._order
        known = order.revision if order is not None and rollout == self._rollout else ""
        with self._lock:
            self._record(Item(0, rollout, known, request_id, None, b"", "", 0.0), None, cause, 0)

    def stop(self) -> None:
        """The router stops: what waits ends without a verdict, and no order is obeyed any more."""
        self._is_stopped = True
        asking, self._asking, self._order = self._asking, None, None
        if asking is not None:
            asking.close()
        self._end_all("stopped")
        if asking is not None:
            asking.close(wait_s=STOP_S)

    # ---- inside

    def _begun(self, order: JudgeOrder) -> Asking | None:
        """None: this judge is not the one that was examined, has no address, or no thread can begin now."""
        self._begin_at_s = math.inf
        own = revision(order.model)
        if own != order.revision:
            extra = {"examined": order.revision, "own": own}
            log.error("the judge is not asked: another release examined it; update all", extra=extra)
            return None
        try:
            return Asking(
                order, self._finish, on_end=self._ended, deadline_s=self._deadline_s, clock=self._clock
            )
        except ValueError as exc:
            log.error("the judge is not asked", extra={"error": str(exc)})
        except (RuntimeError, OSError) as exc:  # no more threads, no more files
            log.error("the judge is not asked for a while", extra={"error": str(exc)})
            self._begin_at_s = self._clock() + AGAIN_S
        return None

    def _ended(self, asking: Asking) -> None:
        """Its thread has ended by an error; from that thread."""
        with self._lock:
            if self._asking is asking:
                self._asking, self._begin_at_s = None, self._clock() + AGAIN_S
                self._end_all("no judge")

    def _item(self, request_id: str, label: bool | None, body: bytes, answer: str, via: bytes) -> Item:
        assert self._order is not None
        until_s = self._clock() + self._deadline_s + (self._anchor_delay_s if label is not None else 0.0)
        of_judge = self._rollout, self._order.revision
        return Item(next(self._numbers), *of_judge, request_id, label, body, answer, until_s, via)

    def _anchor(self, via: bytes) -> Item:
        """One of the plants, drawn with replacement, in the form of a live question."""
        plant = self._random.choice(_PLANTS)
        body = json.dumps({"messages": [{"role": "user", "content": plant.prompt}]}).encode()
        return self._item("", plant.is_bad, body, plant.answer, via)

    def _step(self) -> None:
        """One more question of the block."""
        self._place += 1
        if self._place == BLOCK:
            self._place, self._anchor_at = 0, self._random.randrange(BLOCK)

    def _without_room(self, order: JudgeOrder, size: int) -> str | None:
        """Why one more question cannot be asked now; None: it can, and its token is taken."""
        now_s = self._clock()
        earned = max(now_s - self._filled_s, 0.0) * order.per_minute / 60.0
        self._tokens, self._filled_s = min(self._tokens + earned, _capacity(order)), now_s
        if self._tokens < 1.0:
            return "over budget"
        if len(self._pending) >= QUEUE_LIMIT or self._bytes + size > QUEUE_BYTES:
            return "judge too slow"
        self._tokens -= 1.0
        return None

    def _put(self, asking: Asking, item: Item, *, delay_s: float = 0.0) -> None:
        self._pending[item.number] = item
        self._bytes += item.size
        if not asking.put(item, delay_s=delay_s):
            self._finish(item, None, "no judge", 0)

    def _finish(self, item: Item, bad: bool | None, cause: str | None, tokens: int) -> None:
        """What came of a question; nothing for one that was given up."""
        with self._lock:
            if self._pending.pop(item.number, None) is not None:
                self._bytes -= item.size
                self._record(item, bad, cause, tokens)

    def _end_all(self, cause: str) -> None:
        with self._lock:
            for item in list(self._pending.values()):
                self._finish(item, None, cause, 0)

    def _record(self, item: Item, bad: bool | None, cause: str | None, tokens: int) -> None:
        of_item = item.rollout, item.revision, self._wall(), item.request_id, item.label
        self._on_record(JudgeRecord(0, *of_item, bad, cause, tokens, self._router))


def _capacity(order: JudgeOrder) -> float:
    """Questions that may be asked at once."""
    return max(1.0, order.per_minute * BURST_S / 60.0)


_PLANTS = tuple(plants())
