"""Weight files: which an engine loads, and what makes them incomplete or broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import serving.files.weights as weights_module
from controller.errors import BadCheckpoint
from controller.planning.fingerprint import fingerprint_checkpoint
from serving.files.weights import checked_weights
from serving.fleet.engine_args import CheckpointError, check_checkpoint
from tests.fakes import checkpoint_trees as trees
from tests.fakes.checkpoint_trees import Tree, llama, without, write_tree

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 988097824\n"
WHOLE = trees.safetensors(trees.tensors(0))
PART = {"a.weight": trees.tensor(0, 2)}


def file_of(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def weights(**files: object) -> Tree:
    return {
        **without(llama(), "model.safetensors"),
        **{name.replace("__", "-"): one for name, one in files.items()},
    }


def shards(count: int, *present: int) -> Tree:
    names = {
        f"model-{number:05}-of-{count:05}.safetensors": {f"w{number}": PART["a.weight"]} for number in present
    }
    return {
        **without(llama(), "model.safetensors"),
        **{name: trees.safetensors(one) for name, one in names.items()},
    }


def indexed(weight_map: dict[str, str]) -> Tree:
    return {**shards(2, 1, 2), "model.safetensors.index.json": {"weight_map": weight_map}}


BROKEN = [
    (
        "a side of ten thousand digits",
        {**llama(), "model.safetensors": file_of({"a": entry(0, 4, [10**4_000, 10**4_000])}, bytes(4))},
        "tensor a has a shape that no tensor has",
    ),
    (
        "a shape of a hundred sides",
        {**llama(), "model.safetensors": file_of({"a": entry(0, 4, [1] * 100)}, bytes(4))},
        "tensor a has a shape that no tensor has",
    ),
    (
        "no index, one of three shards missing",
        shards(3, 1, 2),
        "lacks 1 of 3 weight files, model-00003-of-00003",
    ),
    (
        "an index, its shard missing",
        {
            **shards(2, 1),
            "model.safetensors.index.json": {"weight_map": {"w2": "model-00002-of-00002.safetensors"}},
        },
        "lacks 1 of 1 weight files, model-00002-of-00002.safetensors first",
    ),
    (
        "an index that promises a tensor its file lacks",
        indexed({"w1": "model-00001-of-00002.safetensors", "w9": "model-00002-of-00002.safetensors"}),
        "lacks the tensor w9, which model.safetensors.index.json promises",
    ),
    ("an index that leaves its folder", indexed({"w1": "../x.safetensors"}), "outside its folder"),
    ("an index that is empty", indexed({}), "has an empty weight_map"),
    (
        "a Git LFS pointer",
        {**llama(), "model.safetensors": POINTER},
        "is a Git LFS pointer, not the file itself",
    ),
    (
        "bytes after the last tensor",
        {**llama(), "model.safetensors": WHOLE + b"xx"},
        "has 2 bytes after its last",
    ),
    ("a file cut off", {**llama(), "model.safetensors": WHOLE[:-2]}, "is truncated: "),
    (
        "a gap between tensors",
        {**llama(), "model.safetensors": file_of({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12))},
        "tensor b does not begin where the one before ends",
    ),
    (
        "tensors that overlap",
        {**llama(), "model.safetensors": file_of({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12))},
        "tensor b does not begin where the one before ends",
    ),
    (
        "fewer bytes than the shape needs",
        {**llama(), "model.safetensors": file_of({"a": entry(0, 4, [2])}, bytes(4))},
        "tensor a has other bytes than its shape [2] needs",
    ),
    (
        "a header nested a hundred thousand deep",
        {**llama(), "model.safetensors": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000},
        "has no valid safetensors header",
    ),
]


@pytest.mark.parametrize(("tree", "message"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN])
@pytest.mark.parametrize("check", [fingerprint_checkpoint, check_checkpoint])
def test_broken_weights_are_refused_by_plan_and_load_alike(
    tmp_path: Path, check: Callable[[object], object], tree: Tree, message: str
) -> None:
    folder = write_tree(tmp_path / "m", tree)

    with pytest.raises((BadCheckpoint, CheckpointError)) as caught:
        check(folder if check is fingerprint_checkpoint else str(folder))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_link_of_a_cache_snapshot_names_its_target_and_the_remedy(tmp_path: Path) -> None:
    snapshot = trees.write_snapshot(tmp_path / "hub", llama())
    (tmp_path / "hub/models--acme--m/blobs/model.safetensors").unlink()

    with pytest.raises(BadCheckpoint) as caught:
        fingerprint_checkpoint(snapshot)

    assert "model.safetensors is a link to ../../blobs/model.safetensors, which is not there" in str(
        caught.value
    )
    assert "cp -rL" in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "mystery.dat"])
def test_a_pointer_in_place_of_any_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_tree(tmp_path / "m", {**llama(), name: POINTER})

    with pytest.raises(BadCheckpoint, match=f"{name} is a Git LFS pointer"):
        fingerprint_checkpoint(folder)


def test_shards_without_an_index_are_complete_if_their_names_say_so(tmp_path: Path) -> None:
    check_checkpoint(str(write_tree(tmp_path / "m", shards(3, 1, 2, 3))))


def test_mistrals_copy_of_the_weights_is_loaded_before_the_other(tmp_path: Path) -> None:
    """vLLM's load_format auto looks for consolidated*.safetensors first, and loads nothing else then."""
    both = {**llama(), "consolidated.safetensors": trees.safetensors(PART)}
    alone = {**without(llama(), "model.safetensors"), "consolidated.safetensors": trees.safetensors(PART)}

    assert fingerprint_checkpoint(write_tree(tmp_path / "both", both)).parameters == 2
    assert fingerprint_checkpoint(write_tree(tmp_path / "alone", alone)).parameters == 2


@pytest.mark.parametrize(
    "name",
    [
        *("._model.safetensors", "._consolidated.safetensors", "._config.json", "._tokenizer.json"),
        *("._tokenizer_config.json", "._chat_template.jinja", "._modeling_x.py", "onnx/._x.safetensors"),
    ],
)
def test_what_macos_leaves_beside_a_file_is_none_of_the_checkpoints(tmp_path: Path, name: str) -> None:
    """SceneWorks/SceneWorks #1333: the weights were told to be truncated, and copying brought it again."""
    resource_fork = bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(100)
    folder = write_tree(tmp_path / "m", {**llama(), name: resource_fork})

    check_checkpoint(str(folder))
    assert fingerprint_checkpoint(folder) == fingerprint_checkpoint(write_tree(tmp_path / "n", llama()))


def test_the_index_of_the_other_copy_does_not_count_beside_mistrals(tmp_path: Path) -> None:
    tree = {
        **trees.sharded(llama(), trees.tensors(0), 2),
        "consolidated.safetensors": trees.safetensors(PART),
    }
    folder = write_tree(tmp_path / "m", tree)
    check_checkpoint(str(folder))
    assert fingerprint_checkpoint(folder).parameters == 2

    (folder / "consolidated.safetensors").write_bytes(trees.safetensors(PART)[:-1])
    with pytest.raises(CheckpointError, match=r"consolidated\.safetensors is truncated"):
        check_checkpoint(str(folder))


EMPTY = {"dtype": "X", "shape": [0], "data_offsets": [0, 0]}


def of_empty_tensors(folder: Path, *, files: int, tensors: int) -> Path:
    names = {
        f"w{number}.safetensors": file_of({f"{number}.{n}": EMPTY for n in range(tensors)})
        for number in range(files)
    }
    return write_tree(folder, {**without(llama(), "model.safetensors"), **names})


@pytest.mark.parametrize(
    ("name", "limit"), [("MAX_TENSORS", 250), ("MAX_HEADERS_BYTES", 15_000)], ids=["tensors", "headers"]
)
@pytest.mark.parametrize("check", [fingerprint_checkpoint, check_checkpoint])
def test_the_limits_are_of_all_files_of_a_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[object], object],
    name: str,
    limit: int,
) -> None:
    """Each of 20,000 files could have 400,000 tensors, which were all kept at once."""
    monkeypatch.setattr(weights_module, name, limit)
    defaults = checked_weights.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "limit", weights_module.MAX_HEADERS_BYTES)
    two = of_empty_tensors(tmp_path / "two", files=2, tensors=100)
    three = of_empty_tensors(tmp_path / "three", files=3, tensors=100)

    check(two if check is fingerprint_checkpoint else str(two))
    with pytest.raises((BadCheckpoint, CheckpointError), match="give the folder of one model"):
        check(three if check is fingerprint_checkpoint else str(three))


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_file_with_many_links_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: Callable[[Path, Path], None]
) -> None:
    read: list[str] = []
    real = weights_module._parse

    def counted(header: Any, *, start: int) -> Any:
        read.append("")
        return real(header, start=start)

    alone = of_empty_tensors(tmp_path / "m", files=1, tensors=9)
    expected = fingerprint_checkpoint(alone)
    for number in range(1, 20):
        link(alone / f"w{number}.safetensors", alone / "w0.safetensors")
    monkeypatch.setattr(weights_module, "_parse", counted)
    cache: dict[str, str] = {}

    assert fingerprint_checkpoint(alone, cache=cache) == expected
    assert len(read) == 2  # to look whether it is whole, and to hash it
    assert len(cache) == 1


def test_whatever_is_wrong_is_told_before_the_weights_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.planning.tensor_digest.hashed_tensors", None)

    with pytest.raises(BadCheckpoint, match="has no tokenizer"):
        fingerprint_checkpoint(write_tree(tmp_path / "m", without(llama(), "tokenizer.json")))
