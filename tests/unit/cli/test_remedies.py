"""Messages that named what is wrong, and not what to do about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.cli.client import Client
from controller.cli.live import raise_for_outcome
from controller.cli.main import run
from controller.errors import CanaryctlError, UnknownService
from controller.rollout.state import Phase
from controller.views.rollout import rollout_view
from tests.fakes.view_maker import in_stage


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "e.jsonl"
    rows = [{"t_s": n, "arm": n % 2, "w": 0.5, "error": 0, "latency_ms": 5 + n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["ab", "size"], "; give one"),
        (["ab", "judge", "FILE", "--metric", "quality"], ": name one by --metric, or give --map quality=COL"),
        (["observed", "FILE", "--since", "30", "--until", "20"], "; give an earlier --since or a later"),
        (["observed", "FILE", "--since", "300", "--until", "400"], ": give times within"),
        (["rollback", "chat", "--direct"], "start one: canaryctl up"),
    ],
)
def test_the_message_says_what_to_do(
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    remedy: str,
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))

    assert run([file if one == "FILE" else one for one in arguments]) in (2, 4)
    assert remedy in capsys.readouterr().err


def test_a_failed_rollout_names_its_log() -> None:
    view = rollout_view(in_stage(phase=Phase.FAILED)).model_copy(update={"exit_code": 1})

    with pytest.raises(CanaryctlError, match="its log: canaryctl history chat --rollout r-1"):
        raise_for_outcome(view)


def test_a_version_in_the_place_of_the_service_is_told_where_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(_self: Client, service: str, **_: object) -> None:
        raise UnknownService(f"service {service} does not exist; there are: chat")

    monkeypatch.setattr(Client, "undo", unknown)
    assert run(["undo", "v1"]) == 2
    assert "there are: chat; a version is named by --to: canaryctl undo --to v1" in capsys.readouterr().err
