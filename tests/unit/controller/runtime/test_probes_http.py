"""Probes against a small HTTP server: what passes, what fails and with which words; each runs once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from controller.errors import NoRoom
from controller.rollout.actions import ProbeKind, RunProbe
from controller.rollout.observation import ProbeStatus
from controller.rollout.state import RolloutState
from controller.runtime import probes_http
from controller.runtime.probes_http import HttpProbes, Target
from tests.fakes.rollouts import CANARY, a_rollout


class Engine(BaseHTTPRequestHandler):
    """An OpenAI-like endpoint whose answers the test chooses."""

    text = "Paris."
    status = 200
    has_chat = True
    seen: ClassVar[list[tuple[str, dict[str, str], dict[str, object]]]] = []

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "gpt-x"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).seen.append((self.path, dict(self.headers), body))
        if self.path.endswith("chat/completions") and not self.has_chat:
            self._answer(400, {"error": "no chat template"})
        elif self.path.endswith("chat/completions"):
            self._answer(
                self.status,
                {"choices": [{"message": {"content": self.text}}], "usage": {"completion_tokens": 8}},
            )
        else:
            self._answer(self.status, {"choices": [{"text": self.text}], "usage": {"completion_tokens": 8}})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[type[Engine]]:
    handler = type("ThisEngine", (Engine,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


def probes(engine: type[Engine], *, model: str | None = "chat", rate: float | None = None) -> HttpProbes:
    target = Target((engine.url,), {"x-canaryctl-secret": "s"}, model)  # type: ignore[attr-defined]
    return HttpProbes(
        target=lambda service, version: target,
        preflight=lambda rollout: None,
        rate_per_s=lambda service: rate,
    )


def end_of(
    one: HttpProbes, kind: ProbeKind, *, warmup_tokens: int = 0, rollout: RolloutState | None = None
) -> ProbeStatus:
    probe = RunProbe(kind, CANARY, warmup_tokens)
    ends_at_s = time.monotonic() + 10
    while (sight := one.start_or_check(rollout or a_rollout(), probe)).phase == "running":
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    return sight


def test_answers_with_text_pass_the_smoke(engine: type[Engine]) -> None:
    assert end_of(probes(engine), ProbeKind.SMOKE).phase == "passed"


def test_an_empty_answer_fails_the_smoke_with_a_hint(engine: type[Engine]) -> None:
    engine.text = "  "

    sight = end_of(probes(engine), ProbeKind.SMOKE)

    assert (sight.phase, "chat template" in sight.detail) == ("failed", True)


def test_an_error_fails_the_smoke_with_its_status(engine: type[Engine]) -> None:
    engine.status = 500

    sight = end_of(probes(engine), ProbeKind.SMOKE)

    assert (sight.phase, sight.detail.startswith("status 500")) == ("failed", True)


def test_a_checkpoint_without_a_chat_template_is_asked_for_completions(engine: type[Engine]) -> None:
    engine.has_chat = False

    assert end_of(probes(engine), ProbeKind.SMOKE).phase == "passed"


def test_the_warm_up_makes_at_least_the_tokens_of_the_plan(engine: type[Engine]) -> None:
    end_of(probes(engine), ProbeKind.WARM, warmup_tokens=20)

    assert len(engine.seen) == 3


def test_the_load_after_the_warm_up_has_stables_rate(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_http, "LOAD_S", 0.5)

    end_of(probes(engine, rate=16.0), ProbeKind.WARM)

    assert len(engine.seen) == 8


def test_every_request_of_a_probe_carries_the_secret(engine: type[Engine]) -> None:
    end_of(probes(engine), ProbeKind.SMOKE)

    assert {headers.get("x-canaryctl-secret") for _, headers, _ in engine.seen} == {"s"}


def test_an_endpoint_is_asked_for_its_own_model_name(engine: type[Engine]) -> None:
    end_of(probes(engine, model=None), ProbeKind.SMOKE)

    assert {body["model"] for _, _, body in engine.seen} == {"gpt-x"}


def test_a_version_without_an_address_fails_and_says_so() -> None:
    nowhere = HttpProbes(
        target=lambda service, version: None, preflight=lambda rollout: None, rate_per_s=lambda service: None
    )

    sight = end_of(nowhere, ProbeKind.SMOKE)

    assert (sight.phase, "no address" in sight.detail) == ("failed", True)


def test_a_preflight_that_finds_no_room_fails_with_its_line() -> None:
    def full(rollout: RolloutState) -> None:
        raise NoRoom("needs 12 GiB of 3 GiB free")

    one = HttpProbes(target=lambda service, version: None, preflight=full, rate_per_s=lambda service: None)

    assert end_of(one, ProbeKind.PREFLIGHT) == ProbeStatus(
        ProbeKind.PREFLIGHT, "failed", "needs 12 GiB of 3 GiB free"
    )


def test_a_probe_runs_once_a_rollout_however_often_it_is_asked_for(engine: type[Engine]) -> None:
    one = probes(engine)
    end_of(one, ProbeKind.SMOKE)
    asked = len(engine.seen)

    end_of(one, ProbeKind.SMOKE)
    end_of(one, ProbeKind.SMOKE, rollout=replace(a_rollout(), id="r-00000002"))

    assert len(engine.seen) == 2 * asked
