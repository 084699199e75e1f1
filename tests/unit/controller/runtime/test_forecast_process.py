"""Forecasts in a process of their own: the real one, and ones that fail, hang or are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controller.planning.forecast import NotSimulated
from controller.rollout.plan import Plan, Stage
from controller.runtime.forecast_process import MOST_WAITING, Simulator
from controller.spec.service import PolicySpec, parse_policy
from controller.views.models import ForecastView
from evaluation.forecast.simulation import TrafficModel
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

pytestmark = pytest.mark.integration  # real processes, and real waits for those that hang

POLICY = parse_policy({"gates": dict.fromkeys(("error", "latency_p99", "latency_shape", "ttft_shape",
                                               "hallucination"))})  # fmt: skip
PLAN = Plan("medium", (), (Stage(1000, 0.0, 150, 900.0, 1),), 500, 7200.0)
TRAFFIC = TrafficModel(5.0)


def fails(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[ForecastView, ...]:
    raise ValueError("no such gate\nand a second line")


def is_killed(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[ForecastView, ...]:
    os.kill(os.getpid(), signal.SIGKILL)
    return ()


def hangs(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[ForecastView, ...]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    return ()


def why(simulator: Simulator) -> str:
    with pytest.raises(NotSimulated) as caught:
        simulator.forecast(PLAN, POLICY, TRAFFIC)
    return str(caught.value)


def test_a_forecast_is_made_in_another_process() -> None:
    [stage] = Simulator().forecast(PLAN, POLICY, TRAFFIC)

    assert stage.seconds_median is not None
    assert 300 <= stage.seconds_median < 900


def test_a_process_that_fails_gives_one_line() -> None:
    assert why(Simulator(fails)) == (
        "the simulation failed: ValueError: no such gate; the rollout does not need it"
    )


def test_a_process_that_is_killed_gives_one_line() -> None:
    assert why(Simulator(is_killed)) == (
        "the simulation ended with exit code -9; the controller's log says why"
    )


def test_a_process_that_hangs_is_ended_and_gives_one_line() -> None:
    assert why(Simulator(hangs, limit_s=2.0)) == (
        "the simulation took longer than 2 s; ask again when the host is less busy"
    )
    assert [one for one in multiprocessing.active_children() if one.name == "forecast"] == []


def test_only_so_many_wait_for_their_turn() -> None:
    simulator = Simulator(hangs, limit_s=2.0)
    said: list[str] = []
    waiting = [threading.Thread(target=lambda: said.append(why(simulator))) for _ in range(1 + MOST_WAITING)]
    for one in waiting:
        one.start()
    while simulator._places._value:
        time.sleep(0.01)

    started_s = time.monotonic()
    refused = why(simulator)

    assert refused == "4 forecasts are being made already; ask again later, or with --quick"
    assert time.monotonic() - started_s < 1.0
    for one in waiting:
        one.join()
    assert len(said) == 1 + MOST_WAITING
    assert {text.split(";")[0] for text in said} == {"the simulation took longer than 2 s"}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[FakeController, httpx.Client, Path]]:
    """A controller that ticks and listens on a port, serving `chat`; a second checkpoint."""
    controller = FakeController(tmp_path)
    settings = controller.serve()
    token = (tmp_path / "admin.token").read_text().strip()
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=settings.api_url, headers=headers, timeout=60.0) as api:
        stable = write_checkpoint(tmp_path / "stable", seed=1)
        assert api.put("/v1/services/chat", json={"model": str(stable)}).status_code == 200
        yield controller, api, write_checkpoint(tmp_path / "twin", seed=2)
    controller.stop()


def asked(model: Path) -> dict[str, object]:
    return {
        "version": {"model": str(model)},
        "policy": {"gates": {"hallucination": None}, "stages": [{"weight": "10%", "min_canary": 150}]},
        "rate": 5,
    }


def test_a_live_controller_forecasts_in_a_real_process(
    live: tuple[FakeController, httpx.Client, Path],
) -> None:
    controller, api, model = live
    controller.world.simulate = Simulator().forecast

    view = api.post("/v1/services/chat/plan", json=asked(model)).json()

    assert view["forecast"][0]["runs"] >= 10
    assert view["forecast_note"] is None


def test_a_forecast_that_hangs_blocks_neither_ticks_nor_api(
    live: tuple[FakeController, httpx.Client, Path],
) -> None:
    controller, api, model = live
    controller.world.simulate = Simulator(hangs, limit_s=2.0).forecast
    answers: list[httpx.Response] = []
    plan = threading.Thread(
        target=lambda: answers.append(api.post("/v1/services/chat/plan", json=asked(model)))
    )
    plan.start()
    while not controller.world.forecasts:
        time.sleep(0.01)

    seen = controller.runner.sight("chat").at_s
    took_s = []
    while plan.is_alive():
        began_s = time.monotonic()
        assert httpx.get(f"{api.base_url}/healthz", timeout=30.0).status_code == 200
        took_s.append(time.monotonic() - began_s)
        time.sleep(0.2)

    assert controller.runner.sight("chat").at_s - seen > 0.5
    assert max(took_s) < 2.0
    assert answers[0].json()["forecast_note"] == (
        "the simulation took longer than 2 s; ask again when the host is less busy"
    )
