"""The engine's front: authentication, fence, drain and cancellation."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving.credentials import ControlSecret, DataSecret
from serving.fleet.engine_front import EngineFront

DATA, CONTROL = DataSecret.of("root"), ControlSecret.of("root")


class Caller:
    """An ASGI client that records what it is sent."""

    def __init__(self, body: bytes = b"") -> None:
        self._body = body
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def refused(self) -> str | None:
        value = dict(self.sent[0]["headers"]).get(b"x-canaryctl-refused")
        return value.decode() if value else None

    @property
    def json(self) -> Any:
        return json.loads(self.sent[1]["body"])


class Engine:
    """In place of vLLM's application: counts calls, begins an answer, waits for `go`."""

    def __init__(self, *, begin: bool = True) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self._begin = begin

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if self._begin:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.go.wait()
        if not self._begin:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def front(engine: Engine | None = None) -> EngineFront:
    made = EngineFront(data=DATA, control=CONTROL, describe=lambda: {"version": "v-1"})
    made.app = engine
    return made


async def call(
    to: EngineFront, path: str = "/v1/completions", *, method: str = "POST", body: bytes = b"", **headers: str
) -> Caller:
    secret = CONTROL if path.startswith(("/_canaryctl", "/metrics")) else DATA
    headers = {"secret": secret.text, **headers}
    raw = [(f"x-canaryctl-{name}".encode(), value.encode()) for name, value in headers.items()]
    caller = Caller(body)
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    await to(scope, caller.receive, caller.send)
    return caller


def free_engine(*, begin: bool = True) -> Engine:
    engine = Engine(begin=begin)
    engine.go.set()
    return engine


async def fence(to: EngineFront, epoch: int, revision: int) -> Caller:
    body = json.dumps({"epoch": epoch, "revision": revision}).encode()
    return await call(to, "/_canaryctl/fence", body=body)


@pytest.mark.parametrize("path", ["/v1/completions", "/_canaryctl/state", "/metrics"])
async def test_requests_without_the_secret_are_refused(path: str) -> None:
    engine = free_engine()

    caller = await call(front(engine), path, secret="other")

    assert (caller.status, caller.refused, engine.calls) == (403, "secret", 0)


@pytest.mark.parametrize("kind", [DataSecret, ControlSecret])
def test_an_empty_secret_is_refused(kind: type[DataSecret | ControlSecret]) -> None:
    with pytest.raises(ValueError, match="secret is empty"):
        kind.of("")


CONTROL_PATHS = (
    *("/_canaryctl/state", "/_canaryctl/fence", "/_canaryctl/cancel", "/metrics", "/metrics/x", "/load"),
    *("/sleep", "/collective_rpc", "/v1/load_lora_adapter", "/v1/chat/completions/", "//v1/models", ""),
)


@pytest.mark.parametrize("path", CONTROL_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_routers_secret_opens_no_control_route(path: str, method: str) -> None:
    engine = free_engine()
    engine_front = front(engine)

    caller = await call(engine_front, path, method=method, secret=DATA.text)

    assert (caller.status, caller.refused, engine.calls, engine_front.fence) == (403, "secret", 0, None)


async def test_the_control_secret_opens_metrics_and_no_route_for_users() -> None:
    engine = free_engine()
    metrics = await call(front(engine), "/metrics", method="GET", secret=CONTROL.text)
    users = await call(front(engine), "/v1/completions", secret=CONTROL.text)

    assert (metrics.status, users.status, engine.calls) == (200, 403, 1)


def test_neither_secret_is_the_other_or_the_root_and_no_text_shows_them() -> None:
    assert len({DATA.text, CONTROL.text, "root"}) == 3
    for text in (DATA.text, CONTROL.text):
        assert text not in f"{DATA} {CONTROL!r} {DATA!r}"


def dead_engine(alive: list[bool]) -> EngineFront:
    """A front whose engine answers 500 once `alive` is [False], as vLLM does after its core has died."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200 if alive[0] else 500, "headers": []})
        await send({"type": "http.response.body", "body": b"'State' object has no attribute 'server'"})

    made = EngineFront(data=DATA, control=CONTROL, describe=dict, is_alive=lambda: alive[0])
    made.app = app
    return made


async def test_a_dead_engine_is_not_asked_and_is_not_ready() -> None:
    alive = [True]
    engine_front = dead_engine(alive)
    before = await call(engine_front)
    alive[0] = False
    after = await call(engine_front)
    state = await call(engine_front, "/_canaryctl/state", method="GET")

    assert (before.status, after.status, after.refused) == (200, 503, "closed")
    assert "has died" in after.json["error"]["message"]
    assert (engine_front.state()["ready"], state.json["ready"]) == (False, False)


async def test_the_error_of_an_engine_that_dies_in_a_request_is_replaced_by_a_503() -> None:
    alive = [True]
    engine_front = dead_engine(alive)
    made = engine_front.app
    assert made is not None

    async def dying(scope: Any, receive: Any, send: Any) -> None:
        alive[0] = False
        await made(scope, receive, send)

    engine_front.app = dying
    caller = await call(engine_front)

    assert (caller.status, caller.refused, len(caller.sent)) == (503, "closed", 2)


async def test_with_the_secret_a_request_reaches_the_engine() -> None:
    engine = free_engine()

    caller = await call(front(engine), revision="1.1")

    assert (caller.status, engine.calls) == (200, 1)


@pytest.mark.parametrize(("revision", "status"), [("3.4", 409), ("2.9", 409), ("3.5", 200), ("4.0", 200)])
async def test_a_revision_below_the_fence_never_reaches_the_engine(revision: str, status: int) -> None:
    engine = free_engine()
    engine_front = front(engine)
    await fence(engine_front, 3, 5)

    caller = await call(engine_front, revision=revision)

    assert (caller.status, engine.calls) == (status, int(status == 200))
    assert (caller.refused == "fence") == (status == 409)


async def test_the_fence_only_rises() -> None:
    engine_front = front(free_engine())
    await fence(engine_front, 3, 5)
    await fence(engine_front, 3, 4)
    caller = await fence(engine_front, 2, 99)

    assert caller.json["fence"] == "3.5"


async def test_revisions_compare_as_numbers_and_not_as_text() -> None:
    engine_front = front(free_engine())
    await fence(engine_front, 1, 9)

    assert (await call(engine_front, revision="1.10")).status == 200


async def test_a_malformed_revision_is_a_bad_request() -> None:
    assert (await call(front(free_engine()), revision="7")).status == 400


async def test_a_malformed_fence_is_a_bad_request_and_changes_nothing() -> None:
    engine_front = front(free_engine())

    caller = await call(engine_front, "/_canaryctl/fence", body=b'{"epoch": "1"}')

    assert (caller.status, engine_front.fence) == (400, None)


async def test_while_the_engine_loads_requests_get_503_and_the_state_is_not_ready() -> None:
    engine_front = front(None)

    assert (await call(engine_front)).status == 503
    assert (await call(engine_front, "/_canaryctl/state", method="GET")).json == {
        "in_flight": 0,
        "ready": False,
        "fence": None,
        "version": "v-1",
    }


async def test_in_flight_counts_requests_but_not_reads_of_metrics() -> None:
    engine = Engine()
    engine_front = front(engine)
    tasks = [asyncio.create_task(call(engine_front)) for _ in range(3)]
    tasks.append(asyncio.create_task(call(engine_front, "/metrics", method="GET")))
    await asyncio.sleep(0)

    assert (engine_front.in_flight, engine.calls) == (3, 4)

    engine.go.set()
    await asyncio.gather(*tasks)
    assert engine_front.in_flight == 0


async def test_cancel_cuts_an_answer_that_has_begun() -> None:
    engine = Engine()
    engine_front = front(engine)
    caller = Caller()
    raw = [(b"x-canaryctl-secret", DATA.text.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": raw}
    task = asyncio.create_task(engine_front(scope, caller.receive, caller.send))
    await asyncio.sleep(0)

    assert (await call(engine_front, "/_canaryctl/cancel")).json == {"cancelled": 1}
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [message["type"] for message in caller.sent] == ["http.response.start"]
    assert engine_front.in_flight == 0


async def test_cancel_answers_503_when_no_answer_has_begun() -> None:
    engine_front = front(Engine(begin=False))
    task = asyncio.create_task(call(engine_front))
    await asyncio.sleep(0)

    engine_front.cancel()

    assert ((await task).status, (await task).refused) == (503, "cancelled")


async def test_closing_lets_requests_finish_and_refuses_new_ones() -> None:
    engine = Engine()
    engine_front = front(engine)
    working = asyncio.create_task(call(engine_front))
    await asyncio.sleep(0)
    closing = asyncio.create_task(engine_front.close(grace_s=60))
    await asyncio.sleep(0)

    assert (await call(engine_front)).status == 503
    engine.go.set()
    await closing

    assert [m.get("body") for m in (await working).sent] == [None, b"done"]


async def test_closing_cancels_requests_that_outlast_the_grace() -> None:
    engine_front = front(Engine())
    working = asyncio.create_task(call(engine_front))
    await asyncio.sleep(0)

    await engine_front.close(grace_s=0.01)

    with pytest.raises(asyncio.CancelledError):
        await working


async def test_an_unknown_control_path_is_404_and_does_not_reach_the_engine() -> None:
    engine = free_engine()

    assert (await call(front(engine), "/_canaryctl/nothing")).status == 404
    assert engine.calls == 0


async def test_an_engine_that_leaves_says_it_is_not_ready_and_still_answers() -> None:
    to = front(free_engine())
    before = (await call(to, "/_canaryctl/state", method="GET")).json["ready"]
    to.is_leaving = True
    after = (await call(to, "/_canaryctl/state", method="GET")).json["ready"]

    assert (before, after) == (True, False)
    assert (await call(to)).status == 200
