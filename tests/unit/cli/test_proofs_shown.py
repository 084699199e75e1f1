"""What each stage proved, with its figures: shown after the rollout has ended, too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console, Group, RenderableType

from controller.cli.main import run
from controller.cli.render import rollout_parts
from controller.rollout.observation import EvidenceStatus
from controller.rollout.serialization import state_from_json, state_to_json
from controller.rollout.state import PassedStage, Phase
from controller.rollout.twin_report import passed_stage
from controller.views.rollout import rollout_view
from evaluation.report import GateReport, Verdict
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat
from tests.fakes.view_maker import in_stage

ERROR = GateReport(
    "error", "error", "promotion", Verdict.PASS, 4.0, 3.1, "error < 5x or < +0.05 proven", 312, 1240,
    0.011, 0.009, decided_at_s=160.0, decided_canary=300,
)  # fmt: skip
SLOW = GateReport(
    "latency_shape", "latency_ms", "promotion", Verdict.UNDECIDED, 1.0, 3.1,
    "latency_shape: not slower throughout than 1.2x not proven yet", 300, 1200, 793.7, 801.2, statistic="p50",
)  # fmt: skip
AFTER_LOAD = GateReport(
    "latency_shape", "latency_ms", "rollback", Verdict.INVALID, 1.0, 5.8,
    "not comparable: canary load 19.0x stable's", 900, 1300, 793.7, 801.2, statistic="p50",
)  # fmt: skip
EVIDENCE = EvidenceStatus(0, Verdict.PASS, gates=(ERROR, SLOW), canary_requests=312, canary_total=312)


def shown(parts: Sequence[RenderableType], width: int = 160) -> str:
    console = Console(width=width, record=True)
    console.print(Group(*parts))
    return console.export_text()


def test_a_passed_stage_keeps_what_each_gate_had_proven() -> None:
    passed = passed_stage(in_stage(), "waived", EVIDENCE, 200.0)
    state = in_stage(stage=2, phase=Phase.SUCCEEDED, passed=(passed,))

    error, slow = state_from_json(state_to_json(state)).passed[0].proofs
    assert (error.gate, error.is_proven, error.canary, error.n_canary, error.decided_canary) == (
        "error", True, 0.009, 312, 300,
    )  # fmt: skip
    assert (slow.gate, slow.is_proven, slow.statistic, slow.decided_canary) == (
        "latency_shape", False, "p50", None,
    )  # fmt: skip


def test_a_stage_that_an_older_release_stored_has_no_figures() -> None:
    document = json.loads(
        state_to_json(in_stage(passed=(passed_stage(in_stage(), "proven", EVIDENCE, 200.0),)))
    )
    del document["rollout"]["passed"][0]["proofs"]

    state = state_from_json(json.dumps(document))

    assert state.passed[0].proofs == ()
    text = shown(rollout_parts(rollout_view(replace(state, stage=2, phase=Phase.SUCCEEDED)), is_wide=False))
    assert (
        "stage 1, 10 %: proven after 300 canary requests in all and 1 min 40 s at this weight, last by error"
        in text
    )


def test_a_promotion_shows_what_was_proven_at_each_stage() -> None:
    """Its evidence after the end cannot be compared any more; what the stages proved has not changed."""
    first = passed_stage(in_stage(), "proven", replace(EVIDENCE, gates=(ERROR,)), 200.0)
    second = replace(first, stage=1, weight_bp=5000)
    state = in_stage(stage=2, phase=Phase.SUCCEEDED, weight_bp=0, passed=(first, second))
    now = EvidenceStatus(
        1, Verdict.INVALID, gates=(replace(ERROR, side="rollback", verdict=Verdict.UNDECIDED), AFTER_LOAD)
    )

    text = shown(rollout_parts(rollout_view(state, now), is_wide=False))

    assert "stage 1, 10 %: proven after 300 canary requests in all and 1 min 40 s at this weight" in text
    assert "error < 5x or < +0.05; canary 0.9 % (n 312), stable 1.1 % (n 1,240)" in text
    [row] = [line for line in text.splitlines() if line.startswith("error ") and "UNDECIDED" in line]
    assert "PASS at 10 %, 50 %" in row
    assert "INVALID" not in text
    assert "19.0x" not in text


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("waived", "stage 1, 10 %: NOT PROVEN, waived by a person"),
        ("point_estimates", "stage 1, 10 %: NOT PROVEN, promoted on point estimates"),
    ],
)
def test_a_promotion_without_proof_does_not_read_like_a_proven_one(how: str, words: str) -> None:
    passed = passed_stage(in_stage(), how, EVIDENCE, 200.0)  # type: ignore[arg-type]
    text = shown(
        rollout_parts(rollout_view(in_stage(stage=2, phase=Phase.SUCCEEDED, passed=(passed,))), is_wide=False)
    )

    assert words in text
    assert "open: latency_shape: not slower throughout than 1.2x not proven yet; canary p50 801.2 ms" in text
    assert "stage 2, 50 %: NOT PROVEN, skipped" in text


def test_a_stage_with_nothing_to_prove_says_so() -> None:
    passed = PassedStage(0, 1000, "proven", 200.0, 60.0, 50)
    text = shown(rollout_parts(rollout_view(in_stage(stage=1, passed=(passed,))), is_wide=False))

    assert (
        "stage 1, 10 %: passed after 50 canary requests in all and 1 min at this weight, no gate to prove"
        in text
    )


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    for seed, name in enumerate(("stable", "other")):
        write_checkpoint(tmp_path / name, seed=seed)
    with serving_chat(at_home(tmp_path / "home", monkeypatch), tmp_path / "stable", is_loaded=True) as fake:
        yield fake


@pytest.mark.slow
def test_status_and_history_show_the_proofs_of_a_rollout_that_ended(
    chat: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.evidence.gates = (ERROR,)
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({"stages": [{"weight": "10%"}, {"weight": "50%"}], "bake": "0s"}))
    assert run(["deploy", "chat", "--model", str(tmp_path / "other"), "--policy", str(policy), "--wait"]) == 0
    chat.evidence.gates = ()
    rollout = chat.store.rollouts("chat")[0].id
    figures = "error < 5x or < +0.05; canary 0.9 % (n 312), stable 1.1 % (n 1,240)"

    def printed(*arguments: str) -> str:
        capsys.readouterr()
        assert run(list(arguments)) == 0
        return capsys.readouterr().out

    assert figures in printed("status", "chat")
    assert "10 % proven: error; 50 % proven: error" in printed("history", "chat")
    assert figures in printed("history", "chat", "--rollout", rollout)
    view = json.loads(printed("history", "chat", "--rollout", rollout, "-o", "json"))
    assert view["passed"][1]["proofs"][0]["canary"] == 0.009


@pytest.mark.slow
def test_a_rollout_that_is_not_known_is_refused(
    chat: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["history", "chat", "--rollout", "r-none"]) == 2
    assert "chat has no rollout r-none; canaryctl history chat lists those it had" in capsys.readouterr().err
