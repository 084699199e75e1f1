"""A canary that refuses connections, or answers 404 to all, is rolled back while users see nothing.

The whole product on real Ray Serve; stable and canary are endpoints, the fake engines of the fault matrix.
The canary becomes faulty when its first stage has begun. The client checks every byte of every answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.soak import on_fakes, on_processes
from tests.integration.product import POLICY, SERVICE, Product, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def product() -> Iterator[Product]:
    with on_processes.installed() as one:
        yield one


@pytest.mark.parametrize(("fault", "rate"), [("connection refused", 0.3), ("status 404", 1.0)])
def test_a_faulty_canary_is_rolled_back_and_no_user_sees_it(
    product: Product, fault: str, rate: float
) -> None:
    canary = on_processes.Endpoint.start("canary")
    try:
        with on_processes.users(product) as tally:
            code, printed = product.run(
                *("deploy", SERVICE, "--url", canary.url, "--policy", str(POLICY)),
                *("--allow-unjudged", "nobody scores the answers of this test"),
                *("--allow-unproven", "it is to be rolled back"),
            )
            assert code == 0, printed
            until(lambda: product.rollout().get("phase") == "stage", what="the first stage")
            until(lambda: tally.whose["canary"] > 20, what="answers of the canary")
            canary.fail(fault, rate)
            until(lambda: product.rollout().get("is_final") is True, what="the rollback")
    finally:
        on_fakes.stop(canary.process)
    view = product.rollout()

    assert view["phase"] == "rolled_back", view["log"][-5:]
    assert tally.failures == []
