"""CPU time of the router's own work, without sockets: `python -m benchmarks.router.in_process`.

Real connections, exchange, draw, scan and record between transports that only keep what is written: what the
router adds, apart from the kernel and the event loop. Two commits are compared by running this in turns.
Prints microseconds of CPU a request (best of the rounds): a whole answer, a stream of 20 events that come one
by one, the same in one read, and apart from these the draw of an arm, the making of a record, and the signals
of an answer, which are read when its client has it.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from benchmarks.router.engine import ANSWER, CHUNKS, END, EVENT, HEAD, LAST, chunk, whole
from serving.clock import boot_s
from serving.router.answers.answer_excerpt import AnswerExcerpt
from serving.router.answers.answer_scan import AnswerScan
from serving.router.assignment.assignment import Salted, salt_of
from serving.router.exchange.answer_text_signals import AnswerText
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.record import Seen, record_of
from serving.router.front.client_connection import ClientConnection
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.standalone.table_reader import read_tables
from serving.router.types import Request
from serving.router.upstreams.engine_connection import EngineConnection
from serving.targets import Target

USERS = 50
ENGINES = ("127.0.0.1:1", "127.0.0.1:2")
TABLE = (
    f"service: chat\nstable: {{url: 'http://{ENGINES[0]}'}}\ncanary: {{url: 'http://{ENGINES[1]}'}}\n"
    "weight_bp: 5000\nsalt: s\n"
)
_STEMS = ("account", "setting", "invoice", "message", "order", "switch", "team", "change", "day", "question")
_ENDINGS = ("", "s", " is", " of the", " and a", " that we", " for", ".", ",", " in your")
ANSWERS = {
    "whole answer": [whole(ANSWER)],
    "stream, one read an event": [HEAD, *[chunk(EVENT)] * CHUNKS, chunk(LAST) + END],
    "stream in one read": [HEAD + chunk(EVENT) * CHUNKS + chunk(LAST) + END],
}


class NoBackground:
    """No tables to poll for, no log to send records to."""

    async def start(self, core: RouterCore) -> None:
        """Nothing."""

    async def stop(self) -> None:
        """Nothing."""


class Transport:
    """Takes what is written; `on_write` is told."""

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self._on_write = on_write

    def write(self, data: bytes) -> None:
        """Take these bytes."""
        self._on_write()

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits here."""

    def get_write_buffer_size(self) -> int:
        """Everything is written."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, name: str) -> object:
        """The client's address; nothing else is known."""
        return ("127.0.0.1", 1) if name == "peername" else None

    def abort(self) -> None:
        """Nothing."""

    close = pause_reading = resume_reading = abort


def requests(number: int, *, is_stream: bool) -> list[bytes]:
    """Requests of several users."""
    found = []
    for index in range(number):
        message = {"role": "user", "content": "What is the capital of France?"}
        user = f"user-{index % USERS}"
        fields = {"model": "chat", "messages": [message], "user": user, "stream": is_stream}
        body = json.dumps(fields).encode()
        head = f"POST /chat/v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-session-id: {user}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        found.append(head.encode() + body)
    return found


async def figures(*, rounds: int = 5, number: int = 1500) -> dict[str, float]:
    """CPU microseconds by what is done: the best of the rounds, each of so many requests."""
    core = RouterCore("chat", router="r", lease_s=math.inf)
    front = WireFront(core, NoBackground())
    await front.start()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(TABLE)
        file.flush()
        core.on_table(read_tables(Path(file.name), change=1)["chat"], sent_s=boot_s())
    assert front.upstream is not None
    asked: list[EngineConnection] = []
    for engine in ENGINES:
        connection = EngineConnection(front.upstream, f"http://{engine}")
        told = cast(Any, Transport(lambda one=connection: asked.append(one)))  # type: ignore[misc]
        connection.connection_made(told)
        front.upstream.keep(connection, is_external=False)
    client = ClientConnection(front)
    client.connection_made(cast(Any, Transport()))
    found = {}
    for name, reads in ANSWERS.items():
        sent = requests(number, is_stream=name != "whole answer")
        found[name] = min(_cpu_us(core, client, asked, sent, reads) for _ in range(rounds))
    return found | {name: _one_us(work, rounds, number) for name, work in _apart(core).items()}


def _cpu_us(
    core: RouterCore,
    client: ClientConnection,
    asked: list[EngineConnection],
    sent: list[bytes],
    reads: list[bytes],
) -> float:
    began_s = time.process_time()
    for one in sent:
        client.data_received(one)
        engine = asked.pop()
        for data in reads:
            engine.data_received(data)
        client._front.turns._free()  # as if each came in a turn of its own
    took_s = time.process_time() - began_s
    core.outbox.expire(math.inf)
    while core.outbox.next_batch(now_s=time.time()).records:
        core.outbox.acknowledge()
    core.outbox.acknowledge()
    return took_s / len(sent) * 1e6


def _apart(core: RouterCore) -> dict[str, Callable[[], object]]:
    """The draw of one key, and one record from its making to the outbox."""
    request = Request("POST", Target("/v1/chat/completions"), ((b"x-session-id", b"u"),), b'{"messages":[]}')
    begun = core.begin(request, request_id="req-1", now_s=2.0, wall_s=2.0)
    assert isinstance(begun, Exchange)
    start = begun.start
    attempts = Attempts(core, start.table, start.assignment)
    attempts.begin()
    scan = AnswerScan(request.path, "application/json")
    scan.feed(ANSWER)
    scan.end()
    seen = Seen(scan, first_byte_s=2.1, last_byte_s=2.1)

    def record() -> None:
        made = record_of(start, core, attempts, seen, ("answered", None, 200), now_s=2.1)
        core.on_record(made, assigned_s=2.0, canary=None)

    salted = Salted(salt_of("chat", "s"))
    made = {"arm of a key": lambda: salted.bucket_of("user-123") < 5000, "record": record}
    return made | {f"signals of {words} words": _signals(words) for words in (60, 3000)}


def _signals(words: int) -> Callable[[], object]:
    """The signals of an answer of so many words, about 4 tokens for 3 words."""
    rng = random.Random(words)
    text = " ".join(f"{rng.choice(_STEMS)}{rng.choice(_ENDINGS)}" for _ in range(words))
    answer = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
    (asked,) = requests(1, is_stream=False)
    body = asked.partition(b"\r\n\r\n")[2]

    def read() -> None:
        excerpt = AnswerExcerpt("/v1/chat/completions")
        excerpt.add(answer)
        AnswerText(body, excerpt, "stop").signals()

    return read


def _one_us(work: Callable[[], object], rounds: int, number: int) -> float:
    times_s = timeit.repeat(work, timer=time.process_time, number=number, repeat=rounds)
    return min(times_s) / number * 1e6


if __name__ == "__main__":
    for name, cpu_us in asyncio.run(figures()).items():
        print(f"{name:28} {cpu_us:7.1f} us")
