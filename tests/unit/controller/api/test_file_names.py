"""Names of files that are no UTF-8 are refused in one line with the name escaped, and break no answer."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from controller.cli.main import run
from controller.errors import BadInput, document_of, escaped
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

URL = "/v1/services/chat"
NAME = b"x\xff.json"


def put(folder: Path, *, is_link: bool) -> None:
    path = os.path.join(os.fsencode(folder), NAME)
    if is_link:
        os.symlink("/nowhere", path)
    else:
        Path(os.fsdecode(path)).write_text("{}")


@pytest.mark.parametrize("is_link", [False, True], ids=["file", "broken link"])
@pytest.mark.parametrize("command", ["plan", "rollouts"])
async def test_a_name_that_is_no_utf_8_is_refused_with_the_name_escaped(
    api: httpx.AsyncClient, tmp_path: Path, command: str, is_link: bool
) -> None:
    """The plan was "canaryctl failed", and the deploy of the same went on."""
    stable, canary = write_checkpoint(tmp_path / "1", seed=1), write_checkpoint(tmp_path / "2", seed=2)
    assert (await api.put(URL, json={"model": str(stable)})).status_code == 200
    put(canary, is_link=is_link)

    answer = await api.post(f"{URL}/{command}", json={"version": {"model": str(canary)}})

    assert (answer.status_code, answer.json()["type"]) == (422, "urn:canaryctl:bad-checkpoint")
    assert f"checkpoint {canary} holds x\\xff.json, a name that is no UTF-8" in answer.json()["detail"]


def test_validate_refuses_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "1", seed=1)
    put(folder, is_link=False)

    assert run(["validate", "--model", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds x\\xff.json, a name that is no UTF-8" in line


@pytest.mark.parametrize("command", ["status", "rollback", "history", "watch"])
def test_a_service_of_such_a_name_is_unknown(
    controller: FakeController,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setenv("CANARYCTL_HOME", str(controller.serve().home))

    try:
        assert run([command, os.fsdecode(b"x\xff")]) == 2
    finally:
        controller.stop()
    assert "service x\\xff does not exist" in capsys.readouterr().err


def test_a_name_that_no_engine_reads_does_not_matter(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "1", seed=1)
    Path(os.fsdecode(os.path.join(os.fsencode(folder), b"readme-\xff.md"))).write_text("x")

    assert run(["validate", "--model", str(folder)]) == 0


def test_problem_details_hold_any_message() -> None:
    document = document_of(BadInput(["/srv/\udcff\ud800", "plain: \u00fc \\xff"]))

    assert document["detail"] == "/srv/\\xff\\ud800"
    assert document["lines"] == ["/srv/\\xff\\ud800", "plain: \u00fc \\xff"]
    assert escaped("\U0001f600") == "\U0001f600"
