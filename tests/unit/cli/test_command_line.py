"""The command line against a controller on fakes: successful commands, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml

from controller.api import undo as undo_module
from controller.auth import Identity, Role
from controller.cli import live, processes
from controller.cli.client import Client
from controller.cli.main import COMMANDS, run
from controller.installed import own_version
from controller.rollout.actions import ProbeKind
from controller.rollout.state import Phase
from controller.runtime.service_loop import LastTick, Problem
from controller.settings import load_settings
from serving.loopback import free_ports
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home, serving_chat, until

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
    """A controller for this test alone, serving `chat`."""
    with serving_chat(at_home(tmp_path / "home", monkeypatch), models / "stable", is_loaded=True) as fake:
        yield fake


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[FakeController]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        home = at_home(tmp_path_factory.mktemp("shared") / "home", monkeypatch)
        with serving_chat(home, models / "stable", is_loaded=True) as fake:
            yield fake


@pytest.fixture
def unchanged(shared: FakeController, monkeypatch: pytest.MonkeyPatch) -> FakeController:
    """A shared controller serving `chat`, for tests that change nothing."""
    at_home(shared.home, monkeypatch)
    return shared


@pytest.fixture
def policy(tmp_path: Path) -> Callable[[object], str]:
    def write(content: object) -> str:
        path = tmp_path / "policy.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


def deploy(models: Path, name: str, policy: str, *more: str) -> int:
    return run(["deploy", "chat", "--model", str(models / name), "--policy", policy, *more])


# --- successful commands


@pytest.mark.slow
def test_deploy_wait_exits_with_0_once_the_version_is_promoted(
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


@pytest.mark.slow
def test_rollback_wait_returns_traffic_to_stable_and_records_the_reason(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")

    assert run(["rollback", "chat", "--reason", "it rambles", "--wait", "--timeout", "20s"]) == 0
    rows = chat.store.rollouts("chat")
    assert (len(rows), "it rambles" in rows[0].state) == (1, True)
    assert chat.traffic.tables["chat"].weight_bp == 0


@pytest.mark.slow
def test_watch_exits_with_the_rollouts_exit_code(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    assert run(["rollback", "chat"]) == 0

    assert run(["watch", "chat", "--timeout", "20s"]) == 5
    until(lambda: chat.store.rollouts("chat")[0].ended_at_s, "the rollout is over")
    assert run(["watch", "chat"]) == 5  # also after its end


@pytest.mark.slow
def test_deploy_wait_exits_with_6_at_its_timeout_and_the_rollout_continues(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = deploy(models, "twin", policy(SLOW), "--wait", "--timeout", "1s")

    assert code == 6
    assert "is still running after 1 s" in capsys.readouterr().err
    assert chat.store.rollouts("chat")[0].ended_at_s is None


@pytest.mark.slow
def test_commands_on_a_controller_that_cannot_act_say_why(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    chat.runner.stop()
    problem = Problem("the disk is full")
    monkeypatch.setattr(chat.runner, "last_tick", lambda name: LastTick(problem=problem))

    looked = run(["status", "chat"])
    waited = run(["rollback", "chat", "--wait", "--timeout", "1s"])
    out, err = capsys.readouterr()
    problem = Problem("an older copy", loses_commands=True)
    monkeypatch.setattr(chat.environment, "knows_all", lambda name: None)
    refused = run(["rollback", "chat"])

    assert (looked, waited, refused) == (4, 6, 4)
    assert "the controller can decide nothing: the disk is full" in out
    assert "begins once the controller can act; now: the disk is full; or bypass it" in err
    assert "running after 1 s: the controller can decide nothing: the disk is full; follow it" in err
    assert err.rstrip().endswith("end it: canaryctl rollback chat --direct")
    assert capsys.readouterr().err.count("--direct") == 1


@pytest.mark.slow
def test_rollback_without_a_rollout_is_not_an_error(
    unchanged: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rollback", "chat"]) == 0
    assert f"already serving {unchanged.store.service('chat').stable}" in capsys.readouterr().err


@pytest.mark.slow
def test_up_is_idempotent(unchanged: FakeController, models: Path) -> None:
    before = unchanged.picture()

    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait"]) == 0
    assert run(["up", "--no-wait"]) == 0
    assert unchanged.picture() == before


@pytest.mark.slow
def test_a_removed_service_leaves_no_engine(chat: FakeController) -> None:
    chat.store.mark_removing("chat", Identity("admin", Role.ADMIN), at_s=time.time())
    chat.runner.wake("chat")

    until(lambda: not chat.store.services(), "the service is gone")
    assert (chat.fleet.engines, chat.ingress.opened) == ({}, {})


def test_plan_and_dry_run_print_the_same_and_start_nothing(
    unchanged: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = unchanged.picture()
    arguments = ["chat", "--model", str(models / "twin"), "-o", "json"]
    capsys.readouterr()

    assert run(["plan", *arguments]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert run(["deploy", *arguments, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out) == planned
    assert planned["risk"] == "medium"
    assert unchanged.picture() == before


@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml"])
@pytest.mark.parametrize("command", ["status", "list", "history"])
def test_every_view_prints_in_every_format(
    unchanged: FakeController, command: str, output: str, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize(("name", "risk"), [("max_model_len", "medium"), ("max-num-seqs", "low")])
def test_a_change_of_one_engine_argument_has_the_risk_of_its_class(
    unchanged: FakeController, name: str, risk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run(["plan", "chat", "--engine", f"{name}=64", "-o", "json"]) == 0

    planned = json.loads(capsys.readouterr().out)
    assert planned["risk"] == risk
    assert f"{name.replace('-', '_')}: not set -> 64" in planned["reasons"][0]


@pytest.mark.slow
def test_deploy_wait_prints_one_json_document_only(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat.probes.results[ProbeKind.SMOKE] = ("failed", "empty answer")
    capsys.readouterr()

    code = deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s", "-o", "json")

    captured = capsys.readouterr()
    assert code == 5
    assert json.loads(captured.out)["phase"] == Phase.ROLLED_BACK.value
    assert len(captured.err.splitlines()) == 1


def test_up_prints_one_json_document_only(
    unchanged: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert run(["up", "--service", "chat", "--model", str(models / "stable"), "--no-wait", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "chat"


@pytest.mark.slow
def test_history_lists_finished_rollouts(
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


def test_validate_accepts_a_valid_checkpoint_and_policy_without_a_controller(
    home: Path, models: Path, policy: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", "--model", str(models / "stable"), "--policy", policy(FAST)]) == 0
    assert capsys.readouterr().out.count("is valid") == 2


# --- bad input: one clear line, the right exit code, nothing changed


def refused(
    chat: FakeController,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    *,
    code: int,
    line: str,
) -> None:
    """Assert that the command is refused with this line and changes nothing."""
    before = chat.picture()
    capsys.readouterr()

    assert run(arguments) == code

    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [text for text in captured.err.splitlines() if text]
    assert len(lines) == 1, lines
    assert re.search(line, lines[0]), lines[0]
    assert chat.picture() == before


def test_up_refuses_a_missing_checkpoint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "--service", "chat", "--model", str(tmp_path / "nowhere")]) == 2
    assert re.search(r"nowhere is not a directory; give the folder", capsys.readouterr().err)
    assert not (home / "cluster.json").exists()


def test_deploy_refuses_a_missing_checkpoint(
    unchanged: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(tmp_path / "nowhere")]
    refused(unchanged, capsys, arguments, code=2, line=r"nowhere is not a directory; give the folder")


def test_deploy_refuses_a_truncated_checkpoint(
    unchanged: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_checkpoint(tmp_path / "broken") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])

    arguments = ["deploy", "chat", "--model", str(file.parent)]
    refused(unchanged, capsys, arguments, code=2, line=r"model\.safetensors.*copy")


def test_deploy_refuses_an_unknown_architecture(
    unchanged: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_checkpoint(tmp_path / "strange", architecture="FrobnicatorForCausalLM")

    arguments = ["deploy", "chat", "--model", str(model)]
    refused(unchanged, capsys, arguments, code=2, line=r"'FrobnicatorForCausalLM' is unknown to the engine")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"stages": [{"weight": "10%"}, {"weight": "5%"}]}, r"stages\.1\.weight 5 % is not above"),
        ({"stages": [{"weight": "10%"}, {"weight": "120%"}]}, r"120 % is outside 0 to 100 %"),
        ({"stages": [{"weight_bp": 12000}]}, r"12000 exceeds 10000"),
        ({"stagse": []}, r"unknown key 'stagse'; did you mean stages\?"),
        ("stages: [", r"policy\.yaml line 1"),
    ],
    ids=["falling", "over-100", "over-10000-bp", "unknown-key", "no-yaml"],
)
def test_deploy_refuses_an_invalid_policy(
    unchanged: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
    content: object,
    line: str,
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "twin"), "--policy", policy(content)]
    refused(unchanged, capsys, arguments, code=2, line=line)


def test_deploy_refuses_an_engine_argument_set_by_canaryctl(
    unchanged: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "twin"), "--engine", "port=1"]
    refused(unchanged, capsys, arguments, code=2, line=r"engine\.port is set by canaryctl itself")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--port", "--api-port"])
def test_up_refuses_a_busy_port_before_starting_anything(
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


def test_deploy_without_memory_for_a_second_engine_is_a_conflict(
    unchanged: FakeController,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unchanged.environment, "free_bytes", 100 << 20)

    arguments = ["deploy", "chat", "--model", str(models / "twin")]
    refused(unchanged, capsys, arguments, code=3, line=r"(GiB|MiB).*free")


@pytest.mark.slow
def test_a_refused_up_leaves_no_process_behind(
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

    # The fake controller runs in this process: the signal must be sent, but not delivered.
    monkeypatch.setattr(os, "kill", kill)
    # ... and it stands for what this command starts.
    monkeypatch.setattr(processes, "running", lambda settings: processes.Running(False, False, False))
    code = run(["up", "--service", "chat", "--model", str(models / "stable")])
    fake.stop()

    assert (code, sent[0]) == (3, (os.getpid(), signal.SIGTERM))
    assert not (home / "cluster.json").exists()
    assert re.search(r"(GiB|MiB)", capsys.readouterr().err)


@pytest.mark.slow
def test_a_second_deploy_during_a_rollout_is_a_conflict(
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
def test_an_unknown_service_is_refused_with_the_existing_ones(
    unchanged: FakeController, capsys: pytest.CaptureFixture[str], models: Path, command: str
) -> None:
    change = ["--model", str(models / "twin")] if command in ("plan", "deploy") else []
    arguments = [command, "caht", *change]
    refused(unchanged, capsys, arguments, code=2, line=r"service caht does not exist; there are: chat")


def test_down_refuses_an_unknown_service(
    unchanged: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(unchanged, capsys, ["down", "caht", "--yes"], code=2, line=r"service caht does not exist")


def test_down_without_a_terminal_requires_yes(
    unchanged: FakeController, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(unchanged, capsys, ["down", "chat"], code=2, line=r"confirm with --yes")


def test_up_with_another_model_for_a_running_service_is_a_conflict(
    unchanged: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["up", "--service", "chat", "--model", str(models / "twin"), "--no-wait"]
    refused(unchanged, capsys, arguments, code=3, line=r"up changes nothing that runs: canaryctl deploy chat")


def test_deploying_the_stable_version_is_a_conflict(
    unchanged: FakeController, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["deploy", "chat", "--model", str(models / "stable")]
    refused(unchanged, capsys, arguments, code=3, line=r"already serves v-")


@pytest.mark.slow
def test_a_rolled_back_version_is_refused_without_retry(
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


@pytest.mark.slow
def test_a_rolled_back_version_is_refused_even_if_its_memory_release_is_unconfirmed(
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


@pytest.mark.slow
def test_rollback_ignores_an_earlier_service_of_the_same_name(
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
        ["rollback"],
        ["history", "chat"],
        ["down", "chat", "--yes"],
        ["status", "chat", "-o", "json"],
    ],
    ids=" ".join,
)
def test_every_command_names_the_remedy_when_no_controller_answers(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("CANARYCTL_API_PORT", str(free_ports(1)[0]))

    assert run(arguments) == 4

    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert re.search(r"no controller answers at .*; .*canaryctl up", captured.err)
    assert "--direct" not in captured.err  # there is no service to roll back


def test_an_unknown_option_is_one_line_and_exit_code_2(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--frobnicate"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["frobnicate"], "canaryctl --help"),
        (["ab"], "canaryctl ab --help"),
        (["ab", "create", "--frobnicate"], "canaryctl ab create --help"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_line_that_names_the_help(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], usage: str
) -> None:
    assert run(arguments) == 2

    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"(usage: {usage})")


# Libraries that take longer to import than a short command takes to run.
HEAVY = (
    "numpy",
    "scipy",
    "ray",
    "vllm",
    "torch",
    "openai",
    "sqlalchemy",
    "fastapi",
    "matplotlib",
    "httpx",
)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        (["--help"], ("pydantic", "rich", "yaml", "asyncio", "controller.cli.services")),
        (["version"], ("rich", "yaml")),
        (["status", "chat"], ("yaml", "evaluation.report", "controller.spec.service")),
        (["list"], ("yaml", "evaluation.report", "controller.spec.service")),
        (["history", "chat"], ("yaml", "evaluation.report", "controller.spec.service")),
        (["rollback", "chat"], ("rich", "yaml", "controller.cli.live", "controller.wiring")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_short_command_loads_no_slow_library(
    unchanged: FakeController, arguments: list[str], also: tuple[str, ...]
) -> None:
    script = (
        "import sys\nfrom controller.cli.main import run\n"
        f"code = run({arguments})\n"
        f"print([name for name in {HEAVY + also} if name in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")


@pytest.mark.parametrize(("arguments", "shown"), [([], "Usage: canaryctl"), (["--version"], own_version())])
def test_what_people_type_first_is_answered(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [("canaryctl ro", ["rollback", "router"]), ("canaryctl rollback --d", ["--direct"]), ("canaryctl x", [])],
)
def test_the_shell_completes_commands_and_options(
    words: str, found: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_CANARYCTL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))

    with pytest.raises(SystemExit) as ended:
        run([])

    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == found


def test_the_help_of_each_command_is_the_first_line_of_its_docstring() -> None:
    loaded = {name: command.load() for name, command in COMMANDS.items()}

    written = {
        name: found.info.help if isinstance(found, typer.Typer) else (found.__doc__ or "").splitlines()[0]
        for name, found in loaded.items()
    }
    assert {name: command.help for name, command in COMMANDS.items()} == written


@pytest.mark.parametrize("command", ["list", "up"])
def test_an_unusable_state_folder_is_named(
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "file" / "home"))
    options = ["--service", "chat", "--model", str(models / "stable")] if command == "up" else []

    assert run([command, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(r"file/home\S*: Not a directory; use a writable path .*CANARYCTL_HOME", lines[0])


def test_a_malformed_config_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.json").write_text('{"api_prot": 1}')

    assert run(["status", "chat"]) == 2
    assert re.search(
        r"config\.json: not a canaryctl config.*fix the file or remove it", capsys.readouterr().err
    )


@pytest.mark.slow
def test_plan_prints_expected_duration_and_detectable_effects(
    unchanged: FakeController,
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
        "expected duration at 5 requests/s, 1 request per unit "
        "measured over 0 requests, 200 are needed: typical" in out
    )
    assert "STAGE PROVEN AFTER (P50) P90 PROVEN RUNS SLOWEST GATE 1 14 min " in out
    assert "minimum detectable effect (90 % power) STAGE REJECTED QUALITY 1 x" in out
    assert run([*arguments, "--quick"]) == 0
    assert "expected duration unknown: not simulated: --quick" in capsys.readouterr().out


# --- following one rollout by its id


@pytest.mark.slow
def test_undo_returns_to_the_version_before_and_says_that_it_is_not_proven(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(undo_module, "BAKE_S", 0.0)
    before = chat.store.service("chat").stable
    assert deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s") == 0

    assert run(["rollback", "chat", "--reason", "it rambles", "--wait", "--timeout", "20s"]) == 0
    again = run(["rollback", "chat", "--wait"]), run(["undo", "chat", "--wait"])

    shown = capsys.readouterr()
    assert chat.store.service("chat").stable == chat.traffic.tables["chat"].stable == before
    assert again == (0, 0)
    assert f"already serving {before}" in shown.err
    assert "not proven: an undo" in shown.out
    assert "it rambles" in chat.store.rollouts("chat")[0].request


@pytest.mark.slow
def test_undo_wait_exits_with_5_when_the_old_version_fails_its_smoke_test(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s") == 0
    promoted = chat.store.service("chat").stable
    chat.probes.results[ProbeKind.SMOKE] = ("failed", "the answer is empty")

    assert run(["undo", "chat", "--wait", "--timeout", "20s"]) == 5
    assert chat.store.service("chat").stable == promoted


@pytest.mark.slow
def test_a_second_rollback_wait_waits_for_the_first(
    chat: FakeController, models: Path, policy: Callable[[object], str]
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 1000, "the canary gets traffic")
    canary = next(version for _, version in chat.fleet.engines if version != stable_of(chat))
    chat.fleet.engines["chat", canary].in_flight = 1  # a stream that keeps the drain from ending
    assert run(["rollback", "chat"]) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 0, "the rollback is under way")

    assert run(["rollback", "chat", "--wait", "--timeout", "500ms"]) == 6
    chat.fleet.engines["chat", canary].in_flight = 0
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0
    assert chat.store.rollouts("chat")[0].ended_at_s is not None


@pytest.mark.slow
def test_waiting_for_a_rollout_ends_with_it_even_if_another_one_has_started(
    chat: FakeController, models: Path, policy: Callable[[object], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy(models, "twin", policy(SLOW)) == 0
    first = chat.store.rollouts("chat")[0].id
    assert run(["rollback", "chat", "--wait", "--timeout", "20s"]) == 0
    assert deploy(models, "other", policy(SLOW)) == 0

    ended = live.watch(Client(load_settings()), "chat", first, timeout_s=5.0, is_silent=True)

    assert (ended.rollout, ended.exit_code) == (first, 5)


def stable_of(chat: FakeController) -> str:
    return chat.store.service("chat").stable


@pytest.mark.slow
def test_an_undo_that_ends_another_exits_with_0_when_what_was_asked_for_serves(
    chat: FakeController,
    models: Path,
    policy: Callable[[object], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("USER", "alice")
    assert deploy(models, "twin", policy(FAST), "--wait", "--timeout", "20s") == 0
    promoted = chat.store.service("chat").stable
    assert run(["undo", "chat"]) == 0
    until(lambda: chat.traffic.tables["chat"].weight_bp == 10_000, "the version before serves, and bakes")

    assert run(["undo", "chat", "--to", promoted, "--wait", "--timeout", "20s"]) == 0

    assert chat.store.service("chat").stable == promoted
    assert "error" not in capsys.readouterr().err
    assert run(["history", "chat", "--rollout", chat.store.rollouts("chat")[0].id]) == 0
    assert "alice via" in capsys.readouterr().out
