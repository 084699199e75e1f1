"""Probes of a hostile or broken endpoint: bounded in time and memory, with a reason that can be stored."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from controller.rollout.actions import ProbeKind, RunProbe
from controller.rollout.observation import ProbeStatus
from controller.rollout.state import RolloutState
from controller.runtime import probes_http
from controller.runtime.probes_http import HttpProbes, Target
from tests.fakes.rollouts import CANARY, a_rollout
from tests.unit.controller.runtime.test_probes_http import Engine
from tests.unit.controller.runtime.test_probes_http import engine as engine

KEY = "sk-our-paid-key-0123"


def result_of(engine: type[Engine], rollout: RolloutState | None = None, key: str = KEY) -> ProbeStatus:
    target = Target((engine.url,), {"authorization": f"Bearer {key}"}, "m")  # type: ignore[attr-defined]
    probes = HttpProbes(
        target=lambda service, version: target, preflight=lambda one: None, rate_per_s=lambda service: None
    )
    rollout = rollout or a_rollout()
    ends_at_s = time.monotonic() + 60
    while (status := probes.start_or_check(rollout, RunProbe(ProbeKind.SMOKE, CANARY))).phase == "running":
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    name = f"smoke of {rollout.id}"
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    return status


def _endless_post(pause_s: float, status: int = 200) -> Callable[[Engine], None]:
    def post(self: Engine) -> None:
        self.send_response(status)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " * (1 if pause_s else 65536))
                time.sleep(pause_s)

    return post


def _post(status: int, body: bytes, encoding: str | None = None) -> Callable[[Engine], None]:
    def post(self: Engine) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        if encoding is not None:
            self.send_header("content-encoding", encoding)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    return post


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_fails_at_a_limit(engine: type[Engine], status: int) -> None:
    engine.do_POST = _endless_post(0.0, status)  # type: ignore[assignment]

    found = result_of(engine)

    assert (found.phase, "more than 1048576 bytes" in found.detail) == ("failed", True)


@pytest.mark.slow
def test_an_answer_that_trickles_fails_at_a_total_deadline(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_http, "REQUEST_TIMEOUT_S", 0.3)
    engine.do_POST = _endless_post(0.05)  # type: ignore[assignment]

    found = result_of(engine)

    assert (found.phase, "no whole answer within 0.3 s" in found.detail) == ("failed", True)


@pytest.mark.slow
def test_a_probe_ends_with_its_phase(engine: type[Engine]) -> None:
    engine.do_POST = _endless_post(0.05)  # type: ignore[assignment]
    rollout = a_rollout()

    found = result_of(engine, replace(rollout, plan=replace(rollout.plan, smoke_s=0.3)))

    assert (found.phase, found.detail.startswith("not done within 0.3 s")) == ("failed", True)


@pytest.mark.slow
def test_a_compressed_answer_is_not_unpacked(engine: type[Engine]) -> None:
    engine.do_POST = _post(200, gzip.compress(b" " * (64 << 20)), "gzip")  # type: ignore[assignment]

    found = result_of(engine)

    assert (found.phase, "compressed" in found.detail) == ("failed", True)


@pytest.mark.slow
@pytest.mark.parametrize("pad", range(150, 200, 7))
def test_a_reason_never_holds_the_key_or_a_part_of_it(engine: type[Engine], pad: int) -> None:
    body = json.dumps({"error": "x" * pad + KEY}).encode()
    engine.do_POST = _post(401, body)  # type: ignore[assignment]

    found = result_of(engine)

    assert (found.phase, "sk-our" in found.detail) == ("failed", False)
    assert found.detail.startswith("status 401: ")


@pytest.mark.slow
def test_a_reason_can_be_stored_whatever_the_endpoint_answers(engine: type[Engine]) -> None:
    engine.do_POST = _post(404, b"no\0 such\x1b[2J thing\n\nhere")  # type: ignore[assignment]
    names = [{"id": "a\ud800b\0"}, {"id": "y" * 5000}]
    engine.do_GET = _post(200, json.dumps({"data": names}).encode())  # type: ignore[assignment]

    found = result_of(engine)

    assert (found.phase, found.detail.isprintable(), len(found.detail) <= 300) == ("failed", True, True)
    assert "a\ufffdb\ufffd" in found.detail
    found.detail.encode()
