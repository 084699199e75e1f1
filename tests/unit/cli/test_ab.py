"""`canaryctl ab`: judging files, sample sizes, and the API routes behind create, status and stop."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from controller.ab.results import AbEvaluator, AbView, ab_view
from controller.ab.service import AbTests
from controller.ab.spec import AbSpec
from controller.api.ab import add_ab_routes
from controller.api.slow_calls import SlowCalls
from controller.auth import Identity, Role
from controller.cli.ab_show import headline, next_step, view_table
from controller.cli.main import app as cli
from controller.cli.main import run
from controller.cli.output import console
from controller.errors import BadInput, BadSpec
from controller.rollout.state import Phase
from controller.store.rows import AbOutcome, AbRow
from tests.fakes.rollouts import a_rollout

VIEW = ab_view(
    AbRow("ab-1", "chat", "r-1", "{}", created_at_s=1.0, ended_at_s=None),
    AbEvaluator(
        AbSpec(version={"model": "/b"}), [AbOutcome(n, n % 2 == 1, 0.5, float(n % 2), n) for n in range(80)]
    ),
    replace(a_rollout(), phase=Phase.STAGE, acked_at_s=1.0),
)


def write_scores(path: Path, *, n: int = 900) -> Path:
    """A file of scores in two topics; B is better in one of them."""
    rng = np.random.default_rng(2)
    lines = []
    for i in range(n):
        arm, topic = int(rng.random() < 0.5), ("code", "chat")[int(rng.random() < 0.5)]
        score = float(rng.random() < (0.9 if arm and topic == "code" else 0.5))
        row = {"t_s": i, "unit": f"u{i}", "arm": arm, "w": 0.5, "assigned_by": "request"}
        lines.append(json.dumps(row | {"quality": score, "topic": topic}) + "\n")
    path.write_text("".join(lines))
    return path


def run_ab(*arguments: str) -> None:
    cli(args=["ab", *arguments], standalone_mode=False)


def verdicts(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {row["category"]: row["verdict"] for row in json.loads(capsys.readouterr().out)["rows"]}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--fixed"]])
def test_judge_reports_the_whole_file_and_each_category(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    run_ab("judge", str(write_scores(tmp_path / "e.jsonl")), "--by", "topic", "-o", "json", *mode)

    assert verdicts(capsys) == {"(all)": "b better", "code": "b better", "chat": "no difference shown"}


@pytest.mark.parametrize(("n", "mode", "code"), [(2000, [], 0), (90, ["--fixed"], 6), (40, [], 6)])
def test_judge_exits_0_only_when_it_names_the_better_side(
    tmp_path: Path, n: int, mode: list[str], code: int
) -> None:
    assert run(["ab", "judge", str(write_scores(tmp_path / "e.jsonl", n=n)), *mode]) == code


def test_judge_notes_the_method_and_the_correction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scores(tmp_path / "e.jsonl", n=90)
    run_ab("judge", str(path), "--by", "topic", "--fixed", "-o", "json")

    assert json.loads(capsys.readouterr().out)["notes"] == [
        "too few: a fixed test needs at least 30 units per side",
        "p and verdict of 2 categories are corrected for their number (Holm)",
        "fixed horizon, alpha 0.05; the interval is of the win rate",
    ]


def test_judge_names_no_winner_when_one_side_lacks_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in write_scores(tmp_path / "e.jsonl").read_text().splitlines()]
    for row in rows:
        if row["arm"] and row["quality"] == 0.0:
            del row["quality"]
    path = tmp_path / "partial.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_ab("judge", str(path), "-o", "json")

    report = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in report["rows"]] == ["invalid"]
    assert report["notes"][0] == (
        "invalid: outcomes are missing more often on one side; grade both sides alike, or, where it fails "
        "more often, compare the metric error"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "100%"], "ab: split 100 % leaves one side empty; use 50%"),
        (["--fixed", "29"], "ab.sample_size 29 is below 30; raise it"),
        (["--metric", "speed"], "ab.metric 'speed' is unknown"),
    ],
)
def test_create_refuses_a_malformed_test_without_a_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))

    with pytest.raises(BadSpec, match=message):
        run_ab("create", "chat", "--model", str(tmp_path), *options)


def test_next_step_follows_from_the_phase() -> None:
    steps = [next_step(VIEW), next_step(VIEW.model_copy(update={"phase": "ended"}))]

    assert steps == [
        "end it and remove B: canaryctl ab stop chat",
        "start another: canaryctl ab create chat; take B to production: canaryctl deploy chat --model DIR "
        "(or --url URL)",
    ]


@pytest.mark.parametrize(("phase", "words"), [("loading", "NO DATA YET"), ("ended", "NO DATA")])
def test_a_test_without_a_unit_is_no_result(phase: str, words: str) -> None:
    """It was NO DIFFERENCE SHOWN with p 1, and B was to be taken to production."""
    view = VIEW.model_copy(
        update={"phase": phase, "verdict": "no difference shown", "n_a": 0, "n_b": 0, "p_value": 1.0}
    )
    out = console()
    with out.capture() as printed:
        out.print(view_table(view))

    assert headline(view).plain.startswith(f"{words}  quality")
    assert re.search(r"^p +- ", printed.get(), re.MULTILINE)
    assert "deploy" not in next_step(view)


def test_the_words_of_a_files_table_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ab", "judge", str(write_scores(tmp_path / "e.jsonl"))]) in (0, 6)
    out = capsys.readouterr().out
    assert "win rate: probability that B's outcome beats A's" in out
    assert "d: Cohen's d, the difference in standard deviations" in out


def test_judge_names_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the file has no column latency_ms"):
        run_ab("judge", str(write_scores(tmp_path / "e.jsonl", n=40)), "--metric", "latency_ms")
    with pytest.raises(BadInput, match="lacks tenant"):
        run_ab("judge", str(write_scores(tmp_path / "e.jsonl", n=40)), "--by", "tenant")
    with pytest.raises(BadInput, match="metric 'speed' is unknown"):
        run_ab("judge", str(write_scores(tmp_path / "e.jsonl", n=40)), "--metric", "speed")


def test_size_prints_its_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    run_ab("size", "--effect", "0.1", "--sd", "0.2")

    assert "assumed: sd 0.2, alpha 0.05 two-sided, power 0.8, B gets 50%" in capsys.readouterr().out


def test_size_with_a_baseline_covers_one_to_twenty_percent(capsys: pytest.CaptureFixture[str]) -> None:
    run_ab("size", "--baseline", "0.8", "-o", "json")

    relative = [round(row["relative"], 3) for row in json.loads(capsys.readouterr().out)]
    assert (relative[0], relative[-1]) == (0.01, 0.2)


@pytest.mark.parametrize(
    "bad", [[], ["--effect", "0.1", "--baseline", "0.8"], ["--effect", "-1"], ["--effect", "1e-300"]]
)
def test_an_impossible_size_is_bad_input(bad: list[str]) -> None:
    with pytest.raises(BadInput, match="ab size: "):
        run_ab("size", *bad)


def test_the_view_begins_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(view_table(VIEW))

    assert capsys.readouterr().out.startswith("B IS BETTER  quality (higher is better), chat, ab-1")


class FakeAbTests(AbTests):
    """A/B tests that return a fixed view."""

    def __init__(self) -> None:
        self.created: list[tuple[str, str]] = []

    def create(self, service: str, body: object, identity: Identity) -> AbView:
        self.created.append(("create", identity.name))
        return VIEW

    def status(self, service: str) -> AbView:
        return VIEW

    def stop(self, service: str, identity: Identity) -> tuple[str, str]:
        return "asked", "stopped"


def test_api_routes_create_show_and_stop_a_test() -> None:
    app, tests = FastAPI(), FakeAbTests()
    who = Identity("ada", Role.OPERATOR)
    add_ab_routes(app, tests, viewer=lambda: who, operator=lambda: who, slow=SlowCalls())
    client = TestClient(app)

    assert client.post("/v1/services/chat/ab", json={"version": {"model": "/b"}}).status_code == 201
    assert AbView.model_validate(client.get("/v1/services/chat/ab").json()) == VIEW
    stopped = client.delete("/v1/services/chat/ab").json()
    assert (stopped["outcome"], stopped["text"]) == ("asked", "stopped")
    assert tests.created == [("create", "ada")]


@pytest.mark.slow
def test_judge_table_shows_cohens_d(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ab("judge", str(write_scores(tmp_path / "e.jsonl")), "-o", "json")
    [whole] = json.loads(capsys.readouterr().out)["rows"]
    run_ab("judge", str(tmp_path / "e.jsonl"))

    assert f"{whole['cohens_d']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": None}, "quality: no unit has a randomised side and an outcome"),
        ({"w": 0.0, "arm": 0}, "quality: no unit has a randomised side and an outcome"),
        ({"assigned_by": "force"}, "quality: no unit has a randomised side and an outcome"),
        ({"assigned_by": "zzz"}, "assigned_by 'zzz' is unknown"),
        ({"unit": None}, "line 1: it has no unit"),
    ],
)
def test_judge_refuses_a_file_without_comparable_units(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_scores(tmp_path / "e.jsonl", n=40)
    rows = [json.loads(line) | change for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(BadInput, match=message):
        run_ab("judge", str(path))


def test_create_refuses_a_twin_policy_in_one_line(tmp_path: Path) -> None:
    policy = tmp_path / "twin.yaml"
    policy.write_text("twin: true\n")

    with pytest.raises(BadSpec, match="policy has twin, which runs A against itself; leave it out"):
        run_ab("create", "chat", "--model", "/b", "--policy", str(policy))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--fixed"]])
def test_a_category_that_the_answer_decides_names_no_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    """B's answers below 0.5 end by `length`: the same answers on both sides, but not in each category."""
    rng = np.random.default_rng(3)
    lines = []
    for i in range(1500):
        arm, score = int(rng.random() < 0.5), float(rng.random())
        topic = "length" if arm and score < 0.5 else "stop"
        row = {"t_s": i, "unit": f"u{i}", "arm": arm, "w": 0.5, "assigned_by": "request"}
        lines.append(json.dumps(row | {"quality": score, "topic": topic}) + "\n")
    (tmp_path / "e.jsonl").write_text("".join(lines))

    run_ab("judge", str(tmp_path / "e.jsonl"), "--by", "topic", "-o", "json", *mode)

    report = json.loads(capsys.readouterr().out)
    assert {row["category"]: row["verdict"] for row in report["rows"]} == {
        "(all)": "no difference shown",
        "length": "invalid",
        "stop": "invalid",
    }
    assert next(row for row in report["rows"] if row["category"] == "length")["interval"] is None
    assert [note for note in report["notes"] if "was topic known before the draw?" in note]
