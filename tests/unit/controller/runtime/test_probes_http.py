"""Probes against a small HTTP server: what passes, what fails and with which message; each runs once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from controller.errors import NoRoom, Unreachable
from controller.rollout.actions import ProbeKind, RunProbe
from controller.rollout.observation import ProbeStatus
from controller.rollout.state import RolloutState
from controller.runtime import probes_http
from controller.runtime.probes_http import MAX_RUNS, HttpProbes, Target
from tests.fakes.rollouts import CANARY, a_rollout


class Engine(BaseHTTPRequestHandler):
    """OpenAI-compatible endpoint with the answers that a test sets."""

    text = "Paris."
    status = 200
    has_chat = True
    requests: ClassVar[list[tuple[str, dict[str, str], dict[str, object]]]] = []

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": "gpt-x"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).requests.append((self.path, dict(self.headers), body))
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
    handler = type("ThisEngine", (Engine,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    server.server_close()


def probes(engine: type[Engine], *, model: str = "chat", rate: float | None = None) -> HttpProbes:
    target = Target((engine.url,), {"x-canaryctl-secret": "s"}, model)  # type: ignore[attr-defined]
    return HttpProbes(
        target=lambda service, version: target,
        preflight=lambda rollout: None,
        rate_per_s=lambda service: rate,
    )


def result_of(
    probes: HttpProbes, kind: ProbeKind, *, warmup_tokens: int = 0, rollout: RolloutState | None = None
) -> ProbeStatus:
    probe = RunProbe(kind, CANARY, warmup_tokens)
    ends_at_s = time.monotonic() + 60
    while (status := probes.start_or_check(rollout or a_rollout(), probe)).phase == "running":
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    return status


@pytest.mark.slow
def test_answers_with_text_pass_the_smoke_test(engine: type[Engine]) -> None:
    assert result_of(probes(engine), ProbeKind.SMOKE).phase == "passed"


@pytest.mark.slow
def test_an_empty_answer_fails_the_smoke_test_with_a_hint(engine: type[Engine]) -> None:
    engine.text = "  "

    status = result_of(probes(engine), ProbeKind.SMOKE)

    assert (status.phase, "chat template" in status.detail) == ("failed", True)


CHOICE = {"index": 0, "message": {"content": "Paris."}, "finish_reason": "stop"}
WHOLE = json.dumps({"choices": [CHOICE]}).encode()
CUT = {**CHOICE, "message": {"content": ""}, "finish_reason": "length"}


def answers(engine: type[Engine], body: bytes, kind: str = "application/json", status: int = 200) -> None:
    def post(self: Engine) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body)

    engine.do_POST = post  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (WHOLE, "text/event-stream", 200),
        (WHOLE, "text/plain", 201),
        (json.dumps({"choices": [CUT]}).encode(), "application/json", 200),
    ],
)
def test_an_answer_passes_the_smoke_test_as_it_passes_a_router(
    engine: type[Engine], body: bytes, kind: str, status: int
) -> None:
    answers(engine, body, kind, status)

    assert result_of(probes(engine), ProbeKind.SMOKE).phase == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b'{"error": {"message": "overloaded"}}', 200, "error in the answer"),
        (b"<html>log in</html>", 200, "is it an OpenAI endpoint?"),
        (b"", 204, "is it an OpenAI endpoint?"),
        (b'{"choices": []}', 200, "chat template"),
    ],
)
def test_what_is_no_answer_to_a_router_fails_the_smoke_test(
    engine: type[Engine], body: bytes, status: int, why: str
) -> None:
    answers(engine, body, status=status)

    status_of = result_of(probes(engine), ProbeKind.SMOKE)

    assert (status_of.phase, why in status_of.detail) == ("failed", True)


@pytest.mark.slow
def test_events_that_nobody_asked_for_fail_the_smoke_test(engine: type[Engine]) -> None:
    events = b'data: {"choices":[{"delta":{"content":"Paris."},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    answers(engine, events, "text/event-stream")

    status = result_of(probes(engine), ProbeKind.SMOKE)

    assert (status.phase, "is a stream, though none was asked for" in status.detail) == ("failed", True)


@pytest.mark.slow
def test_an_error_fails_the_smoke_test_with_its_status(engine: type[Engine]) -> None:
    engine.status = 500

    status = result_of(probes(engine), ProbeKind.SMOKE)

    assert (status.phase, status.detail.startswith("status 500")) == ("failed", True)


@pytest.mark.slow
def test_a_model_without_a_chat_template_is_probed_by_completions(engine: type[Engine]) -> None:
    engine.has_chat = False

    assert result_of(probes(engine), ProbeKind.SMOKE).phase == "passed"


@pytest.mark.slow
def test_the_warm_up_generates_at_least_the_planned_tokens(engine: type[Engine]) -> None:
    result_of(probes(engine), ProbeKind.WARM, warmup_tokens=20)

    assert len(engine.requests) == 3


@pytest.mark.slow
def test_the_load_after_the_warm_up_has_the_rate_of_stable(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_http, "LOAD_S", 0.5)

    result_of(probes(engine, rate=16.0), ProbeKind.WARM)

    assert len(engine.requests) == 8


@pytest.mark.slow
def test_every_probe_request_carries_the_secret(engine: type[Engine]) -> None:
    result_of(probes(engine), ProbeKind.SMOKE)

    assert {headers.get("x-canaryctl-secret") for _, headers, _ in engine.requests} == {"s"}


@pytest.mark.slow
def test_a_probe_uses_the_model_name_that_routers_send(engine: type[Engine]) -> None:
    result_of(probes(engine, model="large"), ProbeKind.SMOKE)

    assert {body["model"] for _, _, body in engine.requests} == {"large"}


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", [ProbeKind.WARM, ProbeKind.SMOKE])
@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (404, "does not list chat: set model to one of gpt-x"),
        (401, "set api_key_env or api_key_file"),
        (403, "set api_key_env or api_key_file"),
        (400, "set model to one of gpt-x"),
    ],
)
def test_an_endpoint_that_refuses_every_request_fails_before_any_traffic_with_a_remedy(
    engine: type[Engine], kind: ProbeKind, status: int, hint: str
) -> None:
    engine.status = status

    found = result_of(probes(engine), kind, warmup_tokens=8)

    assert (found.phase, found.detail.startswith(f"status {status}")) == ("failed", True)
    assert hint in found.detail


@pytest.mark.slow
def test_a_failed_request_of_the_load_fails_the_warm_up_with_its_reason(
    engine: type[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_http, "LOAD_S", 0.5)
    engine.status = 500

    found = result_of(probes(engine, rate=16.0), ProbeKind.WARM)

    assert (found.phase, found.detail.startswith("status 500")) == ("failed", True)


def test_a_version_without_an_address_is_no_verdict_on_it() -> None:
    """A fleet that began anew knows no version for a while, and the canary was ready a moment ago."""
    without_address = HttpProbes(
        target=lambda service, version: None, preflight=lambda rollout: None, rate_per_s=lambda service: None
    )

    status = result_of(without_address, ProbeKind.SMOKE)

    assert (status.phase, "no address" in status.detail) == ("not_judged", True)


def silent_once(monkeypatch: pytest.MonkeyPatch, kind: ProbeKind) -> list[ProbeStatus]:
    """Both results of a probe that finds the fleet silent at first."""
    monkeypatch.setattr(probes_http, "BLINK_S", 0.0)
    asked = []

    def silent(*_: object) -> None:
        asked.append(kind)
        if len(asked) == 1:
            raise Unreachable("the fleet does not say where v-2 is; trying again")

    probes = HttpProbes(target=silent, preflight=silent, rate_per_s=lambda service: None)
    found = [result_of(probes, kind)]
    ends_at_s = time.monotonic() + 60
    while len(asked) < 2 and time.monotonic() < ends_at_s:
        probes.start_or_check(a_rollout(), RunProbe(kind, CANARY))
        time.sleep(0.01)
    while (status := probes.start_or_check(a_rollout(), RunProbe(kind, CANARY))) == found[0]:
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)
    return [*found, status]


@pytest.mark.parametrize("kind", list(ProbeKind))
def test_a_silence_when_a_probe_begins_is_no_verdict_and_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, kind: ProbeKind
) -> None:
    """250 ms without an answer of the fleet, the table or the store ended a rollout, and an undo."""
    first, second = silent_once(monkeypatch, kind)

    assert (first.phase, first.detail) == (
        "not_judged",
        "NOT JUDGED: the fleet does not say where v-2 is; trying again",
    )
    assert second.phase == ("passed" if kind is ProbeKind.PREFLIGHT else "not_judged")


def test_a_probe_whose_thread_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_http, "BLINK_S", 0.0)
    probes = HttpProbes(
        target=lambda service, version: None, preflight=lambda rollout: None, rate_per_s=lambda service: None
    )
    probe, start = RunProbe(ProbeKind.PREFLIGHT, CANARY), threading.Thread.start

    def has_none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", has_none)
        status = probes.start_or_check(a_rollout(), probe)
    assert threading.Thread.start is start
    assert (status.phase, "can't start new thread" in status.detail) == ("not_judged", True)

    ends_at_s = time.monotonic() + 60
    while probes.start_or_check(a_rollout(), probe).phase != "passed":
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)


def test_results_of_probes_long_ended_are_not_kept() -> None:
    probes = HttpProbes(
        target=lambda service, version: None, preflight=lambda rollout: None, rate_per_s=lambda service: None
    )
    for number in range(MAX_RUNS + 20):
        rollout = a_rollout(f"r-{number:08x}")
        assert result_of(probes, ProbeKind.PREFLIGHT, rollout=rollout).phase == "passed"

    assert len(probes._runs) <= MAX_RUNS + 1
    assert ("r-00000000", ProbeKind.PREFLIGHT) not in probes._runs


def test_a_preflight_without_room_fails_with_its_message() -> None:
    def full(rollout: RolloutState) -> None:
        raise NoRoom("needs 12 GiB of 3 GiB free")

    full_host = HttpProbes(
        target=lambda service, version: None, preflight=full, rate_per_s=lambda service: None
    )

    assert result_of(full_host, ProbeKind.PREFLIGHT) == ProbeStatus(
        ProbeKind.PREFLIGHT, "failed", "needs 12 GiB of 3 GiB free"
    )


@pytest.mark.slow
def test_a_probe_runs_once_per_rollout_however_often_it_is_started(engine: type[Engine]) -> None:
    runs = probes(engine)
    result_of(runs, ProbeKind.SMOKE)
    requests = len(engine.requests)

    result_of(runs, ProbeKind.SMOKE)
    result_of(runs, ProbeKind.SMOKE, rollout=replace(a_rollout(), id="r-00000002"))

    assert len(engine.requests) == 2 * requests
