"""Large files of a checkpoint are parsed in a process, with the result of one that is parsed here."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.errors import BadCheckpoint, Unreachable
from controller.planning.fingerprint import fingerprint_checkpoint
from controller.planning.tokenizer_digest import tokenizer_digest
from controller.runtime import checkpoint_process
from controller.runtime.checkpoint_process import parsed_apart
from controller.runtime.child_process import ChildFailed, in_child
from serving.files.regular import TooLarge
from tests.fakes.checkpoint_trees import llama, write_tree

BIG = 2 << 20


def tokenizer(folder: Path, *, bytes_: int = BIG) -> Path:
    file = folder / "tokenizer.json"
    vocabulary = {f"token-{number:06}": number for number in range(bytes_ // 24)}
    file.write_text(json.dumps({"model": {"vocab": vocabulary, "merges": ["a b"]}}, indent=1))
    return file


def digest_apart(file: Path) -> list[Any]:
    return parsed_apart(partial(tokenizer_digest, file), file)


def killed_unless_small(*, limit: int | None = None) -> None:
    if limit is not None:
        raise TooLarge("larger")
    killed()


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_small_file_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_process, "in_child", None)
    file = tokenizer(tmp_path, bytes_=2400)

    assert digest_apart(file) == tokenizer_digest(file)


def test_a_large_file_is_never_parsed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def elsewhere(work: partial[list[object]], **rest: object) -> list[object]:
        asked.append(work.args[1].name)
        return ["digest", [1]]

    monkeypatch.setattr(checkpoint_process, "in_child", elsewhere)
    monkeypatch.setattr("controller.planning.tokenizer_digest.object_of", None)

    assert digest_apart(tokenizer(tmp_path)) == ["digest", [1]]
    assert asked == ["tokenizer.json"]


def test_a_process_that_could_not_read_it_says_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(work: object, **rest: object) -> list[object]:
        raise ChildFailed("ended with exit code -9")

    monkeypatch.setattr(checkpoint_process, "in_child", elsewhere)

    for _ in range(2):  # it has given its place back
        with pytest.raises(Unreachable, match="was not read: ended with exit code -9; try again"):
            digest_apart(tokenizer(tmp_path))


def test_a_tokenizer_of_over_128_mebibyte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)

    with pytest.raises(OSError, match="has over 134,217,728 bytes, which is too much to parse"):
        tokenizer_digest(file)


def checkpoint(folder: Path, tensors: int) -> Path:
    """A checkpoint whose tensors are all empty, of some 50 bytes of header each."""
    entry = {"dtype": "X", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": entry for number in range(tensors)}).encode()
    weights = len(header).to_bytes(8, "little") + header
    return write_tree(folder, {**llama(), "model.safetensors": weights})


def test_headers_and_digests_of_many_tensors_are_never_parsed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400,000 tensors held the interpreter for 12 s in one go, where a lease has 5 s."""
    asked: list[str] = []

    def elsewhere(work: partial[Any], **rest: object) -> Any:
        asked.append(work.args[0].func.__name__)
        return work.args[0]()

    folder = checkpoint(tmp_path / "m", 20_000)
    expected = fingerprint_checkpoint(folder)
    monkeypatch.setattr(checkpoint_process, "in_child", elsewhere)

    assert fingerprint_checkpoint(folder, apart=parsed_apart) == expected
    assert asked == ["checked_weights", "hashed_tensors", "merged"]


def test_a_usual_checkpoint_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_process, "in_child", None)
    folder = checkpoint(tmp_path / "m", 1_000)

    assert fingerprint_checkpoint(folder, apart=parsed_apart) == fingerprint_checkpoint(folder)


@pytest.mark.integration
def test_a_real_process_hashes_the_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", 20_000)

    assert fingerprint_checkpoint(folder, apart=parsed_apart) == fingerprint_checkpoint(folder)
    with pytest.raises(Unreachable, match="was not read"):
        parsed_apart(killed_unless_small, folder)


@pytest.mark.integration  # real processes
def test_a_real_process_gives_the_digest_or_the_fault_of_the_file(tmp_path: Path) -> None:
    file = tokenizer(tmp_path)
    assert digest_apart(file) == tokenizer_digest(file)
    file.write_text("{" * BIG)

    with pytest.raises(BadCheckpoint, match="is not JSON"):
        digest_apart(file)
    with pytest.raises(ChildFailed, match="ended with exit code -9"):
        in_child(killed, name="test", limit_s=60.0)
