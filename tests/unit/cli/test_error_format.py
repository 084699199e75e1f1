"""Errors in the format of `-o`: one problem document on stderr for programs, one line for people."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import typer
import yaml

from controller.cli import services
from controller.cli.main import COMMANDS, app, run
from serving.loopback import free_ports
from tests.fakes.checkpoints import write_checkpoint

KEYS = ["type", "title", "status", "detail", "lines", "exit_code"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose controller does not run."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CANARYCTL_API_PORT", str(free_ports(1)[0]))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def commands() -> list[list[str]]:
    """Every command as it is typed, subcommands too."""
    found: list[list[str]] = []
    group = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.commands[name]  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [[name, sub] for sub in inner] if inner else [[name]]
    return found


@pytest.mark.parametrize("output", ["json", "yaml"])
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_usage_error_of_every_command_is_one_problem_document(
    home: Path, capsys: pytest.CaptureFixture[str], command: list[str], output: str
) -> None:
    code = run([*command, "--no-such-option", "-o", output])

    captured = capsys.readouterr()
    problem = json.loads(captured.err) if output == "json" else yaml.safe_load(captured.err)
    assert (code, captured.out, list(problem)) == (2, "", KEYS)
    assert (problem["type"], problem["status"], problem["exit_code"]) == ("urn:canaryctl:bad-input", 422, 2)
    assert problem["detail"].startswith("No such option: --no-such-option")
    assert problem["detail"].endswith(f"(usage: canaryctl {' '.join(command)} --help)")


@pytest.mark.parametrize(
    "arguments",
    [["-o", "json"], ["-ojson"], ["--output", "json"], ["--output=json"], ["-o", "table", "-o", "json"]],
    ids=" ".join,
)
def test_every_spelling_of_the_option_is_understood(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(["status", "chat", *arguments]) == 4

    assert json.loads(capsys.readouterr().err)["type"] == "urn:canaryctl:unreachable"


@pytest.mark.parametrize("output", ["json", "yaml"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["list"],
        ["history"],
        ["watch"],
        ["rollback", "chat"],
        ["plan", "chat", "--url", "http://127.0.0.1:9"],
        ["deploy", "chat", "--url", "http://127.0.0.1:9"],
        ["down", "chat", "--yes"],
        ["ab", "status", "chat"],
        ["ab", "stop", "chat"],
        ["ab", "create", "chat", "--url", "http://127.0.0.1:9"],
    ],
    ids=" ".join,
)
def test_a_dead_controller_is_a_problem_document(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], output: str
) -> None:
    code = run([*arguments, "-o", output])

    captured = capsys.readouterr()
    problem = json.loads(captured.err) if output == "json" else yaml.safe_load(captured.err)
    assert (code, captured.out, problem["exit_code"], problem["status"]) == (4, "", 4, 503)
    assert "canaryctl up" in problem["detail"]


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_an_invalid_file_lists_every_line(
    home: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    policy = home / "policy.yaml"
    policy.write_text("stages: [{weight: 10%, min_canary: -1}]\nbake: 1y\n")

    assert run(["validate", "--policy", str(policy), "-o", output]) == 2

    captured = capsys.readouterr()
    problem = json.loads(captured.err) if output == "json" else yaml.safe_load(captured.err)
    assert problem["type"] == "urn:canaryctl:bad-spec"
    assert (len(problem["lines"]), problem["detail"]) == (2, problem["lines"][0])


def test_an_error_of_the_operating_system_is_a_problem_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "file" / "home"))

    assert run(["list", "-o", "json"]) == 2
    assert "CANARYCTL_HOME" in json.loads(capsys.readouterr().err)["detail"]


def test_an_unforeseen_error_is_a_problem_document_with_its_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(services, "Client", fail)

    assert run(["list", "-o", "json"]) == 1
    problem = json.loads(capsys.readouterr().err)
    assert (problem["type"], problem["status"], problem["exit_code"]) == ("urn:canaryctl:internal", 500, 1)
    assert "ZeroDivisionError: nobody foresaw this" in problem["detail"]
    assert any("in fail" in line for line in problem["traceback"])


def test_for_people_an_error_stays_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "chat", "-o", "wide"]) == 4

    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no controller answers at ")


def test_a_broken_link_in_a_checkpoint_is_named_without_advice_on_the_state_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """huggingface/huggingface_hub 1388: a cache snapshot was copied without the blobs that its links name."""
    weights = write_checkpoint(tmp_path / "model") / "model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/abc")

    assert run(["validate", "--model", str(tmp_path / "model")]) == 2

    [line] = capsys.readouterr().err.splitlines()
    assert "model.safetensors" in line
    assert "CANARYCTL_HOME" not in line
    assert re.search(r"link.*(cp -rL|links followed)", line)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_checkpoint_is_named_without_advice_on_the_state_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_checkpoint(tmp_path / "model") / "model.safetensors"
    weights.chmod(0)

    assert run(["validate", "--model", str(tmp_path / "model")]) == 2
    assert "CANARYCTL_HOME" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["undo", "--to", "v2", "--reason"], "canaryctl undo"),
        (["ab", "size", "--effect"], "canaryctl ab size"),
        (["undo", "--frobnicate"], "canaryctl undo"),
        (["--frobnicate"], "canaryctl"),
    ],
)
def test_a_usage_error_names_the_help_of_its_own_command(
    arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().err.endswith(f"(usage: {path} --help)\n")
