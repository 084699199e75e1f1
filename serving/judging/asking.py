"""Questions to one judge on their way: a thread with an event loop of its own, beside the router's.

Rules:
1. What hangs here (a name that is not resolved, a key in a slow file, a judge) holds up no request: the
   router's loop hands a question over and goes on.
2. Each question has a deadline, from when it was handed over. AT_ONCE are asked at once.
3. A live question and an anchor are made by the same code and look alike. An anchor is asked at a random
   moment after the answer that it was drawn beside, or each would come with a twin.
4. A judge outside (`JudgeOrder.is_inside`) gets redacted texts only, anchors too.
5. Whatever ends the thread but `close` is told to `on_end`, last of all: what waits is forgotten.

Invariant: a text is in no log, record or error, and leaves memory with its verdict.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from serving.credentials import NoKey
from serving.judge_messages import JudgeOrder
from serving.judging.conversation import conversation
from serving.judging.judge_openai import JudgeOpenAI, Said
from serving.judging.pairs import PairVerdicts
from serving.judging.questions import YES, Fault, Question, about
from serving.judging.redaction import Redaction

AT_ONCE = 4
DEADLINE_S = 30.0  # from the handing over of a question to its verdict
# Of that for the judge's own answer: one that hangs is then left alone (`judge_openai.py`).
ANSWER_SHARE = 2 / 3

_REMEDY = "does it run, and take requests at this address?"
_REMEDIES = dict.fromkeys(("status 401", "status 403"), "check its key") | {
    "status 404": "check its url and model",
    "status 429": "ask it less often (per_minute), or raise its limit",
}

log = logging.getLogger("canaryctl.router")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One question. body: of the request, whose conversation is shown; answer: what is judged."""

    number: int
    rollout: str
    revision: str
    request_id: str  # '' for an anchor
    label: bool | None  # an anchor's: True: it is bad
    body: bytes = field(repr=False)
    answer: str = field(repr=False)
    until_s: float  # monotonic: the deadline
    via: bytes = b""  # routers through which the request came, this one included; goes on with the question
    pair: PairVerdicts | None = None  # of which it is a question; None: of none
    places: tuple[int, ...] = ()  # of the answers of that pair that it is of

    @property
    def size(self) -> int:
        """Bytes that it holds, about."""
        return len(self.body) + 4 * len(self.answer)


# The item, whether it is bad (None: no verdict), why there is no verdict, tokens.
Finish: TypeAlias = Callable[[Item, bool | None, str | None, int], None]


class Asking:
    """Asks one judge. Each question that is `put` ends in one call of `finish`, unless this is closed."""

    def __init__(
        self,
        order: JudgeOrder,
        finish: Finish,
        *,
        on_end: Callable[[Asking], None],
        deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Starts the thread. Raises ValueError for a URL that is none."""
        self._order, self._finish, self._on_end = order, finish, on_end
        self._deadline_s, self._clock = deadline_s, clock
        self._is_inside = order.is_inside
        self._loop = asyncio.new_event_loop()
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._closing = asyncio.Event()
        self._failing: str | None = None  # why the last question has no verdict; None: it has
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def put(self, item: Item, *, delay_s: float = 0.0) -> bool:
        """Ask this question, after so long; False: the thread has ended. From any thread."""
        try:
            if delay_s:
                self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, self._queue.put_nowait, item)
            else:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def close(self, *, wait_s: float = 0.0) -> None:
        """Ask no more, and forget what waits. wait_s: for the end of the thread, at most. From any thread."""
        try:
            self._loop.call_soon_threadsafe(self._closing.set)
        except RuntimeError:
            return
        if wait_s:
            self._thread.join(wait_s)

    # ---- in the thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as exc:  # noqa: BLE001 - by its kind alone: its message may quote a text
            log.error("the judge's thread has ended", extra={"kind": type(exc).__name__})
        finally:
            self._loop.close()
            if not self._closing.is_set():
                self._on_end(self)

    async def _serve(self) -> None:
        order = self._order
        timeout_s = self._deadline_s * ANSWER_SHARE
        judge = JudgeOpenAI(order.url, order.model, secret=order.secret, timeout_s=timeout_s, at_once=AT_ONCE)
        async with judge:
            tasks = [asyncio.create_task(self._consume(judge)) for _ in range(AT_ONCE)]
            tasks.append(asyncio.create_task(self._closed()))
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()  # raises what ended one that asks

    async def _closed(self) -> None:
        await self._closing.wait()

    async def _consume(self, judge: JudgeOpenAI) -> None:
        while True:
            item = await self._queue.get()
            try:
                said = await self._asked(item, judge)
            except Exception as exc:  # noqa: BLE001 - as above
                log.error("a question was not asked", extra={"kind": type(exc).__name__})
                said = Said(None, "unreadable")
            self._tell(said)
            bad = None if said.shares is None else said.shares[YES] > 0.5
            self._finish(item, bad, said.cause, said.tokens)
            del item  # not until the next one comes

    async def _asked(self, item: Item, judge: JudgeOpenAI) -> Said:
        """What the judge says of the item, or why it says nothing."""
        question = self._question(item)
        if question is None:
            return Said(None, "unreadable")
        try:
            judge.api_key = self._order.api_key.read() if self._order.api_key is not None else None
        except NoKey as exc:
            return Said(None, "no judge", why=str(exc))
        try:
            async with asyncio.timeout(item.until_s - self._clock()):
                return await judge.said(question, via=item.via)
        except TimeoutError:
            return Said(None, "timeout", why=f"no answer within {self._deadline_s:g} s")

    def _question(self, item: Item) -> Question | None:
        """None: its request cannot be read."""
        prompt = conversation(item.body)
        if prompt is None:
            return None
        prompt, answer = _encodable(prompt), _encodable(item.answer)
        if not self._is_inside:
            redaction = Redaction()
            prompt, answer = redaction.text(prompt), redaction.text(answer)
        return about(Fault.WRONG, prompt, answer)

    def _tell(self, said: Said) -> None:
        """Log when the judge begins to give no verdicts, and when it gives them again."""
        if said.cause in ("timeout", "no judge") and self._failing is None:
            self._failing = said.cause
            why = said.why or said.cause
            remedy = _REMEDIES.get(why, _REMEDY)
            url = self._order.url
            log.warning("the judge gives no verdicts", extra={"url": url, "cause": f"{why}; {remedy}"})
        elif said.cause is None and self._failing is not None:
            self._failing = None
            log.info("the judge gives verdicts again", extra={"url": self._order.url})


def _encodable(text: str) -> str:
    """Without halves of surrogate pairs, which no request can hold."""
    return text.encode("utf-8", "replace").decode()
