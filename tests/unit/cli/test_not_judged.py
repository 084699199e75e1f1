"""A gate whose metric never came in stable's traffic: printed by plan, asked for by deploy, recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import yaml

from controller.cli.main import run
from controller.planning.baseline import MeasuredBaseline, ScoreStats
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

SEEDS = count(1)
# A service without a grader of hallucinations, and without streams.
NO_GRADER = MeasuredBaseline(
    requests=5000,
    settled=4500,
    events={"error": 50, "rejected": 0, "truncated": 1, "empty": 0, "cancelled": 0},
    scores={"quality": ScoreStats(4000, 0.9, 0.1, 1.0)},
    values={"latency_ms": 4900},
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeController]:
    """A controller that serves `chat`, whose stable traffic has been measured."""
    home = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("CANARYCTL_HOME", str(home))
        fake = FakeController(home)
        fake.environment.traffic = NO_GRADER
        fake.serve()
        model = write_checkpoint(home / "stable")
        assert run(["up", "--service", "chat", "--model", str(model), "--no-wait"]) == 0
        yield fake
        fake.stop()


@pytest.fixture
def change(chat: FakeController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The rest of a `plan` or `deploy` of another checkpoint with this policy."""
    monkeypatch.setenv("CANARYCTL_HOME", str(chat.home))
    model = write_checkpoint(tmp_path / "other", seed=next(SEEDS))

    def arguments(**policy: object) -> list[str]:
        file = tmp_path / "policy.yaml"
        file.write_text(yaml.safe_dump(policy))
        return ["chat", "--model", str(model), "--policy", str(file)]

    return arguments


STAGES = [{"weight": "10%", "duration": "1h"}]


@pytest.mark.slow
def test_plan_prints_what_is_not_judged(
    change: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    planned = change(stages=STAGES)
    assert run(["plan", *planned, "--quick"]) == 2
    out, err = capsys.readouterr()
    allowed = run(["plan", *planned, "--quick", "--allow-unjudged", "no grader"])

    text = " ".join(out.split())
    assert err.startswith("deploy refuses it: hallucination NOT JUDGED")
    assert err.endswith("or deploy without this gate: --allow-unjudged REASON\n")
    assert allowed == 0
    assert "hallucination NOT JUDGED: none of stable's 4,500 requests has hallucinated" in text
    assert (
        "ttft_shape NOT JUDGED: none of stable's 5,000 requests has ttft_ms, because none was streamed"
        in text
    )
    assert "quality NOT JUDGED" not in text


@pytest.mark.slow
def test_deploy_asks_for_a_reason_and_records_it(
    chat: FakeController, change: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = change(stages=STAGES)
    before = chat.picture()
    capsys.readouterr()

    assert run(["deploy", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: hallucination NOT JUDGED")
    assert line.endswith("or deploy without this gate: --allow-unjudged REASON")
    assert chat.picture() == before

    assert run(["deploy", *arguments, "--allow-unjudged", "no grader yet"]) == 0
    row = chat.store.rollouts("chat")[0]
    request = json.loads(row.request)
    assert (request["allow_unjudged"], sorted(request["not_judged"])) == (
        "no grader yet",
        ["hallucination", "ttft_shape"],
    )
    assert not {"hallucination", "ttft_shape"} & set(request["gate"]["gates"])
    capsys.readouterr()
    assert run(["status", "chat"]) == 0
    assert "(no grader yet)" in " ".join(capsys.readouterr().out.split())
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0


@pytest.mark.slow
def test_a_gate_that_the_policy_names_is_refused_by_plan_and_deploy(
    chat: FakeController, change: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = change(stages=STAGES, gates={"hallucination": {"threshold": 0.4}})
    before = chat.picture()
    for command in ("plan", "deploy"):
        capsys.readouterr()

        assert run([command, *arguments, *(["--quick"] if command == "plan" else [])]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "the policy names it, so nothing is promoted without it" in line
        assert line.endswith("or remove it from the policy: gates: {hallucination: null}")
    assert chat.picture() == before


def test_a_blank_reason_is_no_reason(
    change: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run(["deploy", *change(stages=STAGES), "--allow-unjudged", " "]) == 2
    assert "allow_unjudged ' ' is not a reason" in capsys.readouterr().err


@pytest.mark.slow
def test_plan_and_deploy_warn_of_scores_that_have_not_come(
    chat: FakeController,
    change: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the first ten minutes nobody can say that no grader will ever send one."""
    monkeypatch.setattr(chat.environment, "traffic", MeasuredBaseline(5))
    arguments = change(stages=STAGES)
    warning = "hallucination: no score of hallucinated has come yet; nothing can be promoted without it"

    assert run(["plan", *arguments, "--quick"]) == 0
    assert warning in " ".join(capsys.readouterr().out.split())

    assert run(["deploy", *arguments]) == 0
    assert sum(line.startswith(f"warning: {warning}") for line in capsys.readouterr().err.splitlines()) == 1
    run(["status", "chat"])
    assert warning in " ".join(capsys.readouterr().out.split())
    run(["rollback", "chat", "--wait"])


@pytest.mark.slow
def test_deploy_names_the_gate_and_the_stage_that_stand_against_it_at_once(
    chat: FakeController,
    change: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat.environment, "rate", 2.0)
    stage = {"weight": "10%", "min_canary": 100_000, "deadline": "10m"}
    arguments = change(stages=[stage])
    capsys.readouterr()

    assert run(["deploy", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["hallucination", "stage"]
    assert lines[0].endswith("--allow-unjudged REASON")
    assert lines[1].endswith("--allow-unproven REASON deploys it anyway")
