"""`up` of an existing service: repeating it is harmless, any difference is refused with its remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.cli.main import run
from controller.errors import Conflict
from controller.spec.differences import refuse_change
from controller.spec.service import parse_service, parse_version
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController
from tests.fakes.served import at_home

GIVEN = {
    "service": "chat",
    "model": "/models/a",
    "replicas": 2,
    "max_model_len": 64,
    "engine": {"max-num-seqs": 8},
}
# After a promotion: another directory, another argument, and sizes that the user did not give.
RUNNING = {
    "model": "/models/b",
    "replicas": 2,
    "max_model_len": 64,
    "kv_cache_memory_bytes": 1 << 26,
    "engine": {"max_num_seqs": 4, "seed": 1},
}
MODEL: Mapping[str, Any] = {"service": "chat", "model": "/models/a"}


def refusal(requested: Mapping[str, Any]) -> str:
    """The error message; '': not refused."""
    given, running = parse_service(GIVEN), parse_version(RUNNING)
    try:
        refuse_change(parse_service(requested), stable="v-1", given=given, running=running)
    except Conflict as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    "requested",
    [
        GIVEN,
        MODEL,
        {**MODEL, "model": "/models/b"},
        {**MODEL, "engine": {"max_num_seqs": 8}},
        {**MODEL, "engine": {"max-num-seqs": 4}},
        {**MODEL, "kv_cache_memory_bytes": 1 << 26},
        {**MODEL, "policy": {"preset": "default"}},
        {**MODEL, "routers": 1},
    ],
    ids=["all", "model", "promoted model", "given", "running", "sized", "policy", "routers"],
)
def test_current_and_originally_given_values_are_no_change(requested: Mapping[str, Any]) -> None:
    assert refusal(requested) == ""


@pytest.mark.parametrize(
    ("change", "current", "requested", "remedy"),
    [
        ({"model": "/models/c"}, "model /models/b", "model /models/c", "deploy chat --model /models/c"),
        ({"replicas": 1}, "replicas 2", "replicas 1", "down chat and then up again changes replicas"),
        ({"gpus": 0.5}, "gpus not set", "gpus 0.5", "down chat and then up again changes gpus"),
        ({"routers": 2}, "routers 1", "routers 2", "down chat and then up again changes routers"),
        ({"dtype": "float32"}, "dtype auto", "dtype float32", "deploy chat --engine dtype=float32"),
        ({"engine": {"max_num_seqs": 9}}, "max_num_seqs 4", "max_num_seqs 9", "--engine max_num_seqs=9"),
        (
            {"engine": {"revision": "null", "chat_template": "a b"}},
            "revision not set, chat_template not set",
            "revision null, chat_template a b",
            """deploy chat --engine 'revision="null"' --engine 'chat_template=a b'""",
        ),
        (
            {"engine": {"chat_template": "{{ x }}", "revision": "on"}},
            "chat_template not set, revision not set",
            "chat_template {{ x }}, revision on",
            """--engine 'chat_template="{{ x }}"' --engine 'revision="on"'""",
        ),
        ({"model": "/models/my model"}, "model /models/b", "model /models/my model", "'/models/my model'"),
        ({"engine": {"block_size": 16}}, "block_size not set", "block_size 16", "--engine block_size=16"),
        (
            {"policy": {"preset": "strict"}},
            "policy of its first up",
            "policy another",
            "deploy chat --model DIR --policy FILE",
        ),
    ],
    ids=str,
)
def test_a_difference_is_named_with_both_values_and_the_command_that_changes_it(
    change: Mapping[str, Any], current: str, requested: str, remedy: str
) -> None:
    line = refusal({**MODEL, **change})

    before, _, after = line.partition("; requested: ")
    assert before == f"chat serves v-1 with {current}"
    assert after.startswith(f"{requested}, but up changes nothing that runs: canaryctl ")
    assert after.endswith(remedy)


def test_an_endpoint_instead_of_the_checkpoint_is_a_difference() -> None:
    line = refusal({"service": "chat", "url": "http://10.0.0.7:8000/v1"})

    assert "with source /models/b; requested: source http://10.0.0.7:8000/v1" in line
    assert line.endswith("canaryctl deploy chat --url http://10.0.0.7:8000/v1")


def test_all_differences_are_in_one_line() -> None:
    line = refusal({**MODEL, "model": "/models/c", "replicas": 3, "engine": {"max_num_seqs": 9}})

    assert line.endswith(
        "canaryctl deploy chat --model /models/c --engine max_num_seqs=9; "
        "canaryctl down chat and then up again changes replicas"
    )


# --- through the command line


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`canaryctl up` of `chat`, which runs with two replicas and an engine argument."""
    fake = FakeController(at_home(tmp_path / "home", monkeypatch))
    fake.serve()
    model = write_checkpoint(tmp_path / "model")

    def again(*more: str) -> int:
        return run(["up", "--service", "chat", "--model", str(model), *more, "--no-wait"])

    assert again("--replicas", "2", "--engine", "max_num_seqs=8") == 0
    ends_at_s = time.monotonic() + 60
    while not fake.fleet.engines and time.monotonic() < ends_at_s:
        time.sleep(0.01)
    before = fake.picture()
    yield again
    assert fake.picture() == before
    fake.stop()


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--replicas", "2"],
        ["--engine", "max-num-seqs=8"],
        ["--replicas", "2", "--engine", "max_num_seqs=8"],
    ],
    ids=" ".join,
)
def test_the_same_flags_again_are_harmless(up: Callable[..., int], flags: list[str]) -> None:
    assert up(*flags) == 0


@pytest.mark.slow
def test_up_accepts_the_name_of_a_preset_as_policy(
    up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert up("--policy", "default") == 0
    assert up("--policy", "strict") == 3
    assert "requested: policy another" in capsys.readouterr().err


@pytest.mark.slow
def test_other_flags_for_a_running_service_are_refused(
    up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert up("--replicas", "3", "--engine", "max_num_seqs=16") == 3

    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert "with replicas 2, max_num_seqs 8; requested: replicas 3, max_num_seqs 16, but up" in printed.err


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("option", ["--replicas", "--gpus", "--engine", "--policy"])
def test_an_option_without_a_service_to_start_is_refused(
    up: Callable[..., int], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"--engine": "max_num_seqs=16", "--policy": "strict"}.get(option, "2")
    capsys.readouterr()

    assert run(["up", option, value]) == 2
    assert f"{option} needs a service; give --service NAME and --model DIR" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("option", ["--service", "--model", "--replicas", "--engine"])
def test_an_option_that_duplicates_the_service_file_is_refused(
    up: Callable[..., int], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(yaml.safe_dump({"service": "chat", "model": "model"}))
    value = {"--engine": "max_num_seqs=16", "--replicas": "3"}.get(option, "chat")
    capsys.readouterr()

    assert run(["up", "--file", str(file), "--no-wait"]) == 0
    assert run(["up", "--file", str(file), option, value]) == 2
    assert f"--file and {option} cannot be given together; write {option[2:]} into" in capsys.readouterr().err
