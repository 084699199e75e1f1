"""A canaryctl installation on real Ray and vLLM: its commands, its simulated users, its removal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from controller.cli.demo_traffic import Target, Users
from controller.settings import load_settings
from serving import checkpoints
from serving.loopback import free_ports

POLICY = Path(__file__).parents[2] / "examples" / "demo-policy.yaml"
SERVICE = "chat"
LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Product:
    """One installation: its environment and its commands."""

    environment: dict[str, str]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "controller.cli", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, timeout_s: float = 420) -> tuple[int, str]:
        """Exit code and combined output."""
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=timeout_s)
        return process.returncode, printed

    def service(self) -> dict[str, Any]:
        code, printed = self.run("status", "--service", SERVICE, "-o", "json")
        assert code == 0, printed
        view: dict[str, Any] = json.loads(printed)
        return view

    def rollout(self) -> dict[str, Any]:
        return self.service()["rollout"] or {}

    def controller_pid(self) -> int:
        health = httpx.get(f"{load_settings(self.environment).api_url}/healthz", timeout=10)
        return int(health.json()["pid"])

    def users(self) -> Users:
        settings = load_settings(self.environment)
        target = Target(
            base_url=settings.base_url(SERVICE),
            model=SERVICE,
            feedback_url=f"{settings.api_url}/v1/feedback",
            token=(settings.home / "admin.token").read_text().strip(),
        )
        return Users(target, checkpoints.questions(), concurrency=4)


@contextmanager
def installed(model: Path) -> Iterator[Product]:
    """An installation that serves `model` in its own state folder; removed without a trace at the end."""
    home = Path(tempfile.mkdtemp(prefix="cctl-"))
    api_port, port = free_ports(2)
    product = Product({**os.environ, "CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(api_port)})
    try:
        code, printed = product.run(
            "up", "--service", SERVICE, "--model", str(model), "--port", str(port), "--beside"
        )
        assert code == 0, printed
        assert f"/{SERVICE}/v1" in printed
        yield product
    finally:
        product.run("rollback", "--service", SERVICE, "--wait")  # a failed test may leave a rollout
        code, printed = product.run("down", "--yes", timeout_s=120)
        leftover = [line for line in processes() if str(home) in line]
        shutil.rmtree(home, ignore_errors=True)
    assert code == 0, printed
    assert leftover == []


def until(condition: Callable[[], bool], *, what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for what real engines bring about; how long they take says how busy the machine is."""
    deadline_at_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_at_s, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.5)


def processes() -> list[str]:
    """Command lines of all processes."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue  # it exited in the meantime
    return lines
