"""Process that prepares large request bodies, so that none stalls the router's event loop.

Reading 64 MiB of JSON takes half a second, in which no other stream of the router would move. `BodyReader`
runs one child process and hands it one body at a time, over its standard streams; a body that takes longer
than READ_S is refused and the child replaced. One that needs more than MEMORY_LIMIT is refused as well.

Rules:
1. Next is the client for which least time has been spent of late, the time counted that its next body may
   take by its size: a body that is expensive is paid for by whoever sends it. Of one client's bodies the
   smallest is next.
2. At most QUEUE bodies wait, none longer than WAIT_S. Beyond that the answer is 429, for the newest body of
   the client that has most.
3. A body leaves the queue when its client goes. One that is being handed over then stays in the budget until
   the child has it.

A message: the length (8 bytes, big-endian) of a pickle, the pickle, and the bodies, whose lengths are in the
pickle. The child is this very release, and nothing of a client's is unpickled.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from serving.clock import boot_s
from serving.own_programs import module_command
from serving.router.bodies.body_budget import BodyBudget
from serving.router.bodies.prepared import PLAIN_LIMIT, ModelsByService, Prepared, prepare
from serving.router.headers import RawHeaders, value_of
from serving.router.types import Body, Pieces, Refusal, overloaded, pieces_of

log = logging.getLogger("canaryctl.router")

READ_S = 6.0  # for one body; a fraction of WAIT_S, or a few bodies would lock out all others
MEMORY_LIMIT = 2 << 30  # bytes of address space of the child
WAIT_S = 20.0  # for one's turn
QUEUE = 256  # bodies
SPENT_HALF_LIFE_S = 30.0  # in which half of the time that was spent for a client is forgotten
S_PER_BYTE = READ_S / PLAIN_LIMIT  # that a body may take
COMPRESSION = 1032  # the most bytes that a byte of deflate stands for
_LENGTH = struct.Struct(">Q")


@dataclass(slots=True, eq=False)
class Job:
    """One body to be read."""

    body: Body  # empty once the child has it
    client: str
    route: str
    meta: tuple[object, ...]
    done: asyncio.Future[Prepared] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    expiry: asyncio.TimerHandle | None = None
    is_encoded: bool = False

    @property
    def most_s(self) -> float:
        """The longest time that reading it should take."""
        size = len(self.body) * (COMPRESSION if self.is_encoded else 1)
        return min(size, PLAIN_LIMIT) * S_PER_BYTE

    def answer(self, prepared: Prepared) -> None:
        """What became of it, unless its client has gone."""
        if not self.done.done():
            self.done.set_result(prepared)

    def refuse(self) -> None:
        """It does not get its turn."""
        why = f"too many large bodies wait to be read before that of {self.route}"
        self.answer(Prepared(refusal=overloaded(why)))


class BodyReader:
    """Prepares bodies in a child process. Use it in one event loop."""

    def __init__(self, budget: BodyBudget | None = None) -> None:
        self.budget = budget or BodyBudget()
        self._child: asyncio.subprocess.Process | None = None
        self._waiting: dict[str, list[Job]] = {}  # by client, the next one first
        self._spent: dict[str, tuple[float, float]] = {}  # by client: seconds of reading, and when
        self._current: Job | None = None
        self._orphaned_bytes = 0  # of the current body, whose client has gone
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Bodies that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    async def prepare(
        self,
        body: Body,
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
        job.is_encoded = value_of(headers, b"content-encoding") is not None
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
            now_s = boot_s()
            job = self._remove(min(map(_cheapest, self._waiting.values()), key=self._price(now_s)))
            if job.client in self._waiting:  # the last one now of those that cost the same
                self._waiting[job.client] = self._waiting.pop(job.client)
            yield job

    def _price(self, now_s: float) -> Callable[[Job], float]:
        """What a client has been given, with what this body of it may take, in seconds."""
        left = {client: _left(*one, now_s) for client, one in self._spent.items()}
        self._spent = {client: self._spent[client] for client, spent_s in left.items() if spent_s > 0.01}
        return lambda job: left.get(job.client, 0.0) + job.most_s

    async def _work(self) -> None:
        try:
            for job in self._turns():
                self._current, began_s = job, boot_s()
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
                    now_s = boot_s()
                    before_s = _left(*self._spent.get(job.client, (0.0, now_s)), now_s)
                    self._spent[job.client] = (before_s + now_s - began_s, now_s)
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
                *module_command(__name__, str(MEMORY_LIMIT)), stdin=pipe, stdout=pipe, limit=1 << 20
            )
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        meta = pickle.dumps((len(job.body), *job.meta), protocol=5)
        child.stdin.write(_LENGTH.pack(len(meta)) + meta)
        for piece in pieces_of(job.body):
            child.stdin.write(piece)
            await child.stdin.drain()
        self._handed_over(job)
        (size,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        answer: Prepared
        sizes: dict[str, int]
        answer, sizes = pickle.loads(await child.stdout.readexactly(size))
        return replace(answer, bodies={name: await _read(child.stdout, n) for name, n in sizes.items()})

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            # Its pipes are closed now, not when the loop has gone.
            child._transport.close()  # type: ignore[attr-defined]


def _cheapest(jobs: list[Job]) -> Job:
    return min(jobs, key=lambda one: one.most_s)


def _left(spent_s: float, at_s: float, now_s: float) -> float:
    """What is left of the time that was spent until `at_s`."""
    return float(spent_s * 0.5 ** ((now_s - at_s) / SPENT_HALF_LIFE_S))


async def _read(source: asyncio.StreamReader, size: int) -> Body:
    """The next bytes, so many, in pieces. Raises EOFError when there are fewer."""
    body = Pieces()
    while (left := size - len(body)) > 0:
        data = await source.read(min(left, Pieces.PIECE))
        if not data:
            raise EOFError("the process that reads bodies has ended")
        body.add(data)
    return body.body


def _answer(body: bytes, meta: tuple[Any, ...]) -> tuple[bytes, list[bytes]]:
    """The pickle that answers to a body, and the bodies that follow it."""
    headers, models, route, is_eligible, by_service = meta
    try:
        prepared = prepare(body, headers, models, route=route, is_eligible=is_eligible, by_service=by_service)
        bodies = {model: bytes(one) for model, one in prepared.bodies.items()}
        sizes = {model: len(one) for model, one in bodies.items()}
        return pickle.dumps((replace(prepared, bodies={}), sizes), protocol=5), list(bodies.values())
    except MemoryError:
        text = f"the body of {route} needs more than {sys.argv[1]} bytes of memory; send a simpler one"
    return pickle.dumps((Prepared(refusal=Refusal(413, "body_too_complex", text)), {}), protocol=5), []


def main() -> None:
    """Serve one body after the other until the standard input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
    while head := source.read(_LENGTH.size):
        size, *meta = pickle.loads(source.read(*_LENGTH.unpack(head)))
        answer, bodies = _answer(source.read(size), tuple(meta))
        sink.write(_LENGTH.pack(len(answer)) + answer)
        for one in bodies:
            sink.write(one)
        del bodies
        sink.flush()


if __name__ == "__main__":
    main()
