"""The benchmark of judged mirrored pairs, made short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import judged_pairs
from benchmarks.judged_pairs import CASES, Case, until_rollback


def test_its_policy_is_a_rollouts_with_mirror_and_a_judge() -> None:
    gates = {gate.name: gate for gate in judged_pairs.policy_of_pairs().gates}

    assert gates["quality"].mirrored
    assert not gates["error"].mirrored
    assert "hallucination" not in gates


def test_the_pair_of_the_decision_is_found_within_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged_pairs, "MOST_PAIRS", 250)
    policy = judged_pairs.policy_of_pairs()
    late = until_rollback(policy, Case((0.0, 0.9)), 3)
    assert late is not None
    monkeypatch.setattr(judged_pairs, "CHUNK", 1)

    assert until_rollback(policy, Case((0.0, 0.9)), 3) == late
    assert 8 < late < 60


def test_a_twin_is_not_rolled_back_and_figures_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(judged_pairs, "MOST_PAIRS", 100)
    monkeypatch.setattr(judged_pairs, "CHUNK", 50)
    judged_pairs.main(["--runs", "2", "--out", str(tmp_path / "pairs.json")])
    report = json.loads((tmp_path / "pairs.json").read_text())

    assert [case["case"] for case in report["cases"]] == list(CASES)
    assert report["cases"][2]["rolled_back"] == 0
    assert json.loads(capsys.readouterr().out) == report
