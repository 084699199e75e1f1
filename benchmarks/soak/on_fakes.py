"""One class of faults on fake engines: clients, router and engines, each a process, and their account.

The account joins three notes of each request by its id: what the client read, what the canary's log says,
what the router recorded. They must agree: an attempt of the canary that failed is an error (a rejection for a
4xx) of the assigned arm and of nothing else, and each continued stream is recorded as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.soak import client, engine, router
from benchmarks.soak.faults import Fault
from serving.loopback import free_ports

SECRET = "of-the-fault-matrix"
WEIGHT_BP = 9000
MOST_REQUESTS = 4  # times the faults that are wanted; a class that needs more does not strike
FREEZE_S = 4.0  # longer than the router's limits


@dataclass
class Account:
    """Figures of one class. `mismatches`: requests whose record is not what happened to them."""

    requests: int = 0
    met: int = 0  # requests whose first attempt on the canary met the fault
    kills: int = 0
    met_by_kind: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    causes: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    taken_over: int = 0
    whose: Counter[str] = field(default_factory=Counter)
    p99_ms: float = 0.0
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Figures as JSON values; of long lists the first ten."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values = {name: dict(one) if isinstance(one, Counter) else one for name, one in values.items()}
        for name in ("failures", "mismatches"):
            values[name] = {"count": len(values[name]), "first": values[name][:10]}
        return values


def start(module: str, settings: object) -> tuple[subprocess.Popen[str], int]:
    """A process of this module with these settings, and the port that it prints."""
    command = [sys.executable, "-m", module, json.dumps(asdict(settings))]  # type: ignore[call-overload]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{module} did not start: exit code {process.wait()}")
    return process, int(line)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process, frozen or not, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    if process.poll() is None:
        process.kill()
        process.wait()


class Rig:
    """A stable engine, a canary engine with the fault, and a router in front; the canary can be replaced."""

    def __init__(self, fault: Fault, folder: Path, stack: contextlib.ExitStack, seed: int) -> None:
        self.log, self.records = folder / "canary.log", folder / "records.jsonl"
        (self._canary_port,) = free_ports(1)
        self._fault, self._seed = fault, seed
        stable, port = start("benchmarks.soak.engine", self._engine("stable", "no fault", 0))
        stack.callback(stop, stable)
        self.canary = self.start_canary()
        stack.callback(lambda: stop(self.canary))
        table = folder / "table.json"
        urls = {"stable": port, "canary": self._canary_port}
        table.write_text(json.dumps({arm: [f"http://127.0.0.1:{one}"] for arm, one in urls.items()}))
        settings = router.Settings(
            str(table),
            str(self.records),
            SECRET,
            WEIGHT_BP,
            router.LIMITS if fault.waits else {"keep_alive_s": 0.25},
        )
        self.router, self.port = start("benchmarks.soak.router", settings)
        stack.callback(stop, self.router)

    def _engine(self, arm: str, fault: str, port: int) -> engine.Settings:
        log = str(self.log) if arm == "canary" else ""
        pace_s = self._fault.pace_s
        return engine.Settings(arm, SECRET, fault, self._fault.rate, self._seed, port, pace_s, log)

    def start_canary(self) -> subprocess.Popen[str]:
        """A canary engine on the port of the one before."""
        return start("benchmarks.soak.engine", self._engine("canary", self._fault.name, self._canary_port))[0]

    def met(self) -> int:
        """How many requests have met the fault so far; of a fault of the process, cut streams."""
        return len(_met(read_log(self.log), self._fault))


def read_log(path: Path) -> dict[str, list[tuple[str, bool]]]:
    """Attempts of each request on the canary: the fault, and whether it was answered whole."""
    attempts: dict[str, tuple[str, bool]] = {}
    text = path.read_bytes() if path.exists() else b""
    for line in text[: text.rfind(b"\n") + 1].splitlines():  # the last one may be being written
        word, request, *rest = json.loads(line)
        attempts[request] = (rest[0], False) if word == "begin" else (attempts[request][0], True)
    found: dict[str, list[tuple[str, bool]]] = {}
    for sent_id, attempt in attempts.items():
        found.setdefault(request_of(sent_id), []).append(attempt)
    return found


def request_of(sent_id: str) -> str:
    """The request of an attempt: routers number those after the first."""
    request, dash, number = sent_id.rpartition("-")
    return request if dash and number.isdigit() and len(number) < 3 else sent_id


def _met(log: Mapping[str, Sequence[tuple[str, bool]]], fault: Fault) -> set[str]:
    if fault.place == "process":
        return {request for request, (first, *_) in log.items() if not first[1]}
    return {request for request, (first, *_) in log.items() if first[0]}


def run(fault: Fault, target: int, seed: int = 0, keep: Path | None = None) -> Account:
    """Requests until `target` of them have met the fault (for no fault: that many), and their account.

    keep: where the records are copied to; None: they are thrown away.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, contextlib.ExitStack() as stack:
        rig = Rig(fault, Path(folder), stack, seed)
        account, tally = Account(), client.Tally()
        asyncio.run(_load(rig, fault, target, tally, account, random.Random(seed)))
        stop(rig.router)
        records = [json.loads(line) for line in rig.records.read_bytes().splitlines()]
        settle(account, fault, tally, read_log(rig.log), records)
        if keep is not None:
            keep.write_bytes(rig.records.read_bytes())
    account.took_s = round(time.monotonic() - began_s, 1)
    return account


async def _load(
    rig: Rig, fault: Fault, target: int, tally: client.Tally, account: Account, random_: random.Random
) -> None:
    numbers = itertools.count()
    most = target * MOST_REQUESTS * (10 if fault.place == "process" else 1)  # most of these do not meet it
    is_enough = False

    def next_() -> int | None:
        asked = next(numbers)
        return None if is_enough or asked >= most else asked

    async def watch() -> None:
        nonlocal is_enough
        while not is_enough:
            await asyncio.sleep(0.3)
            match fault.place:
                case "none" | "listener":  # refused requests are in no log: the causes of records count them
                    wanted = target * (1 if fault.place == "none" else 2)
                    is_enough = is_enough or len(tally.by_id) >= wanted
                case _:
                    is_enough = await asyncio.to_thread(rig.met) >= target or is_enough

    async def strike() -> None:
        while not is_enough:
            await asyncio.sleep(random_.uniform(0.5, 1.5))
            account.kills += 1
            if fault.name == "engine frozen":
                os.kill(rig.canary.pid, signal.SIGSTOP)
                await asyncio.sleep(FREEZE_S)
                os.kill(rig.canary.pid, signal.SIGCONT)
            else:
                os.kill(rig.canary.pid, signal.SIGKILL)
                await asyncio.to_thread(rig.canary.wait)
                rig.canary = await asyncio.to_thread(rig.start_canary)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        striking = group.create_task(strike()) if fault.place == "process" else None
        await client.ask_all(rig.port, f"/{router.SERVICE}", tally, next_, fault.clients)
        is_enough = True
        await watching
        if striking is not None:
            await striking


def settle(
    account: Account,
    fault: Fault,
    tally: client.Tally,
    log: Mapping[str, list[tuple[str, bool]]],
    records: Sequence[Mapping[str, Any]],
) -> None:
    """Fill the account from the three notes."""
    account.failures = tally.failures
    account.requests = len(tally.by_id) + len(tally.failures)
    account.whose = tally.whose
    times_s = sorted(tally.times_s)
    account.p99_ms = round(times_s[len(times_s) * 99 // 100] * 1000, 1) if times_s else 0.0
    met = _met(log, fault)
    by_id = {record["request_id"]: record for record in records}
    if len(by_id) != len(records):
        account.mismatches.append(f"{len(records) - len(by_id)} requests have two records")
    for request in tally.by_id.keys() - by_id.keys():
        account.mismatches.append(f"{request}: answered, and not recorded")
    for request, record in by_id.items():
        kind, whose = tally.by_id.get(request, ("", ""))
        account.causes[str(record["cause"])] += 1
        account.outcomes[record["outcome"]] += 1
        account.taken_over += record["takeover_at"] is not None
        if fault.place == "process" and not record["error"]:
            met.discard(request)  # its answer had arrived whole before
        is_met = request in met or (fault.place == "listener" and record["arm"] == 1 and record["error"])
        if is_met:
            account.met += 1
            account.met_by_kind[kind or "failed"] += 1
        why = _mismatch(fault, record, whose, log.get(request, []), is_met=bool(is_met))
        if why is not None:
            account.mismatches.append(f"{request} ({kind}, read as {whose}): {why}; {dict(record)}")


def _mismatch(
    fault: Fault, record: Mapping[str, Any], whose: str, attempts: Sequence[tuple[str, bool]], *, is_met: bool
) -> str | None:
    """What of the record is not what happened; None: all of it is."""
    error, rejected, arm = record["error"], record["rejected"], record["arm"]
    if arm == 0:
        return "stable was assigned and is charged, or the canary was asked" if error or attempts else None
    if not attempts and fault.place not in ("listener", "process") and not fault.waits:
        return "the canary was assigned and not asked"
    if fault.waits and not is_met and record["cause"] in ("timeout", "stalled", "refused"):
        return None  # the machine was so busy that a sound engine was later than the short limit
    is_charged = is_met and not fault.is_harmless
    if fault.place == "process":
        # It may not have reached the engine, or not have arrived whole although it was whole there.
        is_charged = error if whose != "canary" or error else False
        is_redone = record["outcome"] == "answered" and len(record["attempts"]) == 2  # only its usage missed
        if whose != "canary" and not error and not is_redone:
            return "the canary was assigned and did not answer, and is not charged"
    if error is not (is_charged and not fault.is_rejected):
        return f"error {error}, and the first attempt {'failed' if is_charged else 'did not fail'}"
    if rejected is not (is_charged and fault.is_rejected):
        return f"rejected {rejected}"
    if is_charged and not fault.names(record["cause"]):
        return f"cause {record['cause']!r} is none of {fault.causes}"
    if record["covered"] is False:
        return "its failure would have been seen"
    if not whose:
        return None  # the client has said what is wrong with it
    is_taken_over = record["takeover_at"] is not None
    if is_taken_over and (record["taken_over_by"] != 0 or record["outcome"] != "fallback"):
        return "a takeover without its outcome"
    # Stable's rest of a stream may have the very bytes that the canary's would have had; and where all but
    # the usage had come, stable adds that, which is no takeover.
    may_differ = (is_taken_over and whose == "canary") or fault.is_harmless
    if is_taken_over != (whose == "stitched") and not may_differ:
        return "continued for the client, or in the record, but not both"
    served = 0 if whose == "stable" or is_taken_over else 1
    if record["served_arm"] != served:
        return f"served by {record['served_arm']}, not {served}"
    return None
