"""Forecasts in a child process: the real one, and ones that fail, hang or are killed."""

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
from controller.runtime.forecast_process import MAX_WAITING, Simulator
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

pytestmark = pytest.mark.integration  # real processes, and real waits for those that hang

POLICY = parse_policy({"gates": dict.fromkeys(("error", "latency_p99", "latency_shape", "ttft_shape",
                                               "hallucination"))})  # fmt: skip
PLAN = Plan("medium", (), (Stage(1000, 0.0, 150, 900.0, 1),), 500, 7200.0)
TRAFFIC = TrafficModel(5.0)


def fails(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[StageForecast, ...]:
    raise ValueError("no such gate\nand a second line")


def is_killed(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[StageForecast, ...]:
    os.kill(os.getpid(), signal.SIGKILL)
    return ()


def hangs(plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> tuple[StageForecast, ...]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    return ()


def why(simulator: Simulator) -> str:
    with pytest.raises(NotSimulated) as caught:
        simulator.forecast(PLAN, POLICY, TRAFFIC)
    return str(caught.value)


def test_a_forecast_runs_in_another_process() -> None:
    [stage] = Simulator().forecast(PLAN, POLICY, TRAFFIC)

    assert stage.seconds_median is not None
    assert 300 <= stage.seconds_median < 900


def test_a_failed_process_raises_one_line() -> None:
    assert why(Simulator(fails)) == (
        "the simulation failed: ValueError: no such gate; the rollout does not need it"
    )


def test_a_killed_process_raises_one_line() -> None:
    assert why(Simulator(is_killed)) == ("the simulation ended with exit code -9; see the controller's log")


def test_a_hanging_process_is_killed_and_raises_one_line() -> None:
    assert why(Simulator(hangs, limit_s=2.0)) == (
        "the simulation took longer than 2 s; try again when the host is less busy, or leave it out: --quick"
    )
    assert [one for one in multiprocessing.active_children() if one.name == "forecast"] == []


def test_the_number_of_waiting_forecasts_is_limited() -> None:
    simulator = Simulator(hangs, limit_s=2.0)
    messages: list[str] = []
    waiting = [
        threading.Thread(target=lambda: messages.append(why(simulator))) for _ in range(1 + MAX_WAITING)
    ]
    for one in waiting:
        one.start()
    while simulator._slots._value:
        time.sleep(0.01)

    started_s = time.monotonic()
    refused = why(simulator)

    assert refused == "4 forecasts are running already; try again later, or use --quick"
    assert time.monotonic() - started_s < 1.0
    for one in waiting:
        one.join()
    assert len(messages) == 1 + MAX_WAITING
    assert {text.split(";")[0] for text in messages} == {"the simulation took longer than 2 s"}


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


def plan_request(model: Path) -> dict[str, object]:
    return {
        "version": {"model": str(model)},
        "policy": {
            "gates": {"hallucination": None},
            "stages": [{"weight": "10%", "min_canary": 150, "deadline": "2h"}],
        },
        "rate": 20,
    }


def test_a_running_controller_forecasts_in_a_real_process(
    live: tuple[FakeController, httpx.Client, Path],
) -> None:
    controller, api, model = live
    controller.environment.simulate = Simulator().forecast

    view = api.post("/v1/services/chat/plan", json=plan_request(model)).json()

    assert view["forecast"][0]["runs"] >= 10
    assert view["forecast_note"] is None


def test_a_forecast_that_hangs_blocks_neither_ticks_nor_api(
    live: tuple[FakeController, httpx.Client, Path],
) -> None:
    controller, api, model = live
    controller.environment.simulate = Simulator(hangs, limit_s=2.0).forecast
    answers: list[httpx.Response] = []
    plan = threading.Thread(
        target=lambda: answers.append(api.post("/v1/services/chat/plan", json=plan_request(model)))
    )
    plan.start()
    while not controller.environment.forecasts:
        time.sleep(0.01)

    seen = controller.runner.last_tick("chat").at_s
    took_s = []
    while plan.is_alive():
        began_s = time.monotonic()
        assert httpx.get(f"{api.base_url}/healthz", timeout=30.0).status_code == 200
        took_s.append(time.monotonic() - began_s)
        time.sleep(0.2)

    assert controller.runner.last_tick("chat").at_s - seen > 0.5
    assert max(took_s) < 2.0
    assert answers[0].json()["forecast_note"] == (
        "the simulation took longer than 2 s; try again when the host is less busy, or leave it out: --quick"
    )
