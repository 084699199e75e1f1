"""The smoke test of a rollout that asks cases and a golden set: refused, passed, or without a verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.rollout.actions import ProbeKind, RunProbe
from controller.rollout.observation import ProbeStatus
from controller.rollout.plan import PreflightPlan
from controller.rollout.state import RolloutState
from controller.runtime import probes_http
from controller.runtime.golden_file import pinned, read_golden
from controller.runtime.probes_http import HttpProbes, Target
from serving.credentials import NoKey
from tests.fakes.chat_endpoint import (
    ChatEndpoint,
    Model,
    Reply,
    chat_endpoint,
    faulty,
    good,
    leaking,
    without_tools,
)
from tests.fakes.rollouts import CANARY, STABLE, a_rollout

PROBE = RunProbe(ProbeKind.SMOKE, CANARY)
GONE = "http://127.0.0.1:9"


@pytest.fixture
def stable() -> Iterator[ChatEndpoint]:
    with chat_endpoint(good) as served:
        yield served


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_http, "RETRY_S", 0.0)


def rollout(**fields: object) -> RolloutState:
    state = a_rollout()
    preflight = PreflightPlan(**fields)  # type: ignore[arg-type]
    return replace(state, plan=replace(state.plan, preflight=pinned(preflight)))


def probes(canary: str, stable: str | None) -> HttpProbes:
    def target(_service: str, version: str) -> Target | None:
        url = canary if version == CANARY else stable
        return Target((url,), {"x-canaryctl-secret": "s"}, "chat") if url is not None else None

    return HttpProbes(target=target, preflight=lambda rollout: None, rate_per_s=lambda service: None)


def ended(probes: HttpProbes, state: RolloutState) -> ProbeStatus:
    ends_at_s = time.monotonic() + 60
    while (status := probes.start_or_check(state, PROBE)).phase == "running":
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    return status


def smoked(model: Model, stable: str | None, **fields: object) -> ProbeStatus:
    with chat_endpoint(model) as canary:
        return ended(probes(canary.url, stable), rollout(**fields))


def golden_file(folder: Path, count: int = 8) -> str:
    line = {"messages": [{"role": "user", "content": "A private question?"}], "reference": "as you would"}
    file = folder / "golden.jsonl"
    file.write_text("\n".join([json.dumps(line)] * count))
    return str(file)


@pytest.mark.slow
def test_a_good_canary_passes_and_says_what_was_found(stable: ChatEndpoint, tmp_path: Path) -> None:
    status = smoked(faulty(without_tools), stable.url, golden=golden_file(tmp_path), smoke=False)
    assert status.phase == "passed"
    assert status.detail == ("golden: 8 of 8 right, stable 8; lost 0, won 0, p = 1 (refused at 0.01 or less)")
    status = smoked(good, stable.url)
    assert status.detail == "smoke: chat, long, json, tools, stop, safety, stream passed"
    assert {body["model"] for body in stable.seen} == {"chat"}


@pytest.mark.slow
def test_what_stable_passes_and_the_canary_does_not_is_refused(stable: ChatEndpoint) -> None:
    status = smoked(faulty(leaking), stable.url)
    assert status.phase == "failed"
    assert status.detail.startswith("refused: chat failed (chat-1: the special token <|im_end|> as text")
    assert smoked(faulty(without_tools), stable.url).phase == "failed"


@pytest.mark.slow
def test_a_required_kind_is_refused_though_stable_lacks_it() -> None:
    with chat_endpoint(faulty(without_tools)) as other:
        assert smoked(faulty(without_tools), other.url).phase == "passed"
        status = smoked(faulty(without_tools), other.url, require=("tools",))
    assert "tools is required and not checked (tools-auto: status 400" in status.detail


@pytest.mark.slow
def test_a_canary_that_loses_golden_cases_is_refused(stable: ChatEndpoint, tmp_path: Path) -> None:
    def forgets(body: dict[str, object], _reply: Reply) -> Reply | None:
        return Reply("I forgot.") if "private" in str(body["messages"]) else None

    status = smoked(faulty(forgets), stable.url, golden=golden_file(tmp_path))
    assert status.phase == "failed"
    assert "golden: 0 of 8 right, stable 8; lost 8, won 0, p = 0.0039" in status.detail
    assert "private" not in status.detail


@pytest.mark.slow
def test_a_stable_that_does_not_answer_is_waited_for_and_asked_again(tmp_path: Path) -> None:
    is_up = False

    def model(body: dict[str, object]) -> Reply:
        return good(body) if is_up else Reply(status=503)

    with chat_endpoint(model) as other, chat_endpoint(good) as canary:
        asked, state = probes(canary.url, other.url), rollout()
        status = ended(asked, state)
        assert (status.phase, status.detail) == (
            "not_judged",
            "NOT JUDGED: stable gave no answer to 19 of 19 cases: status 503",
        )
        is_up = True
        ends_at_s = time.monotonic() + 60
        while (status := asked.start_or_check(state, PROBE)).phase != "passed":
            assert status.phase == "not_judged", "it is not 'running' again: its phase would lose its hold"
            assert time.monotonic() < ends_at_s
            time.sleep(0.01)


@pytest.mark.slow
def test_a_stable_without_address_or_key_gives_no_verdict() -> None:
    assert smoked(good, None).detail == (
        "NOT JUDGED: stable has no address to compare with; see its engine's log"
    )

    def target(_service: str, version: str) -> Target:
        if version == STABLE:
            raise NoKey("api_key_env X is not set; export it")
        return Target((canary.url,), {}, "chat")

    with chat_endpoint(good) as canary:
        asked = HttpProbes(target=target, preflight=lambda _: None, rate_per_s=lambda _: None)
        status = ended(asked, rollout())
    assert (status.phase, status.detail) == (
        "not_judged",
        "NOT JUDGED: stable cannot be asked: api_key_env X is not set; export it",
    )


def test_a_canary_that_refuses_connections_fails(stable: ChatEndpoint) -> None:
    assert ended(probes(GONE, stable.url), rollout()).phase == "failed"


@pytest.mark.slow
def test_what_takes_too_long_gives_no_verdict(stable: ChatEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_http, "SPARE_S", 120.0)

    def slow(body: dict[str, object]) -> Reply:
        if body["max_tokens"] != 32:  # of the plain smoke test
            time.sleep(1.5)
        return good(body)

    with chat_endpoint(slow) as canary:
        status = ended(probes(canary.url, stable.url), rollout())
    assert status.phase == "not_judged"
    assert "not all was asked within 1 s; raise smoke_timeout of the policy" in status.detail


@pytest.mark.slow
def test_a_golden_set_that_changed_since_the_plan_is_not_judged(stable: ChatEndpoint, tmp_path: Path) -> None:
    file = golden_file(tmp_path)
    state = rollout(golden=file)
    golden_file(tmp_path, 9)
    with chat_endpoint(good) as canary:
        status = ended(probes(canary.url, stable.url), state)
        assert status.phase == "not_judged"
        assert f"golden set {file} has changed since the plan (sha256 " in status.detail
        Path(file).unlink()
        status = ended(probes(canary.url, stable.url), state)
    assert "No such file or directory; name a file that the controller may read" in status.detail


def test_a_golden_set_is_a_whole_path_of_a_regular_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="is not absolute"):
        read_golden("golden.jsonl")
    with pytest.raises(BadInput, match="is not a regular file"):
        read_golden(str(tmp_path))
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="is in canaryctl's state folder"):
        read_golden(golden_file(tmp_path))


def test_tries_without_a_verdict_come_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A golden set of thousands of cases is not asked every 15 s for days."""
    monkeypatch.setattr(probes_http, "RETRY_S", 15.0)
    pauses_s = [probes_http._Run("not_judged", tries=tries).pause_s for tries in (1, 2, 3, 20, 5000)]
    assert pauses_s == [15.0, 30.0, 60.0, 1800.0, 1800.0]


@pytest.mark.slow
def test_a_canary_that_is_gone_while_stable_is_waited_for_is_not_judged_either() -> None:
    """It had answered once: a moment without an answer ended a rollout that was held for stable."""
    is_up = True

    def model(body: dict[str, object]) -> Reply:
        return good(body) if is_up else Reply(status=503)

    with chat_endpoint(model) as canary:
        asked, state = probes(canary.url, None), rollout()
        assert ended(asked, state).phase == "not_judged"
        is_up = False
        for _ in range(20):
            assert asked.start_or_check(state, PROBE).phase == "not_judged"
            time.sleep(0.01)
