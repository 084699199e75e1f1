"""Versions have names: who deployed what and why, in every list, log line and document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import run
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat, until

SLOW = "stages: [{weight: 10%, duration: 1h}]\n"
FAST = "stages: [{weight: 10%}, {weight: 50%}]\nbake: 0s\n"


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    """A controller that serves `chat` from the folder `stable`."""
    home = at_home(tmp_path / "home", monkeypatch)
    monkeypatch.setenv("USER", "alice")
    for seed, name in enumerate(("stable", "v2-sft")):
        write_checkpoint(tmp_path / name, seed=seed)
    (tmp_path / "slow.yaml").write_text(SLOW)
    (tmp_path / "fast.yaml").write_text(FAST)
    with serving_chat(home, tmp_path / "stable", is_loaded=True) as fake:
        yield fake


@pytest.fixture
def deploy(chat: FakeController, tmp_path: Path) -> Callable[..., int]:
    """`canaryctl deploy` of the folder `v2-sft`."""

    def start(policy: str, *more: str) -> int:
        arguments = ["--model", str(tmp_path / "v2-sft"), "--policy", str(tmp_path / f"{policy}.yaml")]
        return run(["deploy", "chat", *arguments, *more])

    return start


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(list(arguments)) == code
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(printed(capsys, *arguments, "-o", "json", code=code))


@pytest.mark.slow
def test_every_list_and_log_line_shows_the_names(
    chat: FakeController, deploy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--name", "v2.1", "--message", "fixes the stop token (9f2c1d3)")
    assert deploy("slow", *named) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the first weight is set")

    status = printed(capsys, "status", "chat")
    assert "(stable) -> v-" in status
    rollout = document(capsys, "status", "chat")["rollout"]["rollout"]
    log = printed(capsys, "history", "chat", "--rollout", rollout)  # status shows its newest lines
    assert "(v2.1)" in log.split("planning: ")[1].splitlines()[0]
    assert "deployed by alice (admin): fixes the stop token (9f2c1d3)" in status
    assert {line.split()[1] for line in status.splitlines()[2:4]} == {"stable", "v2.1"}
    listed = printed(capsys, "list")
    assert ("(stable)" in listed, "(v2.1)" in listed) == (True, True)
    history = " ".join(printed(capsys, "history", "chat").split())
    assert "alice (admin): fixes the stop token" in history
    assert "loading: preflight passed" in log
    assert "(v2.1) is loaded" in log


@pytest.mark.slow
def test_documents_hold_name_source_actor_and_message(
    chat: FakeController, deploy: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("slow", "--message", "why", "--actor", "bob") == 0
    until(lambda: len(chat.runner.last_tick("chat").versions or ()) == 2, "both are seen")

    service = document(capsys, "status", "chat")
    label = {"source": str(tmp_path / "v2-sft"), "actor": "bob (admin)", "message": "why"}
    for rollout in (service["rollout"], *document(capsys, "history", "chat")):
        assert (rollout["stable_name"], rollout["canary_name"]) == ("stable", "v2-sft")
        assert {key: rollout[key] for key in label} == label
    canary = next(one for one in service["versions"] if one["version"] == service["rollout"]["canary"])
    assert {key: canary[key] for key in label} == label
    assert (service["stable_name"], canary["name"]) == ("stable", "v2-sft")


@pytest.mark.slow
def test_plan_says_that_the_version_was_rolled_back_and_why(
    chat: FakeController, deploy: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("slow", "--message", "first try") == 0
    assert run(["rollback", "chat", "--reason", "it rambles", "--wait", "--timeout", "20s"]) == 0
    arguments = ("plan", "chat", "--model", str(tmp_path / "v2-sft"), "--quick")

    text = " ".join(printed(capsys, *arguments, code=3).split())
    assert "this version was rolled back on 20" in text
    assert "it rambles" in text.split("was rolled back on")[1]
    assert "by alice (admin): first try" in text
    planned = document(capsys, *arguments, code=3)
    [attempt], [refusal] = planned["attempts"], planned["refusals"]
    assert (attempt["phase"], attempt["actor"]) == ("rolled_back", "alice (admin)")
    assert (refusal["exit_code"], refusal["text"].endswith("or give --retry")) == (3, True)


@pytest.mark.slow
def test_the_name_outlives_the_promotion(
    chat: FakeController, deploy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("fast", "--name", "v2.1", "--wait", "--timeout", "20s") == 0

    assert document(capsys, "status", "chat")["stable_name"] == "v2.1"
    assert "(v2.1)" in printed(capsys, "list")


@pytest.mark.slow
def test_a_name_of_two_lines_is_refused(
    chat: FakeController, deploy: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = chat.picture()
    capsys.readouterr()

    assert deploy("slow", "--name", "a\nb") == 2
    assert "is not one printable line" in capsys.readouterr().err
    assert chat.picture() == before


@pytest.mark.slow
def test_a_version_keeps_its_id_on_the_way_through_an_endpoint(
    chat: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sizes that `up` chose were lost with the endpoint: a rejected version came back as a new one."""
    first = document(capsys, "status", "chat")["stable"]
    fast = str(tmp_path / "fast.yaml")
    endpoint = ("deploy", "chat", "--url", "http://127.0.0.1:9/v1", "--policy", fast)
    assert run([*endpoint, "--wait", "--timeout", "20s"]) == 0

    planned = document(capsys, "plan", "chat", "--model", str(tmp_path / "stable"), "--quick")

    assert planned["canary"] == first
