"""`canaryctl replay`: a workload through a router, to two real endpoints, judged like live traffic."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli.backtest_plan import replay_stage
from controller.cli.main import run
from controller.cli.workload import read_workload
from controller.errors import BadInput
from controller.spec.service import parse_policy
from evaluation.policy.gates import StagePlan
from serving.loopback import free_ports
from tests.fakes.judge_endpoint import judge_endpoint

# Guards alone decide: a test has no time for a proof of quality.
POLICY = "gates: {error: {metric: error, kind: rate, threshold: 1.5, alpha_share: 0.5}}\n"


def _chat(body: dict[str, Any]) -> tuple[int, Any]:
    message = {"role": "assistant", "content": f"You said {body['messages'][0]['content']}."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {"id": "c", "object": "chat.completion", "model": body.get("model"), "choices": [choice]}


def _workload(folder: Path, count: int) -> Path:
    lines = [{"messages": [{"role": "user", "content": f"ann{n}@example.com"}]} for n in range(count)]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def _broken(_body: dict[str, Any]) -> tuple[int, Any]:
    return 500, {"error": {"message": "out of memory"}}


@pytest.mark.slow
def test_a_canary_that_fails_is_rolled_back_and_its_records_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, answers = tmp_path / "records.jsonl", tmp_path / "answers.jsonl"
    with judge_endpoint(_chat) as stable, judge_endpoint(_broken) as canary:
        arguments = ["replay", str(_workload(tmp_path, 60)), "--against", f"{stable}/v1,{canary}/v1"]
        arguments += ["--records", str(records), "--answers", str(answers), "-o", "json", "--redact"]
        code = run(arguments)

    out, err = capsys.readouterr()
    assert (code, json.loads(out)["decision"]) == (5, "rollback"), err
    kept = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(kept) == 60
    assert {one["assigned_by"] for one in kept} == {"request"}
    assert all(one["outcome"] == ("fallback" if one["arm"] == "canary" else "answered") for one in kept)
    said = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {one["id"] for one in said} == {one["request_id"] for one in kept}
    assert sorted(one["request"] for one in said) == list(range(1, 61))
    assert "example.com" not in answers.read_text()  # sent without it
    assert stat.S_IMODE(answers.stat().st_mode) == 0o600
    assert run(["backtest", str(records), "-o", "json"]) == 5  # the same again, from the file


@pytest.mark.slow
def test_equal_endpoints_are_not_rolled_back_and_models_are_asked_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def both(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body["model"])
        return _chat(body)

    with judge_endpoint(both) as url:
        arguments = ["replay", str(_workload(tmp_path, 40)), "--against", f"{url}/v1,{url}/v1"]
        code = run([*arguments, "--model", "old,new", "--rate", "400", "-o", "json"])

    assert (code, json.loads(capsys.readouterr().out)["decision"]) == (6, "undecided")
    assert len(asked) == 42  # the first one to both, before
    assert set(asked) == {"old", "new"}


@pytest.mark.slow
def test_an_endpoint_at_which_nothing_listens_is_named_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    asked: list[dict[str, Any]] = []

    def noted(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body)
        return _chat(body)

    with judge_endpoint(noted) as stable:
        gone = f"http://127.0.0.1:{port}/v1"
        code = run(["replay", str(_workload(tmp_path, 3)), "--against", f"{stable}/v1,{gone}"])

    assert (code, asked) == (4, [])
    assert f"--against {gone}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("who", ["stable", "canary"])
@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_an_endpoint_that_refuses_the_key_is_named_and_nothing_is_judged(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    key: str | None,
) -> None:
    monkeypatch.setenv("THE_KEY", key or "")

    def refuses(_body: dict[str, Any]) -> tuple[int, Any]:
        return 401, {"error": {"message": "no such key sk-wrong"}}

    with (
        judge_endpoint(refuses if who == "stable" else _chat) as stable,
        judge_endpoint(refuses if who == "canary" else _chat) as canary,
    ):
        arguments = ["replay", str(_workload(tmp_path, 60)), "--against", f"{stable}/v1,{canary}/v1"]
        code = run([*arguments, *(["--api-key-env", "THE_KEY"] if key else [])])
        refusing = stable if who == "stable" else canary

    out, err = capsys.readouterr()
    remedy = "refuses the key of THE_KEY (status 401); check it" if key else "asks for a key (status 401)"
    assert (code, out) == (4, "")
    assert f"--against {refusing}/v1 {remedy}" in err
    assert "sk-wrong" not in err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--against", "http://a/v1"], "is not two URLs"),
        (["--against", "http://a/v1,http://a/v1"], "names http://a/v1 twice"),
        (["--against", "http://a/v1,http://b/v1", "--at-once", "0"], "--at-once 0 is outside 1..256"),
        (["--against", "http://a/v1,http://b/v1", "--rate", "0"], "--rate 0 is outside"),
        (
            ["--against", "http://a/v1,http://b/v1", "--model", "a,b,c"],
            "--model 'a,b,c' is not one name or two",
        ),
        (["--against", "ftp://a,http://b/v1"], "--against: 'ftp://a' is not http"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert run(["replay", str(_workload(tmp_path, 1)), *more]) == 2
    assert said in capsys.readouterr().err


def test_a_user_name_in_an_address_is_refused_and_shown_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against = "http://ann:s3cret@127.0.0.1:9/v1,http://b/v1"
    code = run(["replay", str(_workload(tmp_path, 1)), "--against", against])

    said = capsys.readouterr()
    assert code == 2
    assert "holds a user name or password" in said.err
    assert "s3cret" not in said.err + said.out


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--records", "--answers"])
def test_a_file_that_cannot_be_written_is_named_before_anything_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    asked: list[dict[str, Any]] = []

    def noted(body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(body)
        return _chat(body)

    file = tmp_path / "none" / "file.jsonl"
    with judge_endpoint(noted) as one, judge_endpoint(noted) as two:
        arguments = ["replay", str(_workload(tmp_path, 3)), "--against", f"{one}/v1,{two}/v1"]
        code = run([*arguments, option, str(file)])

    assert (code, asked) == (2, [])
    assert f"{option} {file}: No such file or directory; name a file that can be written" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_an_answers_file_that_others_could_read_is_made_private(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.touch(mode=0o644)
    with judge_endpoint(_chat) as one, judge_endpoint(_chat) as two:
        arguments = ["replay", str(_workload(tmp_path, 3)), "--against", f"{one}/v1,{two}/v1"]
        run([*arguments, "--answers", str(answers)])

    assert stat.S_IMODE(answers.stat().st_mode) == 0o600


@pytest.mark.slow
def test_answers_that_cannot_be_written_end_the_replay_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_endpoint(_chat) as one, judge_endpoint(_chat) as two:
        arguments = ["replay", str(_workload(tmp_path, 40)), "--against", f"{one}/v1,{two}/v1"]
        code = run([*arguments, "--answers", "/dev/full"])

    assert code == 2
    assert "--answers /dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.slow
def test_no_proxy_of_the_environment_stands_between_a_replay_and_its_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with judge_endpoint(_chat) as one, judge_endpoint(_chat) as two:
        arguments = ["replay", str(_workload(tmp_path, 20)), "--against", f"{one}/v1,{two}/v1"]
        code = run([*arguments, "-o", "json"])

    assert code == 6, capsys.readouterr().err


def test_a_workload_is_bodies_or_the_batch_form(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    batch = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
    path.write_text("\n".join(json.dumps(one) for one in [{"messages": []}, {"prompt": "a"}, batch]) + "\n\n")

    found = read_workload(path)

    assert [one.path for one in found] == ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    assert json.loads(found[2].body) == {"input": "x"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is no JSON"),
        ("[" * 100_000, "line 2: is no JSON"),
        ("7", "line 2: is no JSON object"),
        ('{"input": "x"}', "line 2: has neither messages nor prompt"),
        ('{"url": "/v1/models", "body": {}}', "line 2: url '/v1/models' asks no model"),
        ('{"url": "/metrics", "body": {}}', "line 2: url '/metrics' asks no model"),
        ('{"url": "/v1/chat/completions", "body": 1}', "line 2: needs method POST"),
        ('{"url": "/v1/chat/completions", "body": {}, "headers": {}}', "line 2: unknown key 'headers'"),
        ('{"messages": [], "background": true}', "line 2: a background request"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"messages": []}\n' + line + "\n")

    with pytest.raises(BadInput, match=r"w\.jsonl " + said.replace("(", r"\(")):
        read_workload(path)


def test_many_broken_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("x\n" * 12)

    with pytest.raises(BadInput) as refused:
        read_workload(path)

    assert (len(refused.value.lines), refused.value.lines[-1]) == (6, "7 further lines are wrong")


def test_tokens_of_a_replay_have_a_cost_by_the_prices_of_each_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def counted(body: dict[str, Any]) -> tuple[int, Any]:
        status, answer = _chat(body)
        return status, {**answer, "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}

    prices = tmp_path / "prices.yaml"
    prices.write_text("{input: 1, output: 10, versions: {canary: {input: 2, output: 10}}}")
    with judge_endpoint(counted) as stable, judge_endpoint(counted) as canary:
        arguments = ["replay", str(_workload(tmp_path, 40)), "--against", f"{stable}/v1,{canary}/v1"]
        run([*arguments, "--prices", str(prices), "-o", "json"])

    costs = json.loads(capsys.readouterr().out)["costs"]
    assert costs["currency"] == "USD"
    means = [costs[arm]["cost"]["mean"] for arm in ("stable", "canary")]
    assert means == pytest.approx([0.002, 0.003])
    assert costs["stable"]["cost"]["answers"] + costs["canary"]["cost"]["answers"] == 40


@pytest.mark.slow
def test_a_policy_of_several_stages_is_one_stage_with_all_their_proofs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage of another weight than the replay's own has no rows, so by it nothing could be promoted."""
    margins = "duration: 1m, margins: {error: 5.0}, floor: 0.1"
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "gates: {quality: null, hallucination: null, ttft_shape: null, latency_shape: null, "
        "latency_p99: null}\n"
        f"stages: [{{weight: 10%, min_canary: 150, {margins}}}, {{weight: 50%, min_canary: 20, {margins}}}]\n"
    )
    records = tmp_path / "records.jsonl"
    with judge_endpoint(_chat) as stable, judge_endpoint(_chat) as canary:
        arguments = ["replay", str(_workload(tmp_path, 400)), "--against", f"{stable}/v1,{canary}/v1"]
        arguments += ["--policy", str(policy), "--records", str(records), "-o", "json"]
        code = run(arguments)

    out, err = capsys.readouterr()
    assert (code, json.loads(out)["decision"]) == (0, "promote"), err
    assert "what the policy's 2 stages must (error 5; floor 0.1; min_canary 150)" in err
    assert run(["backtest", str(records), "--policy", str(policy)]) == 0  # the same again, from the file


def test_a_replays_stage_has_the_narrowest_margins_of_the_policy() -> None:
    """The example that the documentation begins with."""
    policy = parse_policy(yaml.safe_load(Path("examples/first-policy.yaml").read_text()))

    assert replay_stage(policy) == StagePlan(0.5, 1000, {"error": 3.0, "latency_shape": 1.2}, 0.01)


@pytest.mark.slow
def test_a_workload_too_short_for_a_promotion_is_said_before_it_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_endpoint(_chat) as stable, judge_endpoint(_chat) as canary:
        arguments = ["replay", str(_workload(tmp_path, 30)), "--against", f"{stable}/v1,{canary}/v1"]
        code = run([*arguments, "--policy", "examples/first-policy.yaml"])

    said = capsys.readouterr().err
    assert code == 6
    assert "about 15 of them go to the canary, and the policy's min_canary is 1000" in said
    assert "no rows of stage" not in said
    assert "next: send more requests" in said
