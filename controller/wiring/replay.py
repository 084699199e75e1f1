"""A workload sent through a router of its own, half of it to each of two endpoints: records as of live ones.

The router is the standalone one, on a free loopback port, with its reading of answers, its draw and its
records; so what a replay judges is what a rollout would have recorded of the same answers. A canary is never
set aside here: all its failures are to be seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from controller.errors import BadInput, Unreachable
from serving.credentials import KeyReference
from serving.loopback import bound
from serving.network_errors import network_reason
from serving.router.records.records_file import KeptFiles, RecordsFile
from serving.router.standalone.table_file import front_of, source_of
from serving.router.standalone.table_reader import TableFileError
from serving.targets import Endpoint, Target

SERVICE = "replay"
DRAIN_S = 5.0
LOOK_S = 60.0  # for the beginning of the first answer
REQUEST_ID = "x-canaryctl-request-id"


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request of a workload."""

    path: str  # a listed path
    body: bytes  # JSON


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two endpoints. model: its name there; None: as the recorded body has it."""

    url: str
    model: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How requests are sent: so many at once; per_s: at most so many a second, None: as fast as these end."""

    at_once: int
    per_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Answers:
    path: Path
    file: int  # open


async def replay(
    requests: Sequence[Recorded],
    stable: Side,
    canary: Side,
    *,
    pace: Pace,
    records: Path,
    answers: Path | None,
    progress: Callable[[int], None],
) -> None:
    """Send every request once, and write the records (and answers) to these files.

    The first one is sent to both endpoints before, to see that they take the keys. progress: called with the
    number of requests that have ended. Raises Unreachable for an endpoint at which nothing listens or that
    refuses the key, BadInput for a table that cannot be (a bad address, a key that is not set) and for a file
    that cannot be written: before anything is sent where that shows then.
    """
    for side in (stable, canary):
        await _reach(side.url)
    with tempfile.TemporaryDirectory(prefix="canaryctl-replay-") as folder:
        table = Path(folder) / "table.yaml"
        table.write_text(json.dumps(_table(stable, canary)))
        file = RecordsFile(records)
        try:
            file.check()
        except OSError as exc:
            raise _unwritten("--records", records, exc) from exc
        kept = KeptFiles(file)
        try:
            source = source_of(table, kept)
        except TableFileError as exc:
            raise BadInput(exc.lines) from exc
        if source.problems:
            raise BadInput(source.problems)
        written = None if answers is None else _Answers(answers, _private(answers))
        try:
            for side in (stable, canary):
                await _look(side, requests[0])
            front = front_of(source)
            await front.start()
            try:
                port = await front.listen(bound("127.0.0.1", 0))
                await _send_all(requests, f"http://127.0.0.1:{port}/{SERVICE}", pace, written, progress)
            finally:
                await front.stop(drain_s=DRAIN_S)
        finally:
            if written is not None:
                os.close(written.file)


def _table(stable: Side, canary: Side) -> dict[str, object]:
    """The table file, as JSON is YAML: half of the requests to each, drawn one by one."""

    def upstream(side: Side) -> dict[str, str]:
        named = {"url": side.url, "model": side.model, "api_key_env": side.api_key_env}
        return {name: value for name, value in named.items() if value is not None}

    return {
        "service": SERVICE,
        "stable": {**upstream(stable), "version": "stable"},
        "canary": {**upstream(canary), "version": "canary"},
        "weight_bp": 5000,
        "salt": os.urandom(8).hex(),
        "limits": {"failures": 0},
    }


async def _reach(url: str) -> None:
    """Raises Unreachable: nothing answers there; BadInput: it is no address."""
    try:
        models = str(Endpoint.parsed(url).url(Target("/v1/models")))
    except ValueError as exc:  # without what an address may hold of a key
        raise BadInput(f"--against: {exc}") from exc
    try:
        # The router that sends the requests uses no proxy of the environment either.
        async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
            await client.get(models)
    except httpx.HTTPError as exc:
        raise Unreachable(
            f"--against {url}: {network_reason(exc)}; start it, or correct the address"
        ) from exc


async def _look(side: Side, request: Recorded) -> None:
    """Raises Unreachable where the endpoint refuses the key: that says nothing of a version."""
    key = None if side.api_key_env is None else KeyReference("env", side.api_key_env).read()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    body = request.body
    if side.model is not None:
        body = json.dumps({**json.loads(body), "model": side.model}).encode()
    target = str(Endpoint.parsed(side.url).url(Target(request.path)))
    status = 0
    with contextlib.suppress(httpx.HTTPError):  # what else it does, the replay shows
        async with (
            httpx.AsyncClient(timeout=LOOK_S, trust_env=False) as client,
            client.stream("POST", target, content=body, headers=headers) as answer,
        ):
            status = answer.status_code
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        what = f"refuses the key of {side.api_key_env}" if key else "asks for a key"
        remedy = "check it" if key else "give its variable's name: --api-key-env NAME"
        raise Unreachable(f"--against {side.url} {what} (status {status}); {remedy}")


async def _send_all(
    requests: Sequence[Recorded],
    base: str,
    pace: Pace,
    written: _Answers | None,
    progress: Callable[[int], None],
) -> None:
    waiting, done = iter(enumerate(requests)), 0
    failed: OSError | None = None  # of the answers' file; then no more is sent
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    limits = httpx.Limits(max_connections=pace.at_once, max_keepalive_connections=pace.at_once)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal done, failed
        for number, request in waiting:
            if failed is not None:
                return
            if pace.per_s is not None:
                await asyncio.sleep(max(0.0, began_s + number / pace.per_s - loop.time()))
            headers = {"content-type": "application/json"}
            try:
                answer = await client.post(base + request.path, content=request.body, headers=headers)
            except httpx.HTTPError:  # a stream that broke: the router's record says why
                pass
            else:
                try:
                    if written is not None:
                        await asyncio.to_thread(_write, written.file, number, answer)
                except OSError as exc:
                    failed = exc
            done += 1
            progress(done)

    async with (
        httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(min(pace.at_once, len(requests))):
            group.create_task(work(client))
    if failed is not None and written is not None:
        raise _unwritten("--answers", written.path, failed)


def _private(path: Path) -> int:
    """The file, emptied, that nobody else may read. Raises BadInput."""
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        if stat.S_ISREG(os.fstat(number).st_mode):
            os.fchmod(number, 0o600)  # one that was there keeps its own mode else
    except OSError as exc:
        raise _unwritten("--answers", path, exc) from exc
    return number


def _unwritten(option: str, path: Path, exc: OSError) -> BadInput:
    return BadInput(f"{option} {path}: {exc.strerror}; name a file that can be written")


def _write(file: int, number: int, answer: httpx.Response) -> None:
    """One line: the request's number in the workload, from 1, its id, the status and the answer's text.

    Raises OSError, also where a part of it was written.
    """
    line = {
        "request": number + 1,
        "id": answer.headers.get(REQUEST_ID),
        "status": answer.status_code,
        "answer": answer.text,
    }
    data = json.dumps(line).encode() + b"\n"
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
