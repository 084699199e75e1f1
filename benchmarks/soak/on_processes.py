"""Routers, controller and table actor killed under load: the whole product on Ray Serve, over fake engines.

One installation with three routers and a rollout in progress at 50 %. No engine fails; what users see is what
the killed process had in flight: of a router the answers that it was passing on, of the others nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.soak import client, engine, on_fakes
from controller.settings import load_settings
from serving.loopback import free_ports
from tests.integration.product import SERVICE, Product, until

KINDS = {"router": "ray::ServeReplica:chat--router", "table actor": "ray::TableActor", "controller": ""}
ROUTERS = 3
CLIENTS = 6
RECOVERY_S = 120.0
POLICY = "stages: [{weight: 50%, duration: 12h}]\n"
_UNTESTED = ("--allow-unjudged", "nobody scores these answers", "--allow-unproven", "nothing is to be proven")


@dataclass
class Endpoint:
    """A fake engine of somebody else."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, arm: str) -> Endpoint:
        """A process of its own."""
        return cls(*on_fakes.start("benchmarks.soak.engine", engine.Settings(arm)))

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: str, rate: float) -> None:
        """Meet this fault from now on."""
        httpx.post(f"{self.url}/_soak/fault", json={"name": fault, "rate": rate}).raise_for_status()


@contextmanager
def installed(routers: int = 1) -> Iterator[Product]:
    """An installation whose stable is a fake engine; nothing of it remains."""
    home = Path(tempfile.mkdtemp(prefix="cctl-"))
    api_port, port = free_ports(2)
    one = Product({**os.environ, "CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(api_port)})
    stable = Endpoint.start("stable")
    file = home / "service.yaml"
    file.write_text(f"service: {SERVICE}\nurl: {stable.url}\nrouters: {routers}\n")
    try:
        code, printed = one.run("up", "--file", str(file), "--port", str(port), "--beside")
        if code != 0:
            raise RuntimeError(printed)
        yield one
    finally:
        one.run("down", "--yes", timeout_s=120)
        on_fakes.stop(stable.process)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def users(product: Product) -> Iterator[client.Tally]:
    """Clients that ask without a pause until the block ends."""
    base = urlsplit(load_settings(product.environment).base_url(SERVICE))
    tally, is_over, numbers = client.Tally(), threading.Event(), itertools.count(time.time_ns() % 10**9)
    path = base.path.removesuffix("/v1")

    def ask() -> None:
        def next_() -> int | None:
            time.sleep(0.002)
            return None if is_over.is_set() else next(numbers)

        asyncio.run(client.ask_all(base.port or 80, path, tally, next_, CLIENTS))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield tally
    finally:
        is_over.set()
        thread.join()


def pids(product: Product, name: str) -> list[int]:
    """Processes of this installation whose title begins so."""
    home = product.environment["CANARYCTL_HOME"]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if (process.info["cmdline"] or [""])[0].startswith(name) and (
                process.environ().get("CANARYCTL_HOME") == home
            ):
                found.append(process.pid)
    return found


def run(kind: str, strikes: int, seed: int = 0) -> dict[str, Any]:
    """Kill processes of this kind so many times."""
    began_s, random_ = time.monotonic(), random.Random(seed)
    with installed(ROUTERS) as product, users(product) as tally:
        canary = Endpoint.start("canary")
        policy = Path(product.environment["CANARYCTL_HOME"]) / "slow.yaml"
        policy.write_text(POLICY)
        try:
            arguments = ("--url", canary.url, "--policy", str(policy), *_UNTESTED)
            code, printed = product.run("deploy", SERVICE, *arguments)
            if code != 0:
                raise RuntimeError(printed)
            until(lambda: tally.whose["canary"] > 20, limit_s=RECOVERY_S, what="answers of the canary")
            before, most, recoveries_s = len(tally.failures), 0, []
            for _ in range(strikes):
                time.sleep(random_.uniform(1.0, 3.0))
                failed, struck_s = len(tally.failures), time.monotonic()
                _strike(product, kind, random_)
                recoveries_s.append(round(time.monotonic() - struck_s, 1))
                most = max(most, len(tally.failures) - failed)
            time.sleep(2.0)
            failures = tally.failures[before:]
        finally:
            on_fakes.stop(canary.process)
    allowed = strikes * CLIENTS if kind == "router" else 0
    return {
        "strikes": strikes,
        "answers": len(tally.by_id),
        "seen_by_users": {"count": len(failures), "first": [one[:300] for one in failures[:5]]},
        "most_at_one_strike": most,
        "recovered_s": {"median": sorted(recoveries_s)[len(recoveries_s) // 2], "most": max(recoveries_s)},
        "missed": [f"users saw {len(failures)} failures, {allowed} were in flight at most"]
        if len(failures) > allowed
        else [],
        "took_s": round(time.monotonic() - began_s, 1),
    }


def _strike(product: Product, kind: str, random_: random.Random) -> None:
    """Kill one process, and wait until another does its work."""
    if kind == "controller":
        os.kill(product.controller_pid(), signal.SIGKILL)
        code, printed = product.run("up")
        if code != 0:
            raise RuntimeError(printed)
        return
    before = pids(product, KINDS[kind])
    os.kill(random_.choice(before), signal.SIGKILL)
    until(
        lambda: len(set(pids(product, KINDS[kind])) - set(before)) > 0,
        limit_s=RECOVERY_S,
        what=f"a new {kind}",
    )
