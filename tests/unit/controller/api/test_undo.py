"""Undo and rollback through the API: one command from a bad stable to the version before it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.planning.fingerprint import fingerprint_external
from controller.rollout.state import Cause, CauseKind, Departure, DepartureStep, Phase, RolloutState
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"


class Chat:
    """The service `chat`, its checkpoints 1, 2, 3 and its versions in order of service."""

    def __init__(self, controller: FakeController, api: httpx.AsyncClient, folder: Path) -> None:
        self.controller, self.api, self.folder = controller, api, folder
        self.seeds: dict[int, str] = {}

    async def up(self) -> str:
        model = write_checkpoint(self.folder / "1", seed=1)
        body = {"model": str(model), "engine": {"max_num_seqs": 8}, "max_model_len": 64}
        assert (await self.api.put(URL, json=body)).status_code == 200
        return self.stable()

    async def deploy(self, seed: int, **more: Any) -> httpx.Response:
        model = self.folder / str(seed)
        if not model.exists():
            write_checkpoint(model, seed=seed)
        body = {"version": {"model": str(model), "engine": {"max_num_seqs": 4}}, **more}
        return await self.api.post(f"{URL}/rollouts", json=body)

    async def promote(self, seed: int) -> str:
        """Deploy a checkpoint and promote it; its version."""
        rollout = (await self.deploy(seed)).json()["rollout"]
        self.succeed(rollout)
        return self.stable()

    def succeed(self, rollout: str) -> None:
        state = self.load(rollout)
        departure = Departure(state.stable.id, state.canary.id, DepartureStep.UNLOAD, 0.0, 0.0)
        self.commit(replace(state, phase=Phase.SUCCEEDED, departure=departure))

    def fail(self, rollout: str, kind: CauseKind, phase: Phase = Phase.ROLLED_BACK) -> None:
        self.commit(replace(self.load(rollout), phase=phase, cause=Cause(kind, "it was bad")))

    def load(self, rollout: str) -> RolloutState:
        stored = self.controller.store.load(rollout)
        assert stored is not None
        return stored.state

    def commit(self, state: RolloutState) -> None:
        stored = self.controller.store.load(state.id)
        assert stored is not None
        self.controller.store.commit(state, (), expected_version=stored.version, evidence=None)

    def stable(self) -> str:
        return self.controller.store.service("chat").stable

    async def post(self, command: str, **body: Any) -> dict[str, Any]:
        answer = await self.api.post(f"{URL}/{command}", json=body)
        return {"status": answer.status_code, **answer.json()}


@pytest.fixture
async def chat(controller: FakeController, api: httpx.AsyncClient, tmp_path: Path) -> Chat:
    return Chat(controller, api, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["undo", "rollback"])
async def test_a_promoted_version_is_replaced_by_the_one_before_it(chat: Chat, command: str) -> None:
    first, second = await chat.up(), await chat.promote(2)

    answer = await chat.post(command, reason="it rambles")

    state = chat.load(answer["rollout"])
    assert (answer["status"], answer["outcome"]) == (202, "asked")
    assert (state.stable.id, state.canary.id, state.plan.undo, state.plan.stages) == (second, first, True, ())
    assert "without proof; by admin (admin): it rambles" in state.log[0].text
    stored = chat.controller.store.version("chat", state.canary.id)
    assert stored is not None
    assert '"max_num_seqs": 8' in stored.spec


@pytest.mark.slow
async def test_an_undo_fits_the_memory_or_is_refused(chat: Chat) -> None:
    await chat.up()
    await chat.promote(2)
    chat.controller.environment.free_bytes = 1 << 20

    answer = await chat.post("undo")

    assert (answer["status"], answer["exit_code"]) == (409, 3)


@pytest.mark.slow
async def test_a_second_undo_or_rollback_never_takes_back_the_first(chat: Chat) -> None:
    first = await chat.up()
    await chat.promote(2)
    undo = (await chat.post("undo"))["rollout"]

    running = [await chat.post(command) for command in ("undo", "rollback")]
    chat.succeed(undo)
    done = [await chat.post(command) for command in ("undo", "rollback")]

    assert [(one["outcome"], one["rollout"]) for one in running] == [("already", undo)] * 2
    assert [(one["outcome"], one["rollout"]) for one in done] == [("already", None)] * 2
    assert all(f"already serving {first}" in one["text"] for one in done)


@pytest.mark.slow
async def test_a_version_that_is_not_known_is_answered_with_each_that_is_once(chat: Chat) -> None:
    first = await chat.up()
    await chat.promote(2)
    await chat.post("undo")

    detail = (await chat.post("undo", to="v9"))["detail"]

    assert detail.count(first) == 1


@pytest.mark.slow
async def test_an_undo_never_leads_back_to_what_was_undone(chat: Chat) -> None:
    first = await chat.up()
    second = await chat.promote(2)
    chat.succeed((await chat.post("undo"))["rollout"])
    chat.fail((await chat.deploy(3)).json()["rollout"], CauseKind.GATE)

    answers = [await chat.post(command) for command in ("undo", "rollback")]
    named = await chat.post("undo", to=second)

    assert [one["outcome"] for one in answers] == ["already", "already"]
    assert answers[0]["text"] == f"chat: already serving {first}"
    assert chat.load(named["rollout"]).canary.id == second


@pytest.mark.slow
async def test_an_undo_that_failed_is_tried_again_by_the_same_command(chat: Chat) -> None:
    first = await chat.up()
    await chat.promote(2)
    chat.fail((await chat.post("rollback"))["rollout"], CauseKind.PROBE)

    answer = await chat.post("rollback")

    assert chat.load(answer["rollout"]).canary.id == first


@pytest.mark.slow
async def test_any_version_that_has_served_can_be_named(chat: Chat) -> None:
    first, _ = await chat.up(), await chat.promote(2)
    await chat.promote(3)

    answer = await chat.post("undo", to=first[:6])

    assert chat.load(answer["rollout"]).canary.id == first


@pytest.mark.slow
@pytest.mark.parametrize(("to", "line"), [("v-nope", "has not served in chat"), ("v-", "is ambiguous")])
async def test_a_version_that_cannot_be_told_is_refused(chat: Chat, to: str, line: str) -> None:
    await chat.up()
    await chat.promote(2)

    answer = await chat.post("undo", to=to)

    assert (answer["status"], answer["exit_code"]) == (422, 2)
    assert line in answer["detail"]


@pytest.mark.slow
async def test_the_serving_version_is_already_there(chat: Chat) -> None:
    first = await chat.up()

    assert (await chat.post("undo", to=first))["text"] == f"chat: already serving {first}"
    assert (await chat.post("undo"))["status"] == 422


@pytest.mark.slow
async def test_an_undo_during_a_rollout_ends_it(chat: Chat) -> None:
    first = await chat.up()
    rollout = (await chat.deploy(2)).json()["rollout"]

    answer = await chat.post("undo")

    assert (answer["outcome"], answer["rollout"]) == ("asked", rollout)
    assert [one.kind.value for one in chat.controller.store.commands(rollout, after_seq=0)] == ["rollback"]
    assert chat.stable() == first


@pytest.mark.slow
async def test_an_undone_version_is_rejected_until_it_has_served_again(chat: Chat) -> None:
    await chat.up()
    await chat.promote(2)
    chat.succeed((await chat.post("undo", reason="it rambles"))["rollout"])

    refused = await chat.deploy(2)
    retried = await chat.deploy(2, retry=True)

    assert refused.json()["type"] == "urn:canaryctl:already-rejected"
    assert "it rambles" in refused.json()["detail"]
    assert retried.status_code == 201


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "phase"),
    [(CauseKind.NOT_PROVEN, Phase.ROLLED_BACK), (CauseKind.PROBE, Phase.FAILED)],
)
async def test_a_rejection_outlives_a_retry_without_a_verdict(
    chat: Chat, kind: CauseKind, phase: Phase
) -> None:
    await chat.up()
    chat.fail((await chat.deploy(2)).json()["rollout"], CauseKind.GATE)
    chat.fail((await chat.deploy(2, retry=True)).json()["rollout"], kind, phase)

    answer = await chat.deploy(2)

    assert answer.json()["type"] == "urn:canaryctl:already-rejected"


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("command", "body", "line"),
    [
        ("rollouts", {"retry": "false"}, "retry 'false' is not true or false"),
        ("rollouts", {"twin": "false"}, "twin 'false' is not true or false"),
        ("rollouts", {"reason": ["a"]}, "reason ['a'] is not a text"),
        ("plan", {"quick": "no"}, "quick 'no' is not true or false"),
        ("rollback", {"reason": 7}, "reason 7 is not a text"),
        ("rollback", {"reson": "x"}, "unknown key 'reson'"),
        ("undo", {"to": 7}, "to 7 is not a text"),
        ("undo", {"version": "v-1"}, "unknown key 'version'"),
    ],
)
async def test_a_body_with_another_type_is_refused(
    chat: Chat, command: str, body: dict[str, Any], line: str
) -> None:
    await chat.up()

    answer = await chat.post(command, **body)

    assert (answer["status"], answer["exit_code"]) == (422, 2)
    assert line in answer["detail"]


@pytest.mark.slow
async def test_a_rollout_is_read_by_its_id(chat: Chat, api: httpx.AsyncClient) -> None:
    await chat.up()
    first = (await chat.deploy(2)).json()["rollout"]
    chat.fail(first, CauseKind.GATE)
    await chat.deploy(3)

    found = await api.get(f"{URL}/rollouts/{first}")
    missing = [await api.get(f"/v1/services/{name}/rollouts/{id}") for name, id in _absent(first)]

    assert (found.json()["rollout"], found.json()["exit_code"]) == (first, 5)
    assert [(one.status_code, one.json()["exit_code"]) for one in missing] == [(404, 2)] * 2


def _absent(rollout: str) -> list[tuple[str, str]]:
    return [("chat", "r-none"), ("other", rollout)]


@pytest.mark.slow
async def test_a_failed_attempt_leaves_the_version_that_undo_returns_to(chat: Chat) -> None:
    """The same files from another folder are the same version, with another path and size."""
    first, _ = await chat.up(), await chat.promote(2)
    copy = chat.folder / "copy"
    shutil.copytree(chat.folder / "1", copy)
    body = {"version": {"model": str(copy), "replicas": 3, "engine": {"max_num_seqs": 8}}}
    attempt = (await chat.api.post(f"{URL}/rollouts", json=body)).json()["rollout"]
    assert (chat.load(attempt).canary.id, chat.load(attempt).canary.replicas) == (first, 3)
    chat.fail(attempt, CauseKind.PROBE)

    state = chat.load((await chat.post("undo"))["rollout"])

    stored = chat.controller.store.version("chat", first)
    assert stored is not None
    assert (state.canary.id, state.canary.replicas) == (first, 1)
    assert json.loads(stored.spec)["model"] == str(chat.folder / "1")


@pytest.mark.slow
async def test_a_promoted_copy_is_what_undo_returns_to(chat: Chat) -> None:
    first, _ = await chat.up(), await chat.promote(2)
    body = {"version": {"model": str(chat.folder / "1"), "replicas": 3, "engine": {"max_num_seqs": 8}}}
    chat.succeed((await chat.api.post(f"{URL}/rollouts", json=body)).json()["rollout"])
    await chat.promote(3)

    state = chat.load((await chat.post("undo"))["rollout"])

    assert (state.canary.id, state.canary.replicas) == (first, 3)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("third", ["undone", "rejected"])
async def test_no_undone_or_rejected_version_is_recommended(chat: Chat, third: str) -> None:
    first, second = await chat.up(), await chat.promote(2)
    if third == "undone":
        chat.succeed((await chat.post("undo"))["rollout"])
    else:
        await chat.promote(3)
        chat.fail((await chat.deploy(2)).json()["rollout"], CauseKind.GATE)
    await chat.promote(4)
    chat.succeed((await chat.post("undo"))["rollout"])

    text = (await chat.post("undo"))["text"]

    assert second not in text
    assert ("further back" in text) == (third == "rejected")
    assert chat.stable() == first or text.endswith(f"--to {first}")


@pytest.mark.slow
async def test_a_service_created_again_has_no_earlier_versions(chat: Chat) -> None:
    first, second = await chat.up(), await chat.promote(2)
    body = json.loads(chat.controller.store.served("chat")[0].version.spec)
    chat.controller.store.remove_service("chat", at_s=1.0)
    assert (await chat.api.put(URL, json=body)).status_code == 200
    assert chat.stable() == second

    rollback = await chat.post("rollback")
    chat.fail((await _deploy_first(chat)).json()["rollout"], CauseKind.GATE)
    undo, named = await chat.post("undo"), await chat.post("undo", to=first)

    assert (rollback["outcome"], rollback["text"]) == ("already", f"chat: already serving {second}")
    assert (undo["status"], named["status"]) == (422, 422)


async def _deploy_first(chat: Chat) -> httpx.Response:
    version = {"model": str(chat.folder / "1"), "engine": {"max_num_seqs": 8}}
    return await chat.api.post(f"{URL}/rollouts", json={"version": version})


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("command", ["undo", "rollback"])
async def test_people_who_roll_back_at_once_get_the_same_undo(
    chat: Chat, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one read the service before the first one's undo was stored."""
    await chat.up()
    await chat.promote(2)
    store = chat.controller.store
    answers: list[int] = []
    create = store.create_rollout

    def create_second(*args: Any, **options: Any) -> int:
        if not answers:
            answers.append(create(a_first, request="{}", at_s=1.0))
        return create(*args, **options)

    probe = await chat.post(command)
    a_first = replace(chat.load(probe["rollout"]), id="u-00000001")
    chat.fail(probe["rollout"], CauseKind.PROBE)
    monkeypatch.setattr(store, "create_rollout", create_second)

    second = await chat.post(command)

    assert (second["status"], second["outcome"], second["rollout"]) == (202, "already", "u-00000001")


@pytest.mark.slow
async def test_a_version_is_named_by_its_name(chat: Chat) -> None:
    await chat.up()
    chat.succeed((await chat.deploy(2, name="blue")).json()["rollout"])
    second = chat.stable()
    await chat.promote(3)

    answer = await chat.post("undo", to="blue")

    assert chat.load(answer["rollout"]).canary.id == second


@pytest.mark.slow
async def test_an_earlier_version_named_during_a_rollout_is_a_conflict(chat: Chat) -> None:
    first, _ = await chat.up(), await chat.promote(2)
    await chat.promote(3)
    await chat.deploy(4)

    answer = await chat.post("undo", to=first)

    assert (answer["status"], answer["exit_code"]) == (409, 3)


@pytest.mark.slow
async def test_an_endpoint_gets_another_key_by_a_deploy_and_the_old_one_back_by_an_undo(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OLD", "NEW"):
        monkeypatch.setenv(name, "sk-1")
    endpoint = {"url": "http://127.0.0.1:9", "model": "m"}
    assert (await chat.api.put(URL, json={**endpoint, "api_key_env": "OLD"})).status_code == 200
    first = chat.stable()

    up = await chat.api.put(URL, json={**endpoint, "api_key_env": "NEW"})
    same = await chat.api.post(f"{URL}/rollouts", json={"version": {**endpoint, "api_key_env": "OLD"}})
    other = await chat.api.post(f"{URL}/rollouts", json={"version": {**endpoint, "api_key_env": "NEW"}})
    chat.succeed(other.json()["rollout"])
    undo = await chat.post("undo")

    command = "canaryctl deploy chat --url http://127.0.0.1:9 --model m --engine api_key_env=NEW"
    assert (up.status_code, command in up.json()["detail"]) == (409, True)
    assert (same.status_code, other.status_code) == (409, 201)
    assert chat.load(undo["rollout"]).canary.id == first != chat.stable()


async def test_an_endpoint_that_an_earlier_release_stored_with_its_key_is_the_same(chat: Chat) -> None:
    """Its fingerprint had no part of the key."""
    endpoint = {"url": "http://127.0.0.1:9", "model": "m", "api_key_env": "OLD"}
    assert (await chat.api.put(URL, json=endpoint)).status_code == 200
    store = chat.controller.store
    service, row = store.service("chat"), store.served("chat")[0].version
    old = fingerprint_external("http://127.0.0.1:9", "m")
    store.remove_service("chat", at_s=1.0)
    row = replace(row, id=old.version_id, fingerprint=json.dumps(asdict(old)))
    store.put_service(replace(service, stable=row.id), row)

    same = await chat.api.post(f"{URL}/rollouts", json={"version": endpoint})

    assert same.status_code == 409


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("kind", "exposed", "status"),
    [
        # Before the first user's request: nothing is known of its answers, so it may be tried again.
        (CauseKind.ENGINE, False, 201),
        (CauseKind.PROBE, False, 201),
        (CauseKind.DEADLINE, False, 201),
        (CauseKind.UNREADABLE, False, 201),
        # A person has rejected it, or users were served.
        (CauseKind.USER, False, 409),
        (CauseKind.TOMBSTONE, False, 409),
        (CauseKind.ENGINE, True, 409),
        (CauseKind.UNREADABLE, True, 409),
        (CauseKind.GUARD, True, 409),
        (CauseKind.NOT_PROVEN, True, 201),
    ],
)
async def test_a_retry_is_asked_for_what_a_person_or_users_requests_rejected(
    chat: Chat, kind: CauseKind, exposed: bool, status: int
) -> None:
    await chat.up()
    state = chat.load((await chat.deploy(2)).json()["rollout"])
    departure = Departure(state.canary.id, state.stable.id, DepartureStep.UNLOAD, 0.0, 0.0)
    ended = replace(state, phase=Phase.ROLLED_BACK, launched=True, exposed=exposed, departure=departure)
    chat.commit(replace(ended, cause=Cause(kind, "it was bad")))

    answer = await chat.deploy(2)

    assert answer.status_code == status


@pytest.mark.slow
async def test_what_waits_for_an_undo_names_the_command_that_ends_it(chat: Chat) -> None:
    """`rollback`, which ends any other rollout, leaves an undo alone."""
    first = await chat.up()
    second, third = await chat.promote(2), await chat.promote(3)
    undo = (await chat.post("undo"))["rollout"]

    waiting = [
        (await chat.deploy(4)).json()["detail"],
        (await chat.post("undo", to=first))["detail"],
        (await chat.api.delete(URL)).json()["detail"],
    ]
    ended = await chat.post("undo", to=third)

    assert all(f"undo {undo} " in line and "canaryctl rollback" not in line for line in waiting)
    assert all(f"canaryctl undo chat --to {third}" in line for line in waiting[:2])
    assert (ended["status"], ended["rollout"]) == (202, undo)
    assert second != third


@pytest.mark.slow
async def test_a_rollback_with_nothing_to_do_names_the_way_further_back(chat: Chat) -> None:
    first = await chat.up()
    await chat.promote(2)
    tried = (await chat.deploy(3)).json()["rollout"]
    chat.fail(tried, CauseKind.GATE)

    answer = await chat.post("rollback")

    assert answer["outcome"] == "already"
    assert answer["text"].endswith(f"to go further back: canaryctl undo chat --to {first}")


@pytest.mark.slow
async def test_a_version_has_the_name_that_tables_show(chat: Chat) -> None:
    """Without a name of its own that is its checkpoint's folder; the list of a refusal dropped it."""
    first = await chat.up()
    second = await chat.promote(2)

    refused = await chat.post("undo", to="v9")
    accepted = await chat.post("undo", to="1")

    assert f"(that have: {second} (2), {first} (1))" in refused["detail"]
    assert (accepted["status"], accepted["outcome"]) == (202, "asked")
