"""`up` of a service that is there: the same again is harmless, anything else is refused with its remedy."""

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

GIVEN = {
    "service": "chat",
    "model": "/models/a",
    "replicas": 2,
    "max_model_len": 64,
    "engine": {"max-num-seqs": 8},
}
# As the last promotion left it: another place, another argument, sizes that nobody gave.
RUNNING = {
    "model": "/models/b",
    "replicas": 2,
    "max_model_len": 64,
    "kv_cache_memory_bytes": 1 << 26,
    "engine": {"max_num_seqs": 4, "seed": 1},
}
HERE: Mapping[str, Any] = {"service": "chat", "model": "/models/a"}


def refusal(asked: Mapping[str, Any]) -> str:
    """Why it is refused; '' when it is not."""
    given, running = parse_service(GIVEN), parse_version(RUNNING)
    try:
        refuse_change(parse_service(asked), stable="v-1", given=given, running=running)
    except Conflict as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize(
    "asked",
    [
        GIVEN,
        HERE,
        {**HERE, "model": "/models/b"},
        {**HERE, "engine": {"max_num_seqs": 8}},
        {**HERE, "engine": {"max-num-seqs": 4}},
        {**HERE, "kv_cache_memory_bytes": 1 << 26},
        {**HERE, "policy": {"preset": "default"}},
        {**HERE, "routers": 1},
    ],
    ids=["all", "only the model", "promoted", "as begun", "as it runs", "sized for it", "policy", "routers"],
)
def test_what_is_so_or_was_asked_at_first_is_no_change(asked: Mapping[str, Any]) -> None:
    assert refusal(asked) == ""


@pytest.mark.parametrize(
    ("more", "now", "wanted", "remedy"),
    [
        ({"model": "/models/c"}, "model /models/b", "model /models/c", "deploy chat --model /models/c"),
        ({"replicas": 1}, "replicas 2", "replicas 1", "down chat and then up again changes replicas"),
        ({"gpus": 0.5}, "gpus not set", "gpus 0.5", "down chat and then up again changes gpus"),
        ({"routers": 2}, "routers 1", "routers 2", "down chat and then up again changes routers"),
        ({"dtype": "float32"}, "dtype auto", "dtype float32", "deploy chat --engine dtype=float32"),
        ({"engine": {"max_num_seqs": 9}}, "max_num_seqs 4", "max_num_seqs 9", "--engine max_num_seqs=9"),
        ({"engine": {"block_size": 16}}, "block_size not set", "block_size 16", "--engine block_size=16"),
        (
            {"policy": {"preset": "strict"}},
            "policy of its first up",
            "policy another",
            "deploy chat --policy FILE",
        ),
    ],
    ids=str,
)
def test_a_difference_is_named_with_both_values_and_the_command_that_makes_it(
    more: Mapping[str, Any], now: str, wanted: str, remedy: str
) -> None:
    line = refusal({**HERE, **more})

    before, _, after = line.partition("; requested: ")
    assert before == f"chat serves v-1 with {now}"
    assert after.startswith(f"{wanted}, but up changes nothing that runs: canaryctl ")
    assert after.endswith(remedy)


def test_an_endpoint_instead_of_the_checkpoint_is_a_difference() -> None:
    line = refusal({"service": "chat", "url": "http://10.0.0.7:8000/v1"})

    assert "with source /models/b; requested: source http://10.0.0.7:8000/v1" in line
    assert line.endswith("canaryctl deploy chat --url http://10.0.0.7:8000/v1")


def test_all_differences_are_in_one_line() -> None:
    line = refusal({**HERE, "model": "/models/c", "replicas": 3, "engine": {"max_num_seqs": 9}})

    assert line.endswith(
        "canaryctl deploy chat --model /models/c --engine max_num_seqs=9; "
        "canaryctl down chat and then up again changes replicas"
    )


# --- through the command line


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """`canaryctl up` of `chat`, which runs with two replicas and an engine argument."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CANARYCTL_API_PORT", raising=False)
    (tmp_path / "home").mkdir()
    fake = FakeController(tmp_path / "home")
    fake.serve()
    model = write_checkpoint(tmp_path / "model")

    def again(*more: str) -> int:
        return run(["up", "--service", "chat", "--model", str(model), *more, "--no-wait"])

    assert again("--replicas", "2", "--engine", "max_num_seqs=8") == 0
    ends_at_s = time.monotonic() + 10
    while not fake.fleet.engines and time.monotonic() < ends_at_s:
        time.sleep(0.01)
    before = fake.picture()
    yield again
    assert fake.picture() == before
    fake.stop()


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


def test_a_preset_by_its_name_is_a_policy_of_up(
    up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert up("--policy", "default") == 0
    assert up("--policy", "strict") == 3
    assert "requested: policy another" in capsys.readouterr().err


def test_other_flags_for_a_service_that_runs_are_refused(
    up: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    assert up("--replicas", "3", "--engine", "max_num_seqs=16") == 3

    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert "with replicas 2, max_num_seqs 8; requested: replicas 3, max_num_seqs 16, but up" in said.err


@pytest.mark.parametrize("option", ["--replicas", "--gpus", "--engine", "--policy"])
def test_an_option_without_a_service_to_start_is_refused(
    up: Callable[..., int], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = {"--engine": "max_num_seqs=16", "--policy": "strict"}.get(option, "2")
    capsys.readouterr()

    assert run(["up", option, value]) == 2
    assert f"{option} needs a service; give --service NAME and --model DIR" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--service", "--model", "--replicas", "--engine"])
def test_an_option_beside_the_service_file_that_would_say_it_too_is_refused(
    up: Callable[..., int], tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(yaml.safe_dump({"service": "chat", "model": "model"}))
    value = {"--engine": "max_num_seqs=16", "--replicas": "3"}.get(option, "chat")
    capsys.readouterr()

    assert run(["up", "--file", str(file), "--no-wait"]) == 0
    assert run(["up", "--file", str(file), option, value]) == 2
    assert f"--file and {option} cannot be given together; write {option[2:]} into" in capsys.readouterr().err
