"""Process that prepares large request bodies, so that none stalls the router's event loop.

Reading 64 MiB of JSON takes half a second, in which no other stream of the router would move. `BodyReader`
runs one child process and hands it one body at a time, over its standard streams; a body that takes longer
than READ_S is refused and the child replaced. One that needs more than MEMORY_LIMIT is refused as well.

Rules:
1. The clients take turns, whatever each has sent; of one client's bodies the smallest is next.
2. At most QUEUE bodies wait, none longer than WAIT_S. Beyond that the answer is 429, for the newest body of
   the client that has most.
3. A body leaves the queue when its client goes. One that is being handed over then stays in the budget until
   the child has it.

A message: the length (8 bytes, big-endian) of a pickle, the pickle, and to the child the body, whose length
is in the pickle. The child is this very release, and nothing of a client's is unpickled.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from serving.router.body_budget import BodyBudget
from serving.router.headers import RawHeaders
from serving.router.prepared import ModelsByService, Prepared, prepare
from serving.router.types import Refusal

log = logging.getLogger("canaryctl.router")

LARGE_BODY = 1 << 20  # bytes; from here on another process reads it
READ_S = 6.0  # for one body; a fraction of WAIT_S, or a few bodies would lock out all others
MEMORY_LIMIT = 2 << 30  # bytes of address space of the child
WAIT_S = 20.0  # for one's turn
QUEUE = 256  # bodies
_LENGTH = struct.Struct(">Q")


@dataclass(slots=True, eq=False)
class Job:
    """One body to be read."""

    body: bytes  # empty once the child has it
    client: str
    route: str
    meta: tuple[object, ...]
    done: asyncio.Future[Prepared] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    expiry: asyncio.TimerHandle | None = None

    def answer(self, prepared: Prepared) -> None:
        """What became of it, unless its client has gone."""
        if not self.done.done():
            self.done.set_result(prepared)

    def refuse(self) -> None:
        """It does not get its turn."""
        text = f"too many large bodies wait to be read before that of {self.route}; retry"
        self.answer(Prepared(refusal=Refusal(429, "overloaded", text, retry_after_s=1)))


class BodyReader:
    """Prepares bodies in a child process. Use it in one event loop."""

    def __init__(self, budget: BodyBudget | None = None) -> None:
        self.budget = budget or BodyBudget()
        self._child: asyncio.subprocess.Process | None = None
        self._waiting: dict[str, list[Job]] = {}  # by client, the next one first
        self._current: Job | None = None
        self._orphaned_bytes = 0  # of the current body, whose client has gone
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Bodies that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    async def prepare(
        self,
        body: bytes,
        headers: RawHeaders,
        models: tuple[str, ...],
        *,
        route: str,
        is_eligible: bool,
        by_service: ModelsByService | None = None,
        client: str = "",
    ) -> Prepared:
        """As `prepared.prepare`; with a refusal when the child dies or needs too long, or too many wait.

        client: who sent it, for the turns. Cancel it when the client goes.
        """
        meta = (tuple(headers), models, route, is_eligible, by_service)
        job = Job(body, client, route, meta)
        job.expiry = asyncio.get_running_loop().call_later(WAIT_S, self._expire, job)
        self._waiting.setdefault(client, []).append(job)
        if self.waiting > QUEUE:
            most = max(self._waiting.values(), key=len)
            self._remove(most[-1]).refuse()
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work())
        try:
            return await job.done
        finally:
            self._left(job)

    def close(self) -> None:
        """End the child, and all that waits."""
        if self._worker is not None:
            self._worker.cancel()
        if self._current is not None:
            self._current.refuse()
        for job in [one for jobs in self._waiting.values() for one in jobs]:
            self._remove(job).refuse()
        self._end_child()

    # ---- the queue

    def _remove(self, job: Job) -> Job:
        jobs = self._waiting[job.client]
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.client]
        assert job.expiry is not None
        job.expiry.cancel()
        return job

    def _expire(self, job: Job) -> None:
        if job in self._waiting.get(job.client, ()):
            self._remove(job).refuse()

    def _left(self, job: Job) -> None:
        """Nobody waits for this body any more."""
        if job in self._waiting.get(job.client, ()):
            self._remove(job)
        elif job is self._current and job.body:
            self._orphaned_bytes = len(job.body)
            self.budget.total += self._orphaned_bytes

    def _turns(self) -> Iterator[Job]:
        while self._waiting:
            client, jobs = next(iter(self._waiting.items()))
            job = self._remove(min(jobs, key=lambda one: len(one.body)))
            if jobs:  # this client is the last one now
                self._waiting[client] = self._waiting.pop(client)
            yield job

    async def _work(self) -> None:
        try:
            for job in self._turns():
                self._current = job
                try:
                    async with asyncio.timeout(READ_S):
                        job.answer(await self._ask(job))
                except Exception as exc:  # the queue goes on
                    self._end_child()
                    if not isinstance(exc, TimeoutError | OSError | EOFError):
                        log.exception("a body was not read")
                    text = f"the body of {job.route} could not be read in {READ_S:g} s; send a simpler one"
                    job.answer(Prepared(refusal=Refusal(413, "body_too_complex", text)))
                finally:
                    self._handed_over(job)
                    self._current = None
        finally:
            self._worker = None

    def _handed_over(self, job: Job) -> None:
        """The child has the body, or never will."""
        job.body = b""
        self.budget.total -= self._orphaned_bytes
        self._orphaned_bytes = 0

    # ---- the child

    async def _ask(self, job: Job) -> Prepared:
        if self._child is None or self._child.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(MEMORY_LIMIT)), stdin=pipe, stdout=pipe, limit=1 << 20
            )
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        meta = pickle.dumps((len(job.body), *job.meta), protocol=5)
        child.stdin.write(_LENGTH.pack(len(meta)) + meta)
        for start in range(0, len(job.body), LARGE_BODY):
            child.stdin.write(job.body[start : start + LARGE_BODY])
            await child.stdin.drain()
        self._handed_over(job)
        (size,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        answer: Prepared = pickle.loads(await child.stdout.readexactly(size))
        return answer

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            # Its pipes are closed now, not when the loop has gone.
            child._transport.close()  # type: ignore[attr-defined]


def main() -> None:
    """Serve one body after the other until the standard input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
    while head := source.read(_LENGTH.size):
        size, headers, models, route, is_eligible, by_service = pickle.loads(
            source.read(*_LENGTH.unpack(head))
        )
        body = source.read(size)
        try:
            prepared = prepare(
                body, headers, models, route=route, is_eligible=is_eligible, by_service=by_service
            )
            answer = pickle.dumps(prepared, protocol=5)
        except MemoryError:
            prepared = None  # its bodies, which are of no use
            text = f"the body of {route} needs more than {sys.argv[1]} bytes of memory; send a simpler one"
            answer = pickle.dumps(Prepared(refusal=Refusal(413, "body_too_complex", text)), protocol=5)
        del body
        sink.write(_LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
