"""A file of the state folder is written whole or not at all, and a disk that is full is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.private_file import write_private


def test_a_file_that_could_not_be_written_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(tmp_path / "admin.token", "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left") as failed:
        write_private(tmp_path / "admin.token", "two")
    assert failed.value.filename == str(tmp_path / "admin.token")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("admin.token", "one\n")]


@pytest.mark.parametrize("name", [None, "/srv/x"])
@pytest.mark.parametrize("code", [28, 30, 122, 5])
def test_a_disk_that_takes_nothing_is_one_line_and_exit_4(
    code: int, name: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: object) -> None:
        raise OSError(code, os.strerror(code), name)

    monkeypatch.setattr(sys.modules["controller.cli.main"], "app", full)

    assert run(["status"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name or 'what was to be written'}: {os.strerror(code)}; " in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "controller.cli", "version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1)
    assert "No space left on device; free disk space" in done.stderr
