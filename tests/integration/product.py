"""One installation of canaryctl on real parts, as a user has it: its commands, its users, its end."""

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

    def run(self, *arguments: str, limit_s: float = 420) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        command = self.start(*arguments)
        printed, _ = command.communicate(timeout=limit_s)
        return command.returncode, printed

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
    """An installation that serves `model`, in a state folder of its own; at the end nothing of it is left."""
    home = Path(tempfile.mkdtemp(prefix="cctl-"))
    api_port, port = free_ports(2)
    made = Product({**os.environ, "CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(api_port)})
    try:
        code, printed = made.run("up", "--service", SERVICE, "--model", str(model), "--port", str(port))
        assert code == 0, printed
        assert f"/{SERVICE}/v1" in printed
        yield made
    finally:
        made.run("rollback", "--service", SERVICE, "--wait")  # when a test failed in the middle
        code, printed = made.run("down", "--yes", limit_s=120)
        left = [line for line in processes() if str(home) in line]
        shutil.rmtree(home, ignore_errors=True)
    assert code == 0, printed
    assert left == []


def until(true: Callable[[], bool], *, limit_s: float, what: str) -> None:
    deadline_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline_s, f"{what} did not come within {limit_s:.0f} s"
        time.sleep(0.5)


def processes() -> list[str]:
    """Command lines of all processes."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue  # it ended meanwhile
    return lines
