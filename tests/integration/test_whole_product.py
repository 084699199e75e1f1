"""The README's commands against real Ray Serve, vLLM and checkpoints.

All tests share one state folder, because `up` with its first load takes half a minute: they run in file
order, and each leaves the service on one version without a rollout.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.settings import load_settings
from serving import checkpoints
from serving.actor_names import judge_service
from tests.integration.product import POLICY, SERVICE, Product, installed, processes, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def trained() -> Path:
    checkpoints.ensure()
    return checkpoints.default_dir()


@pytest.fixture(scope="module")
def product(trained: Path) -> Iterator[Product]:
    with installed(trained / "stable") as product:
        yield product


def test_bad_input_is_one_line_and_changes_nothing(product: Product, trained: Path) -> None:
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

    results = {
        what: product.run("deploy", "--service", SERVICE, *rest) for what, (rest, _) in refused.items()
    }

    assert {what: code for what, (code, _) in results.items()} == {
        what: code for what, (_, code) in refused.items()
    }
    assert all(len(printed.strip().splitlines()) == 1 for _, printed in results.values()), results
    assert product.service()["stable"] == before["stable"]
    code, printed = product.run("rollback", "--service", "unknown")
    assert (code, len(printed.strip().splitlines())) == (2, 1), printed


def test_a_killed_controller_finishes_its_rollout_after_a_restart(product: Product, trained: Path) -> None:
    with product.users() as users:
        code, printed = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "twin"), "--policy", str(POLICY)
        )
        assert code == 0, printed
        second = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "wrong"), "--policy", str(POLICY)
        )
        until(lambda: product.rollout().get("phase") == "stage", what="the first stage")
        os.kill(product.controller_pid(), signal.SIGKILL)
        unreachable = product.run("status", "--service", SERVICE)
        code, printed = product.run("up", "--service", SERVICE, "--model", str(trained / "stable"))
        assert code == 0, printed
        until(lambda: product.rollout().get("is_final") is True, what="the end of the rollout")

    view = product.rollout()
    assert view["phase"] == "succeeded", view["log"][-5:]
    assert (second[0], len(second[1].strip().splitlines())) == (3, 1), second
    # What was last stored is shown; the error is one line, the last.
    errors = [line for line in unreachable[1].splitlines() if line.startswith("error:")]
    assert (unreachable[0], errors) == (4, unreachable[1].strip().splitlines()[-1:]), unreachable
    assert product.service()["stable"] == view["canary"]
    assert users.tally.failures == []
    assert users.tally.answered["canary"] > 0


def test_a_manual_rollback_unloads_the_canary_and_fails_no_request(product: Product, trained: Path) -> None:
    before = product.service()
    with product.users() as users:
        code, printed = product.run(
            "deploy", "--service", SERVICE, "--model", str(trained / "stable"), "--policy", str(POLICY)
        )
        assert code == 0, printed
        until(lambda: product.rollout().get("phase") == "stage", what="the first stage")
        code, printed = product.run("rollback", "--service", SERVICE, "--wait")

    view = product.rollout()
    assert code == 0, printed
    assert view["phase"] == "rolled_back", view["log"][-5:]
    assert [version["version"] for version in product.service()["versions"]] == [before["stable"]]
    assert {name for name, value in view["steps"].items() if name.endswith("_ms") and value is None} == set()
    assert users.tally.failures == []
    code, printed = product.run("rollback", "--service", SERVICE)
    assert (code, "already serving" in printed) == (0, True), printed


def test_a_judge_served_here_is_examined_and_one_that_says_no_word_votes_on_nothing(
    product: Product, trained: Path
) -> None:
    """The trained checkpoint knows no task but its own: the examination hears none of the words from it."""
    file = Path(product.environment["CANARYCTL_HOME"]) / "judged.yaml"
    before = product.service()
    judge = {"model": str(trained / "stable"), "share": "50%", "kv_cache_memory_bytes": "64MiB"}
    file.write_text(json.dumps({"service": SERVICE, "model": str(trained / "stable"), "judge": judge}))
    missing = file.with_name("missing.yaml")
    absent = {**judge, "model": "/nonexistent"}
    missing.write_text(json.dumps({"service": SERVICE, "model": str(trained / "stable"), "judge": absent}))
    code, printed = product.run("up", "--file", str(missing))
    assert (code, "judge: checkpoint /nonexistent is not" in printed) == (2, True), printed
    code, printed = product.run("up", "--file", str(file))
    assert code == 0, printed

    with product.users() as users:
        canary = ("--model", str(trained / "wrong"), "--policy", str(POLICY))
        code, printed = product.run("deploy", "--service", SERVICE, *canary)
        assert code == 0, printed
        until(lambda: bool((product.rollout().get("judge") or {}).get("engine")), what="the judge's engine")
        engine = product.rollout()["judge"]["engine"]
        until(lambda: product.rollout().get("phase") == "stage", what="the first stage")
        until(lambda: bool(_quality(product.rollout())), what="the gates")
        view = product.rollout()
        listed = httpx.get(
            f"{load_settings(product.environment).base_url(SERVICE)}/models", timeout=30
        ).json()
        was_loaded = _judge_runs()
        code, printed = product.run("rollback", "--service", SERVICE, "--wait")
        until(lambda: not _judge_runs(), what="the end of the judge's engine")

    assert engine.startswith("its engine is "), engine
    assert view["judge"]["state"] == "silent"
    # Not `status 403` or `404`: it was asked by its secret and its name.
    assert "its answer is none of the words" in view["judge"]["text"]
    assert (was_loaded, view["weight_bp"] > 0) == (True, True)
    assert {one["verdict"] for one in _quality(view)} == {"INVALID"}
    assert [one["id"] for one in listed["data"]] == [SERVICE]
    assert code == 0, printed
    assert [version["version"] for version in product.service()["versions"]] == [before["stable"]]
    assert users.tally.failures == []


def _judge_runs() -> bool:
    return any(f"{judge_service(SERVICE)}--v-" in line for line in processes())


def _quality(view: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates on what the judge scores."""
    return [one for one in view["gates"] if one["metric"] == "quality"]
