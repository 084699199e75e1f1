"""An A/B test end to end: real Ray Serve and vLLM, OpenAI clients, scores, a killed controller.

A is the checkpoint that answers wrongly 14 % of the time, B the one that does 3 %: B is better, and no gate
rolls it back before that is shown (the demo's policy: engines that share two cores differ in latency).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import checkpoints
from tests.integration.product import POLICY, SERVICE, Product, installed, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def trained() -> Path:
    checkpoints.ensure()
    return checkpoints.default_dir()


@pytest.fixture(scope="module")
def product(trained: Path) -> Iterator[Product]:
    with installed(trained / "wrong") as product:
        yield product


def view(product: Product) -> dict[str, Any]:
    code, printed = product.run("ab", "status", SERVICE, "-o", "json")
    assert code == 0, printed
    shown: dict[str, Any] = json.loads(printed)
    return shown


def test_a_better_b_is_found_although_the_controller_is_killed_and_no_request_fails(
    product: Product, trained: Path
) -> None:
    a = product.service()["stable"]
    better = ["--model", str(trained / "stable")]
    with product.users() as users:
        never = product.run("ab", "stop")
        same = product.run("ab", "create", "--model", str(trained / "wrong"))
        code, printed = product.run("ab", "create", *better, "--policy", str(POLICY), "-o", "json")
        assert code == 0, printed
        created = json.loads(printed)
        refused = [product.run("ab", "create", *better), product.run("deploy", "--service", SERVICE, *better)]
        until(lambda: view(product)["n_a"] >= 10, what="ten scored answers of A")
        before = view(product)

        os.kill(product.controller_pid(), signal.SIGKILL)
        unreachable = product.run("ab", "status", SERVICE)
        code, printed = product.run("up")
        assert code == 0, printed
        until(lambda: view(product)["verdict"] != "no difference shown", what="a verdict")
        code, table = product.run("ab", "status")
        assert code == 0, table
        stopped = [product.run("ab", "stop") for _ in range(2)]
        until(lambda: product.rollout()["is_final"], what="the end of B")

    after = view(product)
    assert (created["phase"], created["version_a"], before["phase"]) == ("loading", a, "running")
    assert (after["verdict"], after["phase"], after["why"]) == (
        "b better",
        "ended",
        f"A/B test {created['id']} stopped",
    )
    assert (after["n_a"] >= before["n_a"], after["mean_b"] > after["mean_a"]) == (True, True)
    assert table.startswith("B IS BETTER"), table
    assert [code for code, _ in (never, same, *refused, unreachable, *stopped)] == [2, 3, 3, 3, 4, 0, 0]
    lines = [printed.strip() for _, printed in (never, same, *refused, unreachable, *stopped)]
    assert [line for line in lines if len(line.splitlines()) != 1] == []
    assert "has ended already" in lines[-1]
    assert [one["version"] for one in product.service()["versions"]] == [a]
    assert users.tally.failures == []
    assert min(users.tally.answered.values()) > 10


def test_b_can_be_deployed_after_its_test(product: Product, trained: Path) -> None:
    code, printed = product.run(
        *("deploy", "--service", SERVICE, "--model", str(trained / "stable"), "--policy", str(POLICY)),
        *("--allow-unproven", "a slow machine serves too few requests to prove anything"),
    )
    assert code == 0, printed
    assert product.run("rollback", "--service", SERVICE, "--wait")[0] == 0
