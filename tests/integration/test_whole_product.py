"""The commands of the README against real Ray Serve, real vLLM and real checkpoints, as a user types them.

One state folder for the whole module: `up` and a first load cost half a minute, so the tests run in the
order of this file, and each leaves the service on one version with nothing running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.cli.demo_traffic import Target, Users
from controller.settings import load_settings
from serving import checkpoints
from serving.loopback import free_ports

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

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


@pytest.fixture(scope="module")
def trained() -> Path:
    checkpoints.ensure()
    return checkpoints.default_dir()


@pytest.fixture(scope="module")
def product(trained: Path) -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="cctl-"))
    api_port, port = free_ports(2)
    environment = {**os.environ, "CANARYCTL_HOME": str(home), "CANARYCTL_API_PORT": str(api_port)}
    made = Product(environment)
    try:
        code, printed = made.run(
            "up", "--service", SERVICE, "--model", str(trained / "stable"), "--port", str(port)
        )
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


def test_bad_input_gives_one_line_and_leaves_what_runs_untouched(product: Product, trained: Path) -> None:
    before = product.service()
    falling = Path(product.environment["CANARYCTL_HOME"]) / "falling.yaml"
    falling.write_text("stages: [{weight: 20%}, {weight: 10%}]\n")
    beyond = falling.with_name("beyond.yaml")
    beyond.write_text("stages: [{weight: 120%}]\n")
    stable = str(trained / "stable")
    refused = {
        "missing checkpoint": (["--model", "/nonexistent"], 2),
        "falling weights": (["--model", stable, "--policy", str(falling)], 2),
        "weight past 100 %": (["--model", stable, "--policy", str(beyond)], 2),
    }

    ended = {what: product.run("deploy", "--service", SERVICE, *rest) for what, (rest, _) in refused.items()}

    assert {what: code for what, (code, _) in ended.items()} == {
        what: code for what, (_, code) in refused.items()
    }
    assert all(len(printed.strip().splitlines()) == 1 for _, printed in ended.values()), ended
    assert product.service()["stable"] == before["stable"]
    code, printed = product.run("rollback", "--service", "nobody")
    assert (code, len(printed.strip().splitlines())) == (2, 1), printed


def test_a_killed_controller_finishes_the_rollout_after_its_restart(product: Product, trained: Path) -> None:
    with product.users() as users:
        code, printed = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "twin"), "--policy", str(POLICY)
        )
        assert code == 0, printed
        second = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "wrong"), "--policy", str(POLICY)
        )
        until(lambda: product.rollout().get("phase") == "stage", limit_s=240, what="the first stage")
        os.kill(product.controller_pid(), signal.SIGKILL)
        unreachable = product.run("status", "--service", SERVICE)
        code, printed = product.run("up", "--service", SERVICE, "--model", str(trained / "stable"))
        assert code == 0, printed
        until(lambda: product.rollout().get("is_final") is True, limit_s=420, what="the end of the rollout")

    view = product.rollout()
    assert view["phase"] == "succeeded", view["log"][-5:]
    assert (second[0], len(second[1].strip().splitlines())) == (3, 1), second
    assert (unreachable[0], len(unreachable[1].strip().splitlines())) == (4, 1), unreachable
    assert product.service()["stable"] == view["canary"]
    assert users.tally.failures == []
    assert users.tally.answered["canary"] > 0


def test_a_rollback_by_hand_frees_the_canary_and_fails_no_request(product: Product, trained: Path) -> None:
    before = product.service()
    with product.users() as users:
        code, printed = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "stable"), "--policy", str(POLICY)
        )
        assert code == 0, printed
        until(lambda: product.rollout().get("phase") == "stage", limit_s=240, what="the first stage")
        code, printed = product.run("rollback", "--service", SERVICE, "--wait")

    view = product.rollout()
    assert code == 0, printed
    assert view["phase"] == "rolled_back", view["log"][-5:]
    assert [one["version"] for one in product.service()["versions"]] == [before["stable"]]
    assert {name for name, value in view["steps"].items() if name.endswith("_ms") and value is None} == set()
    assert users.tally.failures == []
    code, printed = product.run("rollback", "--service", SERVICE)
    assert (code, "already serving" in printed) == (0, True), printed


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
