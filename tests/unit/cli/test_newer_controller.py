"""An older command line on a newer controller: what it does not know is ignored, or shown as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from controller.cli.http import Answer as HttpAnswer
from controller.cli.main import run
from controller.rollout.observation import EvidenceStatus
from controller.views.models import ServiceView
from controller.views.rollout import rollout_view, service_view
from evaluation.report import Verdict
from tests.fakes.json_server import Answer, json_server
from tests.fakes.view_maker import GATE, in_stage

HEALTH = {"status": "ok", "pid": 1, "leading": True, "version": "9.0"}


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], None]]:
    """Serve these answers, by path, as a controller does."""
    with ExitStack() as servers:

        def serve(answer: Answer) -> None:
            server = servers.enter_context(
                json_server(lambda path: HEALTH if path == "/healthz" else answer(path))
            )
            monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
            monkeypatch.setenv("CANARYCTL_API_PORT", str(server.port))

        yield serve


def a_service() -> dict[str, object]:
    """The answer of today's controller: a rollout in its first stage, with a gate."""
    status = EvidenceStatus(0, Verdict.UNDECIDED, gates=(GATE,))
    rollout = rollout_view(in_stage(), status, now_s=130.0)
    view = service_view("chat", url="http://x/v1", stable="v-old", split=None, versions=(), rollout=rollout)
    answer: dict[str, object] = json.loads(view.model_dump_json())
    return answer


def with_more(value: object) -> object:
    """The same document with a field more in every object."""
    if isinstance(value, dict):
        return {**{key: with_more(inner) for key, inner in value.items()}, "added_later": {"by": "a release"}}
    return [with_more(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "list", "history"])
def test_fields_of_a_newer_controller_are_ignored(
    controller: Callable[[Answer], None], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    service = with_more(a_service())
    assert isinstance(service, dict)
    answers = {"/v1/services": [service], "/v1/services/chat": service}
    controller(lambda path: answers.get(path, [service["rollout"]]))

    assert run([command, *(["chat"] if command != "list" else [])]) == 0
    assert "v-new" in capsys.readouterr().out


@pytest.mark.slow
def test_a_phase_and_a_verdict_of_a_newer_controller_are_shown_as_they_are(
    controller: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    service = ServiceView.model_validate(a_service())
    assert service.rollout is not None
    gate = service.rollout.gates[0].model_copy(update={"verdict": "NOT_JUDGED"})
    stage = service.rollout.stages[0].model_copy(update={"status": "skipped"})
    update = {"phase": "rehearsing", "stage": None, "gates": (gate,), "stages": (stage,)}
    newer = service.model_copy(update={"rollout": service.rollout.model_copy(update=update)})
    controller(lambda path: json.loads(newer.model_dump_json()))

    assert run(["status", "chat"]) == 0
    out = capsys.readouterr().out
    assert ("rehearsing" in out, "NOT_JUDGED" in out) == (True, True)


@pytest.mark.slow
def test_a_view_of_another_version_is_refused_with_the_remedy(
    controller: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    controller(lambda path: {**a_service(), "view": 2})

    assert run(["status", "chat"]) == 4
    assert "(canaryctl 9.0) answers in a form that canaryctl" in capsys.readouterr().err


def test_a_route_that_an_older_controller_lacks_is_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was `error: Not Found`."""
    problem = {"type": "urn:canaryctl:http", "lines": ["Not Found"], "exit_code": 2}

    def answer(method: str, url: str, **_: object) -> HttpAnswer:
        if url.endswith("/healthz"):
            return HttpAnswer(200, json.dumps(HEALTH | {"version": "0.0.1", "pid": 42}).encode())
        return HttpAnswer(404, json.dumps(problem).encode())

    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    monkeypatch.setattr("controller.cli.client.send", answer)
    monkeypatch.setattr("controller.cli.client.require_own_listener", lambda url, home: None)

    assert run(["ab", "status", "chat"]) == 4
    err = capsys.readouterr().err
    assert "(canaryctl 0.0.1) does not know what canaryctl " in err
    assert err.endswith("end it (kill 42), then start it with this release: canaryctl up\n")
