"""Records of a standalone router as JSON lines: one a request, when it has ended or is open for long.

The fields are those of `RequestRecord`, with the arms by name and the service. What came of a question to a
judge is a line of its own, `kind: judge`, with the request's id. Invariant: no line holds a
prompt, an answer or a key; `unit` is an HMAC.

The file is opened for each batch and closed after it, so that one that was moved away by a rotation is begun
anew. Batches are written in a thread: a slow disk delays no request. What waits is bounded; beyond that the
newest records are dropped and counted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord
from serving.router.records.counters import ARM_NAMES

LIMIT = 20_000  # records that wait
R = TypeVar("R")

# `seq` is the position in the records log of a cluster.
FIELDS = tuple(one.name for one in dataclasses.fields(RequestRecord) if one.name != "seq")

VERDICT_FIELDS = tuple(one.name for one in dataclasses.fields(JudgeRecord) if one.name not in ("seq", "bad"))
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


def verdict_line_of(record: JudgeRecord, service: str) -> bytes:
    """What came of a question to the judge as one line of JSON, `kind: judge`, with its newline.

    quality: 1 right, 0 wrong; null: there is no verdict, and `cause` says why.
    """
    fields = {name: getattr(record, name) for name in VERDICT_FIELDS}
    quality = None if record.bad is None else 1 - int(record.bad)
    return msgspec.json.encode({"kind": JUDGE_KIND, "service": service, **fields, "quality": quality}) + b"\n"


class RecordsFile:
    """One file. `add` records, and `flush` a few times a second."""

    def __init__(self, path: Path, *, limit: int = LIMIT) -> None:
        self.dropped = 0  # since the start
        self._path = path
        self._limit = limit
        self._waiting: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None
        self._error: str | None = None  # of the last batch; None: it was written

    def add(
        self, records: Iterable[RequestRecord], service: str, verdicts: Iterable[JudgeRecord] = ()
    ) -> None:
        """Take these records."""
        for record in records:
            self._add(line_of, record, service)
        for verdict in verdicts:
            self._add(verdict_line_of, verdict, service)

    def _add(self, line: Callable[[R, str], bytes], record: R, service: str) -> None:
        if len(self._waiting) < self._limit:
            self._waiting.append(line(record, service))
        else:
            self.dropped += 1

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
                log.error(
                    f"records wait: {self._path}: {exc.strerror}; free space, or give another --records"
                )
            self._error = str(exc)
            return
        if self._error is not None:
            log.info(f"records are written again: {self._path}; {dropped} were dropped since the start")
        self._error = None

    def _append(self, data: bytes) -> None:
        """Raises OSError."""
        number = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(number, "ab", buffering=0) as file:
            while data:
                data = data[file.write(data) or 0 :]
