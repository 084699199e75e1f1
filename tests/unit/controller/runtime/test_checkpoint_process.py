"""Large tokenizer files are parsed in a process of their own, with the result of one that is parsed here."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from controller.errors import BadCheckpoint, Unreachable
from controller.planning.tokenizer_digest import tokenizer_digest
from controller.runtime import tokenizer_process
from controller.runtime.child_process import ChildFailed, in_child
from controller.runtime.tokenizer_process import digest_apart

BIG = 2 << 20


def tokenizer(folder: Path, *, bytes_: int = BIG) -> Path:
    file = folder / "tokenizer.json"
    vocabulary = {f"token-{number:06}": number for number in range(bytes_ // 24)}
    file.write_text(json.dumps({"model": {"vocab": vocabulary, "merges": ["a b"]}}, indent=1))
    return file


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_small_file_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_process, "in_child", None)
    file = tokenizer(tmp_path, bytes_=2400)

    assert digest_apart(file) == tokenizer_digest(file)


def test_a_large_file_is_never_parsed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def elsewhere(work: partial[list[object]], **rest: object) -> list[object]:
        asked.append(work.args[0].name)
        return ["digest", [1]]

    monkeypatch.setattr(tokenizer_process, "in_child", elsewhere)
    monkeypatch.setattr("controller.planning.tokenizer_digest.object_of", None)

    assert digest_apart(tokenizer(tmp_path)) == ["digest", [1]]
    assert asked == ["tokenizer.json"]


def test_a_process_that_could_not_read_it_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(work: object, **rest: object) -> list[object]:
        raise ChildFailed("ended with exit code -9")

    monkeypatch.setattr(tokenizer_process, "in_child", elsewhere)

    for _ in range(2):  # it has given its place back
        with pytest.raises(Unreachable, match="was not read: ended with exit code -9; try again"):
            digest_apart(tokenizer(tmp_path))


def test_a_tokenizer_of_over_128_mebibyte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)

    with pytest.raises(OSError, match="has over 134,217,728 bytes, which is too much to parse"):
        tokenizer_digest(file)


@pytest.mark.integration  # real processes
def test_a_real_process_gives_the_digest_or_the_fault_of_the_file(tmp_path: Path) -> None:
    file = tokenizer(tmp_path)
    assert digest_apart(file) == tokenizer_digest(file)
    file.write_text("{" * BIG)

    with pytest.raises(BadCheckpoint, match="is not JSON"):
        digest_apart(file)
    with pytest.raises(ChildFailed, match="ended with exit code -9"):
        in_child(killed, name="test", limit_s=60.0)
