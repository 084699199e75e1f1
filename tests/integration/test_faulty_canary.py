"""A canary that refuses connections, or answers 404 to all, is rolled back while users see nothing.

The whole product on real Ray Serve; stable and canary are endpoints, the fake engines of the fault matrix.
The canary becomes faulty when its first stage has begun. The client checks every byte of every answer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.soak import client, engine, on_fakes
from controller.settings import load_settings
from serving.loopback import free_ports
from tests.integration.product import POLICY, SERVICE, Product, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@dataclass
class Endpoint:
    """A fake engine of somebody else."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, arm: str) -> Endpoint:
        return cls(*on_fakes.start("benchmarks.soak.engine", engine.Settings(arm)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, fault: str, rate: float) -> None:
        httpx.post(f"{self.url}/_soak/fault", json={"name": fault, "rate": rate}).raise_for_status()


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="cctl-"))
    api_port, port = free_ports(2)
    one = Product({**os.environ, "CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(api_port)})
    stable = Endpoint.start("stable")
    try:
        code, printed = one.run("up", "--service", SERVICE, "--url", stable.url, "--port", str(port))
        assert code == 0, printed
        yield one
    finally:
        one.run("down", "--yes", timeout_s=120)
        on_fakes.stop(stable.process)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def users(product: Product) -> Iterator[client.Tally]:
    """Six clients that ask without a pause until the block ends."""
    base = urlsplit(load_settings(product.environment).base_url(SERVICE))
    assert base.port is not None
    tally, is_over, numbers = client.Tally(), threading.Event(), itertools.count(time.time_ns() % 10**9)
    path = base.path.removesuffix("/v1")

    def ask() -> None:
        def next_() -> int | None:
            time.sleep(0.002)
            return None if is_over.is_set() else next(numbers)

        asyncio.run(client.ask_all(base.port or 0, path, tally, next_, 6))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield tally
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize(("fault", "rate"), [("connection refused", 0.3), ("status 404", 1.0)])
def test_a_faulty_canary_is_rolled_back_and_no_user_sees_it(
    product: Product, fault: str, rate: float
) -> None:
    canary = Endpoint.start("canary")
    try:
        with users(product) as tally:
            code, printed = product.run(
                *("deploy", SERVICE, "--url", canary.url, "--policy", str(POLICY)),
                *("--allow-unjudged", "nobody scores the answers of this test"),
                *("--allow-unproven", "it is to be rolled back"),
            )
            assert code == 0, printed
            until(lambda: product.rollout().get("phase") == "stage", limit_s=120, what="the first stage")
            until(lambda: tally.whose["canary"] > 20, limit_s=60, what="answers of the canary")
            canary.fail(fault, rate)
            until(lambda: product.rollout().get("is_final") is True, limit_s=200, what="the rollback")
    finally:
        on_fakes.stop(canary.process)
    view = product.rollout()

    assert view["phase"] == "rolled_back", view["log"][-5:]
    assert tally.failures == []
