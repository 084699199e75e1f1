"""Twin runs through the command line: stable against itself, measured and never promoted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from controller.cli.main import run
from controller.rollout.state import Phase
from evaluation.report import GateReport, Verdict
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat

FAST = {"stages": [{"weight": "10%"}, {"weight": "50%"}], "bake": "0s"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("stable", "other")):
        write_checkpoint(tmp_path / name, seed=seed)
    return tmp_path


@pytest.fixture
def chat(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    with serving_chat(at_home(tmp_path / "home", monkeypatch), models / "stable", is_loaded=True) as fake:
        yield fake


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[object], str]:
    def write(content: object) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.slow
def test_a_twin_run_is_proven_and_does_not_change_what_is_served(
    chat: FakeController, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    stable = chat.store.service("chat").stable

    code = run(["deploy", "chat", "--twin", "--policy", policy(FAST), "--wait", "-o", "json"])

    view = json.loads(capsys.readouterr().out)
    assert (code, view["phase"], view["twin"]) == (0, "succeeded", True)
    assert view["reason"].startswith("twin run: nothing to promote; 10 % passed after")
    assert [one["how"] for one in view["passed"]] == ["proven", "proven"]
    table = chat.traffic.tables["chat"]
    assert (chat.store.service("chat").stable, table.stable, table.canary) == (stable, stable, None)
    assert set(chat.fleet.engines) == {("chat", stable)}


@pytest.mark.slow
def test_a_gate_that_fires_on_a_twin_is_a_false_rollback_and_it_can_be_repeated(
    chat: FakeController, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    chat.evidence.harm = GateReport("error", "error", "rollback", Verdict.FAIL, 6.0, 5.8, "5 %", 90, 900)
    arguments = ["deploy", "chat", "--twin", "--policy", policy(FAST), "--wait"]

    codes = [run(arguments), run(arguments)]

    assert codes == [5, 5]
    assert "both arms are one model: a false rollback" in capsys.readouterr().err


@pytest.mark.slow
def test_a_policy_file_can_request_a_twin_run(chat: FakeController, policy: Callable[[object], str]) -> None:
    code = run(["deploy", "chat", "--policy", policy(FAST | {"twin": True}), "--wait"])

    state = chat.store.rollouts("chat")[0].state
    assert (code, json.loads(state)["rollout"]["plan"]["twin"]) == (0, True)


@pytest.mark.slow
def test_plan_shows_a_twin_run_without_starting_it(
    chat: FakeController, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["plan", "chat", "--twin", "--policy", policy(FAST)])

    shown = capsys.readouterr().out
    assert (code, chat.store.rollouts("chat")) == (0, ())
    assert "stable against itself" in shown
    assert "nothing is promoted" in shown
    assert "bake" not in shown


@pytest.mark.slow
def test_status_shows_a_twin_run(
    chat: FakeController, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    slow = policy({"stages": [{"weight": "10%", "duration": "1h"}]})
    assert run(["deploy", "chat", "--twin", "--policy", slow]) == 0
    capsys.readouterr()

    run(["status", "chat"])

    shown = capsys.readouterr().out
    assert "a twin run: both arms are one model, and nothing will be promoted" in shown
    assert "nothing to promote" in shown
    assert run(["rollback", "chat", "--wait"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--twin", "--model", "OTHER"], 2, "a twin run compares stable with itself; omit --model"),
        (["--twin", "--engine", "max_model_len=64"], 2, "a twin run compares stable with itself"),
        (["--model", "STABLE"], 3, "nothing in it changes; deploy another version, or run it against itself"),
    ],
)
def test_a_twin_run_accepts_only_the_version_in_production(
    chat: FakeController,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    line: str,
) -> None:
    places = {"OTHER": str(models / "other"), "STABLE": str(models / "stable")}
    before = chat.picture()

    ended = run(["deploy", "chat", *(places.get(one, one) for one in arguments)])

    assert ended == code
    assert line in capsys.readouterr().err
    assert chat.picture() == before


@pytest.mark.slow
def test_a_twin_whose_files_changed_is_refused(
    chat: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(models / "stable")
    write_checkpoint(models / "stable", seed=7)
    before = chat.picture()

    ended = run(["deploy", "chat", "--twin"])

    assert ended == 3
    assert "its files or the engine release have changed since" in capsys.readouterr().err
    assert chat.picture() == before


@pytest.mark.slow
def test_a_rollback_after_a_twin_run_has_no_effect(
    chat: FakeController, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["deploy", "chat", "--twin", "--policy", policy(FAST), "--wait"]) == 0
    capsys.readouterr()

    code = run(["rollback", "chat"])

    assert code == 0
    assert "already serving" in capsys.readouterr().err
    assert chat.store.rollouts("chat")[0].ended_at_s is not None
    assert json.loads(chat.store.rollouts("chat")[0].state)["rollout"]["phase"] == Phase.SUCCEEDED
