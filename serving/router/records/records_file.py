"""Files of a standalone router: a line of JSON for each request, when it has ended or is open for long; in
another file one for each vote of a user.

The fields are those of `RequestRecord`, with the arms by name and the service. What came of a question to a
judge is a line of its own, `kind: judge`, with the request's id. Invariant: no line holds a
prompt, an answer or a key; `unit` is an HMAC.

The file is opened for each batch and closed after it, so that one that was moved away by a rotation is begun
anew. Batches are written in a thread: a slow disk delays no request. What waits is bounded; beyond that the
newest records are dropped and counted. So is a record of which no line can be made: it blocks no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from serving.judge_messages import JudgeRecord
from serving.messages import RecordBatch, RequestRecord, ScoreRecord
from serving.router.records.counters import ARM_NAMES

LIMIT = 20_000  # records that wait

_T = TypeVar("_T")

# `seq` is the position in the records log of a cluster.
FIELDS = tuple(one.name for one in dataclasses.fields(RequestRecord) if one.name != "seq")

# Nothing is mirrored beside a standalone router, so that no verdict is of a pair.
_LEFT_OUT = ("seq", "bad", "pair", "unit", "assigned_at_s")
VERDICT_FIELDS = tuple(one.name for one in dataclasses.fields(JudgeRecord) if one.name not in _LEFT_OUT)
JUDGE_KIND = "judge"

log = logging.getLogger("canaryctl.router")


def line_of(record: RequestRecord, service: str) -> bytes:
    """The record as one line of JSON, with its newline."""
    fields: dict[str, object] = {name: getattr(record, name) for name in FIELDS}
    fields["arm"] = ARM_NAMES[record.arm]
    for name in ("served_arm", "taken_over_by"):
        fields[name] = ARM_NAMES.get(getattr(record, name))
    fields["attempts"] = [
        {"arm": ARM_NAMES[one.arm], "replica": one.replica, "cause": one.cause, "tokens": one.tokens}
        for one in record.attempts
    ]
    return msgspec.json.encode({"service": service, **fields}) + b"\n"


def score_line(score: ScoreRecord, service: str) -> bytes:
    """A vote as one line of JSON, with its newline, as `canaryctl backtest --scores` reads it."""
    named = {"service": service, "id": score.id, "metric": score.metric, "score": score.value}
    return msgspec.json.encode({**named, "at_s": score.at_s}) + b"\n"


def verdict_line_of(record: JudgeRecord, service: str) -> bytes:
    """What came of a question to the judge as one line of JSON, `kind: judge`, with its newline.

    quality: 1 right, 0 wrong; null: there is no verdict, and `cause` says why.
    """
    fields = {name: getattr(record, name) for name in VERDICT_FIELDS}
    quality = None if record.bad is None else 1 - int(record.bad)
    return msgspec.json.encode({"kind": JUDGE_KIND, "service": service, **fields, "quality": quality}) + b"\n"


class RecordsFile:
    """One file. `add` records or votes, and `flush` a few times a second."""

    def __init__(self, path: Path, *, limit: int = LIMIT, option: str = "--records") -> None:
        """option: by which a person named the file."""
        self._option = option
        self.dropped = 0  # since the start
        self._path = path
        self._limit = limit
        self._waiting: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._error: str | None = None  # of the last batch; None: it was written
        self._unmade: set[str] = set()  # kinds of errors of which a line was not made, each logged once

    def add(
        self, records: Iterable[RequestRecord], service: str, verdicts: Iterable[JudgeRecord] = ()
    ) -> None:
        """Take these records."""
        self._take(records, lambda record: line_of(record, service))
        self._take(verdicts, lambda verdict: verdict_line_of(verdict, service))

    def add_scores(self, scores: Iterable[ScoreRecord], service: str) -> None:
        """Take these votes."""
        self._take(scores, lambda score: score_line(score, service))

    def _take(self, taken: Iterable[_T], line: Callable[[_T], bytes]) -> None:
        for one in taken:
            if len(self._waiting) >= self._limit:
                self.dropped += 1
                continue
            try:
                self._waiting.append(line(one))
            except Exception as exc:  # noqa: BLE001 - of one record; the others are to be written
                self.dropped += 1
                self._tell_unmade(type(exc).__name__)

    def _tell_unmade(self, kind: str) -> None:
        """Log it, once for each kind: its message may quote what a client sent."""
        if kind not in self._unmade:
            self._unmade.add(kind)
            log.error(f"a record could not be written ({kind}): {self._path}; dropped, as others will be")

    def check(self) -> None:
        """Raises OSError when the file cannot be written."""
        self._append(b"")

    def flush(self) -> None:
        """Begin to write what waits, unless a batch is being written."""
        if self._writing is not None and not self._writing.done():
            return
        if self._waiting:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def close(self) -> None:
        """Write the rest."""
        if self._writing is not None:
            await self._writing
        if self._waiting:
            await self._write()

    async def _write(self) -> None:
        lines, self._waiting = self._waiting, []
        dropped = self.dropped
        try:
            await asyncio.to_thread(self._append, b"".join(lines))
        except OSError as exc:
            self._waiting = (lines + self._waiting)[: self._limit]
            if self._error != str(exc):
                remedy = f"free space, or give another {self._option}"
                log.error(f"records wait: {self._path}: {exc.strerror}; {remedy}")
            self._error = str(exc)
            return
        if self._error is not None:
            log.info(f"records are written again: {self._path}; {dropped} were dropped since the start")
        self._error = None

    def _append(self, data: bytes) -> None:
        """Write all of it, or nothing: a part would be a torn line, and come twice. Raises OSError."""
        number = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(number, "ab", buffering=0) as file:
            size = os.fstat(number).st_size
            # A process that was killed while it wrote left half a line: the next is not to be lost with it.
            if data and size and os.pread(number, 1, size - 1) != b"\n":
                data = b"\n" + data
            try:
                while data:
                    data = data[file.write(data) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(number, size)
                raise


class KeptFiles:
    """The files that the user of a standalone router named; what has none is discarded."""

    def __init__(self, records: RecordsFile | None = None, feedback: RecordsFile | None = None) -> None:
        self.keeps_records, self.keeps_feedback = records is not None, feedback is not None
        self._records, self._feedback = records, feedback
        self._files = [one for one in (records, feedback) if one is not None]

    def add(self, batch: RecordBatch, service: str) -> None:
        """Take this batch."""
        if self._records is not None:
            self._records.add(batch.records, service, batch.verdicts)
        if self._feedback is not None:
            self._feedback.add_scores(batch.scores, service)

    def flush(self) -> None:
        """Begin to write what waits."""
        for one in self._files:
            one.flush()

    async def close(self) -> None:
        """Write the rest."""
        for one in self._files:
            await one.close()
