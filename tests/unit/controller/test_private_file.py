"""A file of the state folder is written whole or not at all, and a disk that is full is told in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.errors import BadInput
from controller.private_file import read_private, write_private


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


@pytest.mark.slow
def test_two_writers_at_once_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    """They had the same partial file: one took it from the other, and a reader saw an empty file."""
    path, failed = tmp_path / "digests", list[OSError]()
    wholes = [letter * 20_000 for letter in "ab"]

    def write(text: str) -> None:
        for _ in range(50):
            try:
                write_private(path, text)
            except OSError as exc:
                failed.append(exc)

    writers = [threading.Thread(target=write, args=(text,)) for text in wholes]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(read_private(path, remedy=""))
    for writer in writers:
        writer.join()

    assert (failed, seen <= {None, *wholes}) == ([], True)
    assert [one.name for one in tmp_path.iterdir()] == ["digests"]


def no_text(path: Path) -> None:
    path.write_bytes(b"sqlite:////srv/\xff.db")


@pytest.mark.parametrize("damage", [no_text, Path.mkdir])
def test_a_file_that_cannot_be_read_is_named_with_the_remedy(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "database.url"
    assert read_private(path, remedy="remove it") is None
    damage(path)

    with pytest.raises(BadInput, match=rf"{path} cannot be read \(.*\); remove it"):
        read_private(path, remedy="remove it")


def test_text_that_is_no_utf_8_is_refused_and_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no UTF-8"):
        write_private(tmp_path / "database.url", os.fsdecode(b"sqlite:////srv/\xff.db"))

    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.slow
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
