"""The API over ASGI: tokens, problem details, views, events, feedback and its limits."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from controller.auth import Identity, Role, token_digest
from controller.cli.render import history_list
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from controller.planning.forecast import NotSimulated
from controller.rollout.plan import VersionRef
from controller.rollout.state import Cause, CauseKind, Phase
from controller.views.models import RolloutView
from evaluation.forecast.stages import StageForecast
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

LONG = {"stages": [{"weight": "10%", "duration": "1h"}]}


@pytest.fixture
async def model(tmp_path: Path, api: httpx.AsyncClient) -> Path:
    """A second checkpoint; the service `chat` serves the first."""
    stable = write_checkpoint(tmp_path / "stable", seed=1)
    answer = await api.put("/v1/services/chat", json={"model": str(stable)})
    assert answer.status_code == 200
    return write_checkpoint(tmp_path / "twin", seed=2)


def of_role(controller: FakeController, role: Role) -> dict[str, str]:
    token = f"token-{role.value}"
    controller.store.put_token(token_digest(token), Identity(role.value, role), at_s=1.0)
    return {"authorization": f"Bearer {token}"}


@pytest.mark.slow
async def test_health_needs_no_token_and_shows_only_liveness(api: httpx.AsyncClient) -> None:
    answer = await api.get("/healthz", headers={"authorization": ""})

    assert (answer.status_code, set(answer.json())) == (
        200,
        {"status", "pid", "leading", "version", "lost_database"},
    )


async def test_a_head_asks_for_health_as_a_get_does(api: httpx.AsyncClient) -> None:
    answer = await api.head("/healthz", headers={"authorization": ""})

    assert answer.status_code == 200


@pytest.mark.parametrize("value", ["", "Bearer ", "Bearer wrong", "Basic abc", "wrong"])
async def test_a_missing_or_invalid_token_is_refused(api: httpx.AsyncClient, value: str) -> None:
    answer = await api.get("/v1/services", headers={"authorization": value})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("role", "method", "path", "allowed"),
    [
        (Role.VIEWER, "GET", "/v1/services/chat", True),
        (Role.VIEWER, "POST", "/v1/services/chat/rollback", False),
        (Role.VIEWER, "POST", "/v1/feedback", False),
        (Role.OPERATOR, "POST", "/v1/services/chat/rollback", True),
        (Role.OPERATOR, "DELETE", "/v1/services/chat", False),
        (Role.OPERATOR, "PUT", "/v1/services/chat", False),
        (Role.ADMIN, "DELETE", "/v1/services/chat", True),
    ],
)
async def test_a_role_has_its_own_rights_and_no_more(
    controller: FakeController,
    api: httpx.AsyncClient,
    model: Path,
    role: Role,
    method: str,
    path: str,
    allowed: bool,
) -> None:
    answer = await api.request(method, path, headers=of_role(controller, role))

    assert (answer.status_code != 403) is allowed


async def test_the_first_admin_token_is_readable_by_its_owner_only(controller: FakeController) -> None:
    mode = (controller.home / "admin.token").stat().st_mode & 0o777

    assert mode == 0o600


async def test_a_new_service_serves_the_version_of_its_files(api: httpx.AsyncClient, model: Path) -> None:
    view = (await api.get("/v1/services/chat")).json()

    assert (view["service"], view["rollout"]) == ("chat", None)
    assert view["stable"].startswith("v-")


async def test_the_same_body_again_changes_nothing(
    api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    before = (await api.get("/v1/services/chat")).json()

    answer = await api.put("/v1/services/chat", json={"model": str(tmp_path / "stable")})

    assert (answer.status_code, answer.json()) == (200, before)


@pytest.mark.slow
async def test_a_deploy_is_stored_before_it_is_answered(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    answer = await api.post("/v1/services/chat/rollouts", json={"version": {"model": str(model)}})

    assert answer.status_code == 201
    assert controller.store.load(answer.json()["rollout"]) is not None


@pytest.mark.slow
async def test_errors_are_problem_details_with_the_command_lines_exit_code(
    api: httpx.AsyncClient, model: Path
) -> None:
    body = {"version": {"model": str(model)}}
    await api.post("/v1/services/chat/rollouts", json=body)

    answer = await api.post("/v1/services/chat/rollouts", json=body)

    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["exit_code"]) == (409, 409, 3)
    assert problem["type"] == "urn:canaryctl:rollout-running"
    assert problem["lines"] == [problem["detail"]]


async def test_a_policy_that_breaks_two_rules_gives_two_lines(api: httpx.AsyncClient, model: Path) -> None:
    body = {"version": {"model": str(model)}, "policy": {"preset": "defualt", "ladder": "up"}}

    answer = await api.post("/v1/services/chat/plan", json=body)

    assert (answer.status_code, len(answer.json()["lines"])) == (422, 2)


@pytest.mark.slow
async def test_engine_arguments_that_are_not_changed_are_inherited(
    controller: FakeController, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "stable", seed=1)
    engine = {"max_num_seqs": 8, "block_size": 16}
    await api.put("/v1/services/chat", json={"model": str(model), "engine": engine, "max_model_len": 64})

    answer = await api.post("/v1/services/chat/rollouts", json={"version": {"engine": {"max_num_seqs": 4}}})

    stored = controller.store.version("chat", answer.json()["canary"])
    assert stored is not None
    spec = json.loads(stored.spec)
    assert (spec["engine"], spec["max_model_len"]) == ({"max_num_seqs": 4, "block_size": 16}, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "line"),
    [
        ("plan", {"versoin": {}}, "unknown key 'versoin'"),
        ("plan", {"version": {"modle": "x"}}, "unknown key 'modle'"),
        ("plan", {"version": "x"}, "write model: DIR or url: URL"),
        ("plan", [1], "send a JSON object"),
        ("plan", {"version": {"model": "/nowhere"}}, "/nowhere is not a directory"),
    ],
)
async def test_an_invalid_body_is_refused_by_name(
    api: httpx.AsyncClient, model: Path, path: str, body: Any, line: str
) -> None:
    answer = await api.post(f"/v1/services/chat/{path}", json=body)

    assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)
    assert line in answer.json()["detail"]


async def test_malformed_json_is_refused(api: httpx.AsyncClient, model: Path) -> None:
    answer = await api.post("/v1/feedback", content=b"{", headers={"content-type": "application/json"})

    assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)


async def test_a_body_beyond_the_limit_is_refused_unread(api: httpx.AsyncClient) -> None:
    answer = await api.post("/v1/feedback", content=b"x" * ((1 << 20) + 1))

    assert answer.status_code == 413


async def test_an_unknown_service_is_404_and_exit_2(api: httpx.AsyncClient) -> None:
    answer = await api.get("/v1/services/nobody")

    assert (answer.status_code, answer.json()["exit_code"]) == (404, 2)


@pytest.mark.slow
async def test_a_rollback_is_stored_with_its_actor_and_reason(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    body = {"version": {"model": str(model)}, "policy": LONG}
    rollout = (await api.post("/v1/services/chat/rollouts", json=body)).json()["rollout"]

    answer = await api.post("/v1/services/chat/rollback", json={"reason": "it rambles"})

    assert (answer.status_code, answer.json()["outcome"]) == (202, "asked")
    commands = controller.store.commands(rollout, after_seq=0)
    assert [(one.actor, one.role, one.reason) for one in commands] == [("admin", "admin", "it rambles")]


@pytest.mark.slow
async def test_a_service_with_a_running_rollout_is_not_taken_down(
    api: httpx.AsyncClient, model: Path, controller: FakeController
) -> None:
    await api.post("/v1/services/chat/rollouts", json={"version": {"model": str(model)}})

    answer = await api.delete("/v1/services/chat")

    assert (answer.status_code, answer.json()["exit_code"]) == (409, 3)
    assert controller.store.service("chat").removing is False


@pytest.mark.slow
async def test_a_version_rolled_back_sixty_rollouts_ago_is_still_rejected(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    body = {"version": {"model": str(model)}}
    rejected = (await api.post("/v1/services/chat/rollouts", json=body)).json()["rollout"]
    stored = controller.store.load(rejected)
    assert stored is not None
    ended = replace(stored.state, phase=Phase.ROLLED_BACK, cause=Cause(CauseKind.GATE, "quality fell"))
    controller.store.commit(ended, (), expected_version=0, evidence=None)
    for index in range(60):
        other = replace(ended, id=f"r-{index:08}", canary=VersionRef(f"v-{index:010}"))
        controller.store.create_rollout(other, request="{}", at_s=time.time() + index)

    answer = await api.post("/v1/services/chat/rollouts", json=body)

    assert answer.json()["type"] == "urn:canaryctl:already-rejected"
    assert f"was rolled back in {rejected} (quality fell); change it" in answer.json()["detail"]
    assert (await api.post("/v1/services/chat/rollouts", json={**body, "retry": True})).status_code == 201


# --- feedback


async def test_a_score_reaches_the_log_of_the_service(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    answer = await api.post("/v1/feedback", json={"id": "chatcmpl-1", "metric": "quality", "score": 0.5})

    assert (answer.status_code, answer.json()) == (
        202,
        {
            "taken": 1,
            "matched": 0,
            "waiting": 1,
            "repeated": 0,
            "forgotten_after_s": None,
            "unreachable": [],
        },
    )
    assert [score[:3] for score in controller.environment.scores] == [("chatcmpl-1", "quality", 0.5)]


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("item", "line"),
    [
        ({"id": "a", "metric": "quality", "score": 1.2}, "outside 0 to 1"),
        ({"id": "a", "metric": "quality", "score": -0.1}, "outside 0 to 1"),
        ({"id": "a", "metric": "quality", "score": "good"}, "is not a number"),
        ({"id": "a", "metric": "quality", "score": True}, "is not a number"),
        ({"id": "a", "metric": "quality"}, "is not a number"),
        ({"id": "a", "metric": "latency_ms", "score": 1}, "'latency_ms' is unknown; use one of"),
        ({"id": "", "metric": "quality", "score": 1}, "id is not 1 to 256 characters"),
        ({"id": "a" * 257, "metric": "quality", "score": 1}, "id is not 1 to 256 characters"),
        ({"id": "a", "metric": "quality", "score": 1, "user": "bob"}, "unknown key 'user'"),
    ],
)
async def test_one_bad_score_refuses_the_whole_list(
    controller: FakeController, api: httpx.AsyncClient, model: Path, item: dict[str, Any], line: str
) -> None:
    good = {"id": "b", "metric": "quality", "score": 1}

    answer = await api.post("/v1/feedback", json=[good, item])

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("feedback 1: ")
    assert line in answer.json()["detail"]
    assert controller.environment.scores == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
async def test_a_score_that_is_not_finite_is_refused(
    controller: FakeController, api: httpx.AsyncClient, model: Path, text: str
) -> None:
    body = f'{{"id": "a", "metric": "quality", "score": {text}}}'

    answer = await api.post("/v1/feedback", content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert controller.environment.scores == []


async def test_more_scores_than_the_limit_are_refused(api: httpx.AsyncClient, model: Path) -> None:
    items = [{"id": "a", "metric": "quality", "score": 1}] * 1001

    assert (await api.post("/v1/feedback", json=items)).status_code == 422


async def test_scores_that_the_log_did_not_accept_are_answered_503(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    controller.environment.accepts_scores = False

    answer = await api.post("/v1/feedback", json={"id": "a", "metric": "quality", "score": 1})

    assert (answer.status_code, answer.json()["exit_code"]) == (503, 4)


# --- events


async def frames(app: Any, path: str, headers: dict[str, str], enough: Callable[[str], bool]) -> str:
    """Text of the event stream until `enough` accepts it."""
    sent: list[str] = []
    done = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b"").decode())
        if enough("".join(sent)):
            done.set()

    route, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": route, "raw_path": route.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("api", 80),
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), timeout=20)
    return "".join(sent)


async def test_events_stream_the_log_then_the_view_and_resume_after_a_sequence_number(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    headers = {"authorization": api.headers["authorization"]}
    app, path = controller.app, "/v1/services/chat/events"

    text = await frames(app, path, headers, lambda sent: "event: view" in sent)
    last = controller.store.events("chat")[-1].seq
    again = await frames(app, f"{path}?after={last}", headers, lambda sent: "event: view" in sent)

    assert "service created on v-" in text
    view = next(line for line in text.splitlines() if line.startswith("data: ") and '"stable"' in line)
    assert json.loads(view.removeprefix("data: "))["service"] == "chat"
    assert "event: log" not in again


@pytest.mark.slow
async def test_the_openapi_document_names_every_route(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/openapi.json")).json()["paths"]

    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/services",
        "/v1/services/{service}",
        "/v1/services/{service}/plan",
        "/v1/services/{service}/rollouts",
        "/v1/services/{service}/rollouts/{rollout}",
        "/v1/services/{service}/rollback",
        "/v1/services/{service}/undo",
        "/v1/services/{service}/history",
        "/v1/services/{service}/events",
        "/v1/feedback",
    }


QUALITY_ONLY = {
    "gates": dict.fromkeys(
        ("error", "rejected", "latency_p99", "latency_shape", "ttft_shape", "hallucination")
    )
}


@pytest.mark.slow
async def test_a_plan_forecasts_its_duration_at_the_given_traffic(
    api: httpx.AsyncClient, model: Path
) -> None:
    policy = {**QUALITY_ONLY, "stages": [{"weight": "10%", "min_canary": 150}]}
    body = {"version": {"model": str(model)}, "policy": policy, "rate": 5}

    view = (await api.post("/v1/services/chat/plan", json=body)).json()

    [stage] = view["forecast"]
    assert stage["seconds_median"] >= 300
    assert stage["seconds_p90"] >= stage["seconds_median"]
    assert stage["finds"][0].startswith("quality -0.")
    assert view["requests_per_s"] == 5.0
    assert view["forecast_runs"] == stage["runs"] > 10
    assert view["basis"][0].startswith("measured over 0 requests, 200 are needed: typical figures are used")


async def test_without_known_traffic_a_plan_has_no_forecast(api: httpx.AsyncClient, model: Path) -> None:
    view = (await api.post("/v1/services/chat/plan", json={"version": {"model": str(model)}})).json()

    assert view["forecast"] is None
    assert view["forecast_note"] == "traffic not known; give --rate REQUESTS_PER_S"


@pytest.mark.slow
async def test_a_plan_whose_stage_can_prove_nothing_is_refused_with_the_remedy(
    api: httpx.AsyncClient, model: Path
) -> None:
    policy = {**QUALITY_ONLY, "stages": [{"weight": "1%", "deadline": "60s"}]}
    body = {"version": {"model": str(model)}, "policy": policy, "rate": 5}

    answer = await api.post("/v1/services/chat/plan", json=body)

    assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)
    [line] = answer.json()["lines"]
    assert line.startswith("stage 1: at 1 % its units prove quality in 0 of 20 runs within 1 min;")
    assert "give it a deadline of " in line


@pytest.mark.parametrize(("key", "value"), [("rate", 0), ("rate", "x"), ("unit_requests", 0.5), ("quick", 1)])
async def test_invalid_traffic_figures_are_refused_by_name(
    api: httpx.AsyncClient, model: Path, key: str, value: object
) -> None:
    body = {"version": {"model": str(model)}, key: value}

    answer = await api.post("/v1/services/chat/plan", json=body)

    assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)
    assert answer.json()["detail"].startswith(f"{key} {value!r} ")


@pytest.mark.slow
async def test_a_deploy_without_a_baseline_refuses_an_underpowered_stage_without_a_simulation(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    controller.environment.rate = 2.0
    body = {"version": {"model": str(model)}, "policy": {"stages": [{"weight": "0.01%", "deadline": "60s"}]}}

    answer = await api.post("/v1/services/chat/rollouts", json=body)

    assert (answer.status_code, answer.json()["exit_code"]) == (422, 2)
    assert "too few to detect any harm; raise its weight or its deadline" in answer.json()["detail"]
    body["policy"] = {"stages": [{"weight": "10%"}]}
    assert (await api.post("/v1/services/chat/rollouts", json=body)).status_code == 201
    assert controller.environment.forecasts == 0


MEASURED = MeasuredBaseline(
    4120, {"error": 37, "rejected": 0}, 420.0, 2100.0, 0.6, {"quality": ScoreStats(3980, 0.8, 0.2, 0.97)}, 1.0
)
SHORT = {**QUALITY_ONLY, "stages": [{"weight": "5%", "min_canary": 20, "deadline": "200s"}]}


@pytest.mark.slow
async def test_a_plan_uses_the_measured_baseline_and_names_its_sample_size(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    controller.environment.rate, controller.environment.traffic = 5.0, replace(MEASURED, unit_requests=3.0)
    policy = {**QUALITY_ONLY, "stages": [{"weight": "10%", "min_canary": 150, "deadline": "1h"}]}

    view = (
        await api.post(
            "/v1/services/chat/plan",
            json={"version": {"model": str(model)}, "policy": policy, "users": 90_000},
        )
    ).json()

    assert view["basis"] == [
        "measured over 4,120 requests: errors 0.9 %, latency p50 420 ms, p99 2.1 s",
        "quality 0.8 (sd 0.2) over 3,980 scores, of 97 % of the answers",
    ]
    assert (view["unit_requests"], view["users"]) == (3.0, 90_000)


@pytest.mark.slow
async def test_a_deploy_refuses_what_plan_refuses_unless_a_reason_is_given(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    controller.environment.rate, controller.environment.traffic = 5.0, MEASURED
    body = {"version": {"model": str(model)}, "policy": SHORT}

    planned = (await api.post("/v1/services/chat/plan", json=body)).json()
    before = controller.picture()
    refused = await api.post("/v1/services/chat/rollouts", json=body)

    assert (refused.status_code, refused.json()["exit_code"]) == (422, 2)
    [line] = planned["lines"]
    assert refused.json()["lines"] == [f"{line}; --allow-unproven REASON deploys it anyway"]
    assert controller.picture() == before
    empty = await api.post("/v1/services/chat/rollouts", json={**body, "allow_unproven": " "})
    assert (empty.status_code, empty.json()["detail"]) == (
        422, "allow_unproven ' ' is not a reason; give one, or leave it out"
    )  # fmt: skip
    taken = await api.post("/v1/services/chat/rollouts", json={**body, "allow_unproven": "a rehearsal"})
    assert taken.status_code == 201
    [row] = controller.store.rollouts("chat")
    assert json.loads(row.request)["allow_unproven"] == "a rehearsal"


@pytest.mark.slow
async def test_a_failed_simulation_blocks_neither_the_plan_nor_a_deploy(
    controller: FakeController, api: httpx.AsyncClient, model: Path
) -> None:
    def fails(*_: object) -> tuple[StageForecast, ...]:
        raise NotSimulated("the simulation ended with exit code -9; the controller's log says why")

    controller.environment.rate, controller.environment.traffic, controller.environment.simulate = (
        5.0,
        MEASURED,
        fails,
    )
    body = {"version": {"model": str(model)}, "policy": SHORT}

    view = (await api.post("/v1/services/chat/plan", json=body)).json()

    assert view["forecast"] is None
    assert view["forecast_note"] == "the simulation ended with exit code -9; the controller's log says why"
    assert (await api.post("/v1/services/chat/rollouts", json=body)).status_code == 201


@pytest.mark.slow
@pytest.mark.parametrize("key", ["rate", "unit_requests", "users", "score"])
async def test_a_number_that_no_float_holds_is_refused_in_one_line(
    api: httpx.AsyncClient, model: Path, key: str
) -> None:
    """They were 500: an integer of 400 digits raises OverflowError where a float is expected."""
    await api.put("/v1/services/chat", json={"model": str(model)})
    number = "1" + "0" * 400
    path = "/v1/feedback" if key == "score" else "/v1/services/chat/plan"
    body = f'{{"id": "x", "score": {number}}}' if key == "score" else f'{{"{key}": {number}}}'

    answer = await api.post(path, content=body, headers={"content-type": "application/json"})

    assert (answer.status_code, len(answer.json()["detail"]) < 200) == (422, True)
    assert "a number of over 40 digits" in answer.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("last", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", ""])
async def test_a_last_event_id_that_is_no_number_starts_at_the_beginning(
    api: httpx.AsyncClient, model: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    async def none(_store: object, _views: object, _service: str, after: int) -> AsyncIterator[str]:
        starts.append(after)
        yield ""

    monkeypatch.setattr("controller.api.app.events", none)
    await api.put("/v1/services/chat", json={"model": str(model)})

    headers = [(b"last-event-id", last.encode("latin-1"))]
    answer = await api.get("/v1/services/chat/events", headers=headers)

    assert (answer.status_code, starts) == (200, [0])


@pytest.mark.slow
@pytest.mark.parametrize("by_admin", ["https://a.example/v1", None])
async def test_an_operator_names_no_key_that_the_service_does_not_send_there(
    controller: FakeController, api: httpx.AsyncClient, model: Path, by_admin: str | None, tmp_path: Path
) -> None:
    """A deploy has the controller send a file of its own to a host of the operator's choice."""
    file = tmp_path / "key"
    file.write_text("sk-1")
    key, operator = {"api_key_file": str(file)}, of_role(controller, Role.OPERATOR)
    if by_admin is not None:
        await api.post("/v1/services/chat/rollouts", json={"version": {"url": by_admin, "model": "m", **key}})
        await api.post("/v1/services/chat/rollback", json={})
        rollout = controller.store.running("chat")[0]
        stored = controller.store.load(rollout)
        assert stored is not None
        ended = replace(stored.state, phase=Phase.FAILED, commands_through=9)
        controller.store.commit(ended, (), expected_version=stored.version, evidence=None)

    async def deploy(url: str, **changed: str) -> httpx.Response:
        version = {"url": url, "model": "other", **key, **changed}
        body = {"version": version, "allow_unjudged": "new", "allow_unproven": "new"}
        return await api.post("/v1/services/chat/rollouts", json=body, headers=operator)

    elsewhere = await deploy("https://evil.example/v1")
    another = await deploy("https://a.example/v1", api_key_file="/keys/b")
    same = await deploy("https://a.example/v1")

    assert (elsewhere.status_code, another.status_code) == (422, 422)
    assert f"{file} is new for https://evil.example: an admin must" in elsewhere.json()["detail"]
    assert same.status_code == (201 if by_admin else 422)


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("reason", ["\x1b[2J", "two\nlines", "x" * 501, "\x00"])
@pytest.mark.parametrize("key", ["reason", "allow_unjudged"])
async def test_a_reason_is_one_printable_line(
    api: httpx.AsyncClient, model: Path, key: str, reason: str
) -> None:
    body = {key: f"a{reason}b", "version": {"model": str(model)}}
    answers = [await api.post("/v1/services/chat/rollouts", json=body)]
    if key == "reason":
        for path in ("rollback", "undo"):
            answers.append(await api.post(f"/v1/services/chat/{path}", json={key: body[key]}))

    assert {answer.status_code for answer in answers} == {422}
    assert all(f"{key} " in answer.json()["detail"] for answer in answers)


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("path", ["plan", "rollouts"])
@pytest.mark.parametrize(
    "version",
    [
        '{"model": "/tmp/a\\u0000b"}',
        '{"engine": {"chat_template": "{{x}}\\ud800"}}',
        '{"engine": {"hf_overrides": {"a\\ud800": 1}}}',
        '{"engine": {"chat_template": "{{x}}\\u001b[2J"}}',
    ],
)
async def test_text_that_cannot_be_stored_is_refused_in_every_body(
    api: httpx.AsyncClient, model: Path, path: str, version: str
) -> None:
    await api.put("/v1/services/chat", json={"model": str(model)})

    headers = {"content-type": "application/json"}
    answer = await api.post(f"/v1/services/chat/{path}", content=f'{{"version": {version}}}', headers=headers)

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("version.")
    assert "is not printable" in answer.json()["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["plan", "rollouts"])
async def test_a_controller_that_does_not_measure_refuses_what_would_skip_its_checks(
    controller: FakeController, api: httpx.AsyncClient, model: Path, tmp_path: Path, path: str
) -> None:
    await api.put("/v1/services/chat", json={"model": str(model)})
    controller.environment.is_measuring = False

    body = {"version": {"model": str(write_checkpoint(tmp_path / "next", seed=9))}}
    answer = await api.post(f"/v1/services/chat/{path}", json=body)

    assert (answer.status_code, controller.store.rollouts("chat")) == (503, ())


@pytest.mark.slow
async def test_a_state_that_cannot_be_read_keeps_no_service_from_being_listed_or_rolled_back(
    controller: FakeController, api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        await api.put(f"/v1/services/{name}", json={"model": str(model)})
    body = {"version": {"model": str(write_checkpoint(tmp_path / "next", seed=9))}}
    await api.post("/v1/services/a/rollouts", json=body)
    (rollout,) = controller.store.rollouts("a")
    with sqlite3.connect(controller.home / "canaryctl.db") as db:
        db.execute("""UPDATE rollouts SET state = '{"format": 99}'""")

    listed = await api.get("/v1/services")
    rolled_back = await api.post("/v1/services/a/rollback", json={})

    unreadable = {view["service"]: view["unreadable"] for view in listed.json()}
    assert (unreadable["a"] is not None, unreadable["b"]) == (True, None)
    assert (rolled_back.status_code, rolled_back.json()["rollout"]) == (202, rollout.id)
    assert [one.kind.value for one in controller.store.commands(rollout.id, after_seq=0)] == ["rollback"]


@pytest.mark.slow
async def test_a_rollout_that_cannot_be_read_hides_no_other_in_the_history(
    controller: FakeController, api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    await api.put("/v1/services/a", json={"model": str(model)})
    body = {"version": {"model": str(write_checkpoint(tmp_path / "next", seed=9))}, "name": "night"}
    await api.post("/v1/services/a/rollouts", json=body)
    (rollout,) = controller.store.rollouts("a")
    with sqlite3.connect(controller.home / "canaryctl.db") as db:
        db.execute("""UPDATE rollouts SET state = '{"format": 99}'""")

    [view] = (await api.get("/v1/services/a/history")).json()

    assert (view["rollout"], view["phase"], view["canary_name"]) == (rollout.id, "unreadable", "night")
    assert "format 99" in view["reason"]
    console = Console(width=200, record=True)
    console.print(history_list([RolloutView.model_validate(view)], is_wide=False))
    shown = console.export_text()
    assert rollout.id in shown
    assert "unreadable" in shown


async def test_an_undo_to_an_empty_name_is_refused(api: httpx.AsyncClient, model: Path) -> None:
    await api.put("/v1/services/chat", json={"model": str(model)})

    answer = await api.post("/v1/services/chat/undo", json={"to": ""})

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("to is empty")


async def test_an_event_stream_ends_with_its_token(
    controller: FakeController, api: httpx.AsyncClient, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.put("/v1/services/chat", json={"model": str(model)})
    ada = Identity("ada", Role.VIEWER)
    controller.store.put_token(token_digest("ada"), ada, at_s=1.0, origin="a")

    async def two(_store: object, _views: object, _service: str, _after: int) -> AsyncIterator[str]:
        yield "first"
        controller.store.put_token("another", ada, at_s=2.0, origin="a")  # the token before is void
        yield "second"

    monkeypatch.setattr("controller.api.app.events", two)

    answer = await api.get("/v1/services/chat/events", headers={"authorization": "Bearer ada"})

    assert answer.text == "first"
