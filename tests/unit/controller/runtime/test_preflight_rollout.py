"""A whole rollout with a preflight: asked over HTTP, then refused and unloaded, or let on to its stages."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from controller.rollout.actions import SetSplit
from controller.rollout.plan import PreflightPlan
from controller.rollout.state import CauseKind, Phase, RolloutState
from controller.runtime.probes_http import HttpProbes, Target
from controller.runtime.reconciler import Ports, Reconciler
from tests.fakes.chat_endpoint import Model, chat_endpoint, faulty, good, leaking
from tests.fakes.plane import FakeClock, FakeEvidence, FakeFleet, FakeNotifier, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE, a_rollout
from tests.fakes.store_memory import MemoryStore

pytestmark = pytest.mark.slow


def rolled(canary_url: str, stable_url: str) -> tuple[RolloutState, FakeFleet, FakeTraffic]:
    """The rollout at its end, or in its first stage."""
    clock, store = FakeClock(), MemoryStore()
    fleet, traffic = FakeFleet(clock), FakeTraffic(clock)
    fleet.ensure("chat", STABLE, 1, token=1)
    clock.advance(60.0)
    traffic.set_split("chat", "", SetSplit(STABLE, None, 0, 0), token=1)
    state = a_rollout(now_s=clock.at_s)
    state = replace(state, plan=replace(state.plan, preflight=PreflightPlan(), steady_s=0.0))
    store.create_rollout(state, request="{}", at_s=clock.at_s)
    urls = {CANARY: canary_url, STABLE: stable_url}
    probes = HttpProbes(
        target=lambda _service, version: Target((urls[version],), {}, "chat"),
        preflight=lambda _rollout: None,
        rate_per_s=lambda _service: None,
    )
    reconciler = Reconciler(Ports(store, fleet, traffic, FakeEvidence(), probes, FakeNotifier(), clock))
    for _ in range(5000):
        performed = reconciler.perform("r-00000001", token=1)
        assert performed is not None
        state = reconciler.decide(performed, reconciler.read("chat")).state
        if state.is_final or state.phase is Phase.STAGE:
            break
        clock.advance(0.02)  # 5000 ticks are less than a smoke test may take
        time.sleep(0.002)  # for the probes' threads, which have a clock of their own
    return state, fleet, traffic


def outcome(canary: Model, stable: Model) -> tuple[RolloutState, FakeFleet, FakeTraffic]:
    with chat_endpoint(canary) as new, chat_endpoint(stable) as old:
        return rolled(new.url, old.url)


def test_a_canary_with_a_fault_of_its_own_is_rolled_back_and_unloaded_before_any_user() -> None:
    state, fleet, traffic = outcome(faulty(leaking), good)

    assert (state.phase, state.exposed, traffic.weights) == (Phase.ROLLED_BACK, False, [0])
    assert state.cause is not None
    assert state.cause.kind is CauseKind.PROBE
    assert "chat-1: the special token <|im_end|> as text" in state.cause.text
    assert [version for _, version in fleet.engines] == [STABLE]


def test_a_canary_whose_fault_stable_shares_goes_on_to_its_first_stage() -> None:
    state, _, traffic = outcome(faulty(leaking), faulty(leaking))

    assert (state.phase, traffic.weights[-1]) == (Phase.STAGE, 0)
    assert any("smoke test passed: smoke: " in line.text for line in state.log)
