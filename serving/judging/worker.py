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
6. A mirrored pair takes the room of two questions from the same bucket, before either answer exists
   (`takes_pair`), and ends in one `JudgeRecord` of both.

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
from dataclasses import replace

from serving.judge_messages import JudgeOrder, JudgeRecord
from serving.judging.asking import DEADLINE_S, Asking, Item
from serving.judging.pairs import BOTH, MirroredPair, PairVerdicts
from serving.judging.plants import plants
from serving.judging.questions import revision

QUEUE_LIMIT = 64  # questions that wait or are under way
QUEUE_BYTES = 8 << 20  # of their requests and answers
BLOCK = 20  # questions of which one is an anchor
PAIR_TOKENS = 2.0 * BLOCK / (BLOCK - 1)  # of a mirrored pair, with its part of the anchors
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
        order, asking = self._order, self._current(rollout)
        if order is None or asking is None:
            self.no_verdict(rollout, request_id, "no judge")
            return
        item = self._item(request_id, None, body, answer, via)
        with self._lock:
            if self._place == self._anchor_at and self._without_room(order, 0) is None:
                self._put_anchor(asking, via)
            if (cause := self._without_room(order, item.size)) is None:
                self._step()
                self._put(asking, item)
            else:
                self._record(item, None, cause, 0)

    def takes_pair(self, rollout: str) -> bool:
        """Whether the judge is asked of a mirrored pair whose request begins now; its room is then taken."""
        order = self._order
        if order is None or rollout != self._rollout:
            return False
        with self._lock:
            return self._without_room(order, 0, questions=2, tokens=PAIR_TOKENS) is None

    def ask_pair(self, pair: MirroredPair) -> None:
        """Ask of both answers of a pair that `takes_pair` took."""
        order, asking = self._order, self._current(pair.rollout)
        if order is None or asking is None or pair.stable is None or pair.canary is None:
            cause = "no judge" if order is None or asking is None else "no answer"
            self._end_pair(pair, PairVerdicts(pair.unit, pair.assigned_at_s, 0, cause=cause))
            return
        # In a random order, so that a judge is no better awake for one version.
        answers: list[tuple[str, tuple[int, ...]]] = [(pair.stable, (0,)), (pair.canary, (1,))]
        self._random.shuffle(answers)
        if pair.stable == pair.canary:
            answers = [(pair.stable, BOTH)]
        verdicts = PairVerdicts(pair.unit, pair.assigned_at_s, len(answers))
        items = [
            replace(
                self._item(pair.request_id, None, pair.body, text, pair.via), pair=verdicts, places=places
            )
            for text, places in answers
        ]
        with self._lock:
            if self._is_full(sum(item.size for item in items), len(items)):
                verdicts.cause = "judge too slow"
                self._end_pair(pair, verdicts)
                return
            for item in items:
                if self._place == self._anchor_at:  # its room was taken with the pairs'
                    self._put_anchor(asking, pair.via)
                self._step()
                self._put(asking, item)

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

    def _current(self, rollout: str) -> Asking | None:
        """The thread for the questions of this rollout, begun again when it is time; None: there is none."""
        order = self._order
        if order is not None and self._asking is None and self._clock() >= self._begin_at_s:
            with self._lock:
                self._asking = self._begun(order)
        return self._asking if rollout == self._rollout else None

    def _put_anchor(self, asking: Asking, via: bytes) -> None:
        self._step()
        self._put(asking, self._anchor(via), delay_s=self._random.uniform(0.01, self._anchor_delay_s))

    def _begun(self, order: JudgeOrder) -> Asking | None:
        """None: this judge is not the one that was examined, has no address, or no thread can begin now."""
        self._begin_at_s = math.inf
        own = revision(order.model)
        if own != order.revision:
            extra = {"examined": order.revision, "own": own}
            log.error("the judge is not asked: another release examined it; update all", extra=extra)
            return None
        if not order.url:
            log.warning("the judge's engine is not there; it is asked when it is back")
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

    def _without_room(
        self, order: JudgeOrder, size: int, *, questions: int = 1, tokens: float = 1.0
    ) -> str | None:
        """Why so many more questions cannot be asked now; None: they can, and their tokens are taken."""
        now_s = self._clock()
        earned = max(now_s - self._filled_s, 0.0) * order.per_minute / 60.0
        self._tokens, self._filled_s = min(self._tokens + earned, _capacity(order)), now_s
        if self._tokens < min(tokens, _capacity(order)):  # where it holds one, a pair borrows another
            return "over budget"
        if self._is_full(size, questions):
            return "judge too slow"
        self._tokens -= tokens
        return None

    def _is_full(self, size: int, questions: int) -> bool:
        return len(self._pending) + questions > QUEUE_LIMIT or self._bytes + size > QUEUE_BYTES

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
        of_item = item.rollout, item.revision, self._wall(), item.request_id
        if item.pair is None:
            self._on_record(JudgeRecord(0, *of_item, item.label, bad, cause, tokens, self._router))
        elif item.pair.add(item.places, bad, cause, tokens):
            self._record_pair(of_item, item.pair)

    def _end_pair(self, pair: MirroredPair, verdicts: PairVerdicts) -> None:
        """Nothing is asked of this pair."""
        order = self._order
        known = order.revision if order is not None and pair.rollout == self._rollout else ""
        with self._lock:
            self._record_pair((pair.rollout, known, self._wall(), pair.request_id), verdicts)

    def _record_pair(self, of_item: tuple[str, str, float, str], verdicts: PairVerdicts) -> None:
        stable, canary = verdicts.bad
        of_pair = (stable, canary), verdicts.unit, verdicts.assigned_at_s
        self._on_record(
            JudgeRecord(0, *of_item, None, None, verdicts.cause, verdicts.tokens, self._router, *of_pair)
        )


def _capacity(order: JudgeOrder) -> float:
    """Questions that may be asked at once."""
    return max(1.0, order.per_minute * BURST_S / 60.0)


_PLANTS = tuple(plants())
