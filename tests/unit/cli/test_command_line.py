"""The command line against a controller on fakes: what works, and every bad input of the issue."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controller.auth import Identity, Role
from controller.cli.main import run
from controller.rollout.actions import ProbeKind
from controller.rollout.state import Phase
from serving.loopback import free_ports
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

FAST = {"stages": [{"weight": "10%"}, {"weight": "50%"}], "bake": "0s"}
SLOW = {"stages": [{"weight": "10%", "duration": "1h"}]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder without a controller."""
    return at_home(tmp_path / "home", monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("stable", "twin", "other")):
        write_checkpoint(folder / name, seed=seed)
    return folder


@pytest.fixture
def chat(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeController]:
    """A controller of the test's own, serving `chat`."""
    yield from serving_chat(at_home(tmp_path / "home", monkeypatch), models)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[FakeController]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from serving_chat(at_home(tmp_path_factory.mktemp("shared") / "home", monkeypatch), models)


@pytest.fixture
def still(shared: FakeController, monkeypatch: pytest.MonkeyPatch) -> FakeController:
    """A controller serving `chat`, for tests that leave everything as it was."""
    at_home(shared.home, monkeypatch)
    return shared


def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARYCTL_HOME", str(home))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    home.mkdir(exist_ok=True)
    return home


def serving_chat(home: Path, models: Path) -> Iterator[FakeController]:
    fake = FakeController(home)
    fake.serve()
    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait"]) == 0
    until(lambda: "chat" in fake.traffic.tables, "stable is in the table")
    until(lambda: fake.fleet.engines, "stable is loaded")
    yield fake
    fake.stop()


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[object], str]:
    def write(content: object) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def until(holds: Callable[[], object], what: str) -> None:
    ends_at_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends_at_s, f"never came true: {what}"
        time.sleep(0.01)


def deploy(models: Path, name: str, policy: str, *more: str) -> int:
    return run(["deploy", "chat", "--model", str(models / name), "--policy", policy, *more])


# --- what works


def test_a_good_version_is_promoted_and_the_exit_code_says_so(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = chat.store.service("chat").stable

    code = deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s")

    assert code == 0
    assert chat.store.service("chat").stable != before
    assert "succeeded" in capsys.readouterr().out


def test_a_rollback_that_was_waited_for_ends_the_waiting_deploy_with_five(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")

    assert run(["rollback", "chat", "--reason", "it rambles", "--wait", "--timeout", "20s"]) == 0
    rows = chat.store.rollouts("chat")
    assert (len(rows), "it rambles" in rows[0].state) == (1, True)
    assert chat.traffic.tables["chat"].weight_bp == 0


def test_watch_ends_with_the_rollouts_exit_code(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    assert run(["rollback", "chat"]) == 0

    assert run(["watch", "chat", "--timeout", "20s"]) in (0, 5)
    until(lambda: chat.store.rollouts("chat")[0].ended_at_s, "the rollout is over")


def test_waiting_longer_than_the_timeout_is_six_and_the_rollout_goes_on(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = deploy(models, "twin", policy(SLOW), "--wait", "--timeout", "1s")

    assert code == 6
    assert "goes on" in capsys.readouterr().err
    assert chat.store.rollouts("chat")[0].ended_at_s is None


def test_rollback_on_stable_says_so_and_is_no_error(
    still: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rollback", "chat"]) == 0
    assert f"already serving {still.store.service('chat').stable}" in capsys.readouterr().err


def test_up_again_changes_nothing(still: FakeController, models: Path) -> None:
    before = still.picture()

    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait"]) == 0
    assert run(["up", "--no-wait"]) == 0
    assert still.picture() == before


def test_a_service_that_is_taken_down_leaves_no_engine(chat: FakeController) -> None:
    chat.store.mark_removing("chat", Identity("admin", Role.ADMIN), at_s=time.time())
    chat.runner.wake("chat")

    until(lambda: not chat.store.services(), "the service is gone")
    assert (chat.fleet.engines, chat.front.opened) == ({}, {})


def test_plan_and_dry_run_show_the_same_and_begin_nothing(
    still: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = still.picture()
    arguments = ["chat", "--model", str(models / "twin"), "-o", "json"]
    capsys.readouterr()

    assert run(["plan", *arguments]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert run(["deploy", *arguments, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert planned["risk"] == "medium"
    assert still.picture() == before


@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml"])
@pytest.mark.parametrize("command", ["status", "list", "history"])
def test_every_view_prints_in_every_form(
    still: FakeController, command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run([command, "-o", output]) == 0

    out = capsys.readouterr().out
    if output == "json":
        assert json.loads(out) is not None
    elif output == "yaml":
        assert yaml.safe_load(out) is not None
    else:
        assert "chat" in out or "no rollout" in out


@pytest.mark.parametrize("name", ["max_model_len", "max-num-seqs"], ids=["own key", "engine's"])
def test_an_engine_argument_alone_is_a_change_of_low_risk(
    still: FakeController, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run(["plan", "chat", "--engine", f"{name}=64", "-o", "json"]) == 0

    planned = json.loads(capsys.readouterr().out)
    assert planned["risk"] == "low"
    assert f"{name.replace('-', '_')}: not set -> 64" in planned["reasons"][0]


def test_a_deploy_that_is_waited_for_prints_one_json_document_and_nothing_else(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat.probes.results[ProbeKind.SMOKE] = ("failed", "it says nothing")
    capsys.readouterr()

    code = deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s", "-o", "json")

    captured = capsys.readouterr()
    assert code == 5
    assert json.loads(captured.out)["phase"] == Phase.ROLLED_BACK.value
    assert len(captured.err.splitlines()) == 1


def test_up_prints_one_json_document_and_nothing_else(
    still: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "chat"


def test_history_keeps_what_was(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s")
    capsys.readouterr()

    assert run(["history", "chat", "-o", "json"]) == 0

    views = json.loads(capsys.readouterr().out)
    assert [view["phase"] for view in views] == [Phase.SUCCEEDED.value]


def test_a_sound_checkpoint_and_policy_validate_without_a_controller(
    home: Path, models: Path, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", "--model", str(models / "stable"), "--policy", policy(FAST)]) == 0
    assert capsys.readouterr().out.count("is sound") == 2


# --- bad input: one clear line, the right exit code, nothing touched


def refused(
    chat: FakeController,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    *,
    code: int,
    line: str,
) -> None:
    """The command is refused with this line, and leaves everything as it was."""
    before = chat.picture()
    capsys.readouterr()

    assert run(arguments) == code

    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [one for one in captured.err.splitlines() if one]
    assert len(lines) == 1, lines
    assert re.search(line, lines[0]), lines[0]
    assert chat.picture() == before


def test_a_missing_checkpoint_is_refused_by_up(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--service", "chat", "--model", str(tmp_path / "nowhere")]) == 2
    assert re.search(r"nowhere is not a directory; give the folder", capsys.readouterr().err)
    assert not (home / "cluster.json").exists()


def test_a_missing_checkpoint_is_refused_by_deploy(
    still: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(tmp_path / "nowhere")]
    refused(still, capsys, arguments, code=2, line=r"nowhere is not a directory; give the folder")


def test_a_broken_checkpoint_is_refused(
    still: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_checkpoint(tmp_path / "broken") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])

    arguments = ["deploy", "chat", "--model", str(file.parent)]
    refused(still, capsys, arguments, code=2, line=r"model\.safetensors.*copy")


def test_an_unknown_architecture_is_refused(
    still: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "strange", architecture="FrobnicatorForCausalLM")

    arguments = ["deploy", "chat", "--model", str(model)]
    refused(still, capsys, arguments, code=2, line=r"'FrobnicatorForCausalLM' is unknown to the engine")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"stages": [{"weight": "10%"}, {"weight": "5%"}]}, r"stages\.1\.weight 5 % does not rise"),
        ({"stages": [{"weight": "10%"}, {"weight": "120%"}]}, r"120 % is outside 0 to 100 %"),
        ({"stages": [{"weight_bp": 12000}]}, r"12000 exceeds 10000"),
        ({"stagse": []}, r"unknown key 'stagse'; did you mean stages\?"),
        ("stages: [", r"policy\.yaml line 1"),
    ],
    ids=["falling", "over-100", "over-10000-bp", "unknown-key", "no-yaml"],
)
def test_a_policy_that_cannot_hold_is_refused(
    still: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
    content: object,
    line: str,
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "twin"), "--policy", policy(content)]
    refused(still, capsys, arguments, code=2, line=line)


def test_an_unknown_engine_key_that_is_ours_is_refused(
    still: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "twin"), "--engine", "port=1"]
    refused(still, capsys, arguments, code=2, line=r"engine\.port is set by canaryctl itself")


@pytest.mark.parametrize("option", ["--port", "--api-port"])
def test_a_busy_port_is_refused_before_anything_is_started(
    home: Path, models: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rest = {"--port": "--api-port", "--api-port": "--port"}[option]
        code = run(
            [
                "up",
                "--service",
                "chat",
                "--model",
                str(models / "stable"),
                option,
                str(port),
                rest,
                str(free_ports(1)[0]),
            ]
        )

    assert code == 4
    assert re.search(
        rf"port {port} on 127\.0\.0\.1 is taken.*choose another with {option}", capsys.readouterr().err
    )
    assert not (home / "cluster.json").exists()
    assert not (home / "controller.log").exists()


def test_no_memory_for_a_second_engine_is_a_conflict(
    still: FakeController,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(still.environment, "free_bytes", 100 << 20)

    arguments = ["deploy", "chat", "--model", str(models / "twin")]
    refused(still, capsys, arguments, code=3, line=r"(GiB|MiB).*free")


def test_an_up_that_is_refused_leaves_no_process_behind(
    home: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeController(home)
    fake.environment.free_bytes = 100 << 20
    fake.serve()
    sent: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        if number == 0:
            raise ProcessLookupError

    # The controller's process is this one: it must be told to end, and must not.
    monkeypatch.setattr(os, "kill", kill)
    code = run(["up", "--service", "chat", "--model", str(models / "stable")])
    fake.stop()

    assert (code, sent[0]) == (3, (os.getpid(), signal.SIGTERM))
    assert not (home / "cluster.json").exists()
    assert re.search(r"(GiB|MiB)", capsys.readouterr().err)


def test_a_second_deploy_while_one_runs_is_a_conflict(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    chat.runner.stop()

    arguments = ["deploy", "chat", "--model", str(models / "other")]
    refused(chat, capsys, arguments, code=3, line=r"has rollout r-\w{8} in stage.*canaryctl rollback chat")


@pytest.mark.parametrize("command", ["status", "rollback", "history", "watch", "plan", "deploy"])
def test_an_unknown_service_is_refused_with_those_there_are(
    still: FakeController, capsys: pytest.CaptureFixture[str], models: Path, command: str
) -> None:
    change = ["--model", str(models / "twin")] if command in ("plan", "deploy") else []
    arguments = [command, "caht", *change]
    refused(still, capsys, arguments, code=2, line=r"service caht does not exist; there are: chat")


def test_down_of_an_unknown_service_is_refused(
    still: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(still, capsys, ["down", "caht", "--yes"], code=2, line=r"service caht does not exist")


def test_down_in_a_pipe_wants_a_yes(still: FakeController, capsys: pytest.CaptureFixture[str]) -> None:
    refused(still, capsys, ["down", "chat"], code=2, line=r"confirm it with --yes")


def test_another_model_under_the_same_name_is_a_conflict(
    still: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["up", "--service", "chat", "--model", str(models / "twin"), "--no-wait"]
    refused(still, capsys, arguments, code=3, line=r"up changes nothing that runs: canaryctl deploy chat")


def test_deploying_what_is_served_already_is_a_conflict(
    still: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "stable")]
    refused(still, capsys, arguments, code=3, line=r"already serves v-")


def test_what_was_rolled_back_is_not_tried_again_unless_asked(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0

    arguments = ["deploy", "chat", "--model", str(models / "twin"), "--policy", policy(FAST)]
    refused(chat, capsys, arguments, code=3, line=r"was rolled back in r-.*--retry")
    assert run([*arguments, "--retry", "--wait", "--timeout", "20s"]) == 0


def test_what_was_rolled_back_stays_so_though_its_memory_was_not_seen_freed(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0
    chat.runner.stop()
    stored = chat.store.load(chat.store.rollouts("chat")[0].id)
    assert stored is not None
    stuck = replace(stored.state, phase=Phase.FAILED)
    chat.store.commit(stuck, (), expected_version=stored.version, evidence=None)

    arguments = ["deploy", "chat", "--model", str(models / "twin")]
    refused(chat, capsys, arguments, code=3, line=r"was rolled back in r-.*--retry")


def test_rollback_does_not_answer_for_an_earlier_service_of_the_same_name(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s") == 0
    chat.store.mark_removing("chat", Identity("admin", Role.ADMIN), at_s=time.time())
    chat.runner.wake("chat")
    until(lambda: not chat.store.services(), "the service is gone")
    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait"]) == 0
    capsys.readouterr()

    assert run(["rollback", "chat"]) == 0
    assert f"already serving {chat.store.service('chat').stable}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "chat"],
        ["list"],
        ["plan", "chat", "--url", "http://127.0.0.1:9"],
        ["deploy", "chat", "--url", "http://127.0.0.1:9"],
        ["watch", "chat"],
        ["rollback", "chat"],
        ["history", "chat"],
        ["down", "chat", "--yes"],
        ["status", "chat", "-o", "json"],
    ],
    ids=" ".join,
)
def test_without_a_controller_every_command_names_the_remedy(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_API_PORT", str(free_ports(1)[0]))

    assert run(arguments) == 4

    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(r"no controller answers at .*; .*canaryctl up", captured.err)
    assert ("canaryctl rollback chat --direct" in captured.err) == (arguments[0] == "rollback")


def test_a_wrong_option_is_one_line_and_two(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--frobnicate"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("command", ["list", "up"])
def test_a_state_folder_that_cannot_be_one_is_named(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "file" / "home"))
    what = ["--service", "chat", "--model", str(models / "stable")] if command == "up" else []

    assert run([command, *what]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(r"file/home\S*: Not a directory; give a place .*CANARYCTL_HOME", lines[0])


def test_a_broken_config_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.json").write_text('{"api_prot": 1}')

    assert run(["status", "chat"]) == 2
    assert re.search(
        r"config\.json: not a canaryctl config.*fix the file or remove it", capsys.readouterr().err
    )


def test_plan_prints_how_long_and_what_each_stage_finds(
    still: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    gates = dict.fromkeys(("error", "latency_p99", "latency_shape", "ttft_shape", "hallucination"))
    path = policy({"gates": gates, "stages": [{"weight": "10%", "min_canary": 150}]})
    capsys.readouterr()
    arguments = ["plan", "chat", "--model", str(models / "twin"), "--policy", path, "--rate", "5"]

    assert run(arguments) == 0

    out = " ".join(capsys.readouterr().out.split())
    assert (
        "how long, at 5 requests/s, each its own unit measured over 0 requests, 200 are needed: taken" in out
    )
    assert "STAGE PROVEN AFTER NINE IN TEN SIMULATED LAST BY 1 5 min " in out
    assert "the smallest harm found, nine times in ten STAGE QUALITY 1 -0." in out
    assert run([*arguments, "--quick"]) == 0
    assert "how long: not known; not simulated: --quick" in capsys.readouterr().out
