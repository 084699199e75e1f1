"""Files of a checkpoint: none is opened but as a regular one, and none is read beyond a limit."""

from __future__ import annotations

import ast
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.errors import BadCheckpoint
from controller.planning.fingerprint import fingerprint_checkpoint
from serving.files import weights
from serving.files.weights import WeightsError, tensor_places
from serving.fleet.engine_args import CheckpointError, architectures, check_checkpoint
from tests.fakes.checkpoints import write_checkpoint

INDEX = "model.safetensors.index.json"


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_huge_file(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (a_pipe, "is not a regular file"),
    "device": (a_device, "is not a regular file"),
    "huge": (a_huge_file, "has over 25,165,824 bytes"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_index_that_is_no_small_regular_file_is_refused_and_not_read(tmp_path: Path, kind: str) -> None:
    """It is no file that an engine reads as data, so the look at the others never saw it."""
    make, why = ODD[kind]
    folder = write_checkpoint(tmp_path / "m")
    make(folder / INDEX)

    with pytest.raises(BadCheckpoint, match=f"{INDEX} {why}"):
        fingerprint_checkpoint(folder)
    with pytest.raises(CheckpointError, match=f"{INDEX} {why}"):
        check_checkpoint(str(folder))


@pytest.mark.parametrize("kind", ODD)
def test_a_config_that_is_no_small_regular_file_starts_no_engine(tmp_path: Path, kind: str) -> None:
    make, why = ODD[kind]
    folder = write_checkpoint(tmp_path / "m")
    (folder / "config.json").unlink()
    make(folder / "config.json")

    with pytest.raises(CheckpointError, match=f"config.json {why.replace('25,165,824', '8,388,608')}"):
        architectures(str(folder))


def test_weights_that_became_a_pipe_are_not_waited_for(tmp_path: Path) -> None:
    a_pipe(tmp_path / "model.safetensors")

    with pytest.raises(WeightsError, match="is not a regular file"):
        tensor_places(tmp_path / "model.safetensors")


def test_a_header_that_is_too_large_to_parse_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", weights.MAX_HEADER_BYTES + 1))
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)

    with pytest.raises(WeightsError, match=r"has a header of 25,165,825 bytes, over 25,165,824"):
        tensor_places(file)


READERS = [
    *sorted(Path("controller/planning").glob("*.py")),
    Path("serving/files/weights.py"),
    Path("serving/fleet/engine_args.py"),
]
OPENS = {"open", "read_text", "read_bytes"}


@pytest.mark.parametrize("module", READERS, ids=lambda path: path.name)
def test_no_module_opens_a_file_of_a_checkpoint_in_a_way_of_its_own(module: Path) -> None:
    found = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute | ast.Name)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) in OPENS
    ]

    # `read_text(file)` is `checkpoint_files.read_text`; our own lists lie beside their modules.
    assert [call for call in found if not call.startswith(("read_text(", "(Path(__file__).parent / "))] == []
