"""Weight files of a checkpoint directory: which the engine loads, and whether they are whole.

The one rule for the fingerprint and for the check before a load. A file is whole if its header is valid, its
tensors follow each other without gaps and end where the file ends: the format's own rule, in its own reader.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.files.regular import NotReadable, begins_with, open_regular, read_regular

INDEX = "model.safetensors.index.json"
MISTRAL_INDEX = "consolidated.safetensors.index.json"
_MISTRAL_FILES = "consolidated*.safetensors"
# Parsed in one piece, in which no other thread of the process runs. The largest models have some 150,000
# tensors, of 100 bytes each; the format itself would allow a header of 100 MB.
MAX_HEADER_BYTES = MAX_INDEX_BYTES = 24 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# Bits of an element, by dtype; a dtype that is not listed is not checked against its tensor's bytes.
_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}


class WeightsError(ValueError):
    """The weights are incomplete or broken; one line: which file, what is wrong, the remedy."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of a file. begin, end: bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that an engine loads from the folder, all present. Raises WeightsError.

    As vLLM's load_format auto: Mistral's `consolidated*` before any others, and of either kind those that
    its index names; without an index, all of that kind.
    """
    if (weight_map := index_of(folder)) is not None:
        names = sorted(set(weight_map.values()))
        _require_all(folder, names)
        return tuple(folder / name for name in names)
    files = _shown(folder, _MISTRAL_FILES) or _shown(folder, "*.safetensors")
    expected = {file.name for file in files}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            stem, count = match[1], int(match[3])
            expected |= {f"{stem}-{number:05}-of-{match[3]}.safetensors" for number in range(1, count + 1)}
    _require_all(folder, sorted(expected))
    return tuple(files)


def index_of(folder: Path) -> Mapping[str, str] | None:
    """Tensor name -> file name, of the index that counts; None: there is none. Raises WeightsError."""
    index = folder / _index_name(folder)
    require_present(index)
    if not index.exists():
        return None
    try:
        weight_map = json.loads(read_regular(index, limit=MAX_INDEX_BYTES))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except NotReadable as exc:
        raise WeightsError(str(exc)) from exc
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise WeightsError(f"{index} cannot be read ({exc}); copy the checkpoint again") from exc
    if not names:
        raise WeightsError(f"{index} has an empty weight_map; copy the checkpoint again")
    if outside := next((file for file in names.values() if Path(file).name != file), None):
        raise WeightsError(f"{index} names {outside!r}, outside its folder; copy the checkpoint again")
    return names


def _index_name(folder: Path) -> str:
    return MISTRAL_INDEX if _shown(folder, _MISTRAL_FILES) else INDEX


def _shown(folder: Path, pattern: str) -> list[Path]:
    """The files of the folder, without hidden ones, as engines look for them: macOS leaves a `._NAME` beside
    each file of a disk that is not its own."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


def check_index(folder: Path, found: Mapping[str, Mapping[str, TensorPlace]]) -> None:
    """Raises WeightsError if the index names a tensor that its file lacks. found: tensors by file name."""
    for name, file in (index_of(folder) or {}).items():
        if name not in found.get(file, {}):
            raise WeightsError(
                f"{folder / file} lacks the tensor {name}, which {_index_name(folder)} promises; "
                "copy both again"
            )


def check_weights(folder: Path) -> None:
    """Raises WeightsError unless all weights are there and whole; reads headers only."""
    files = weight_files(folder)
    if not files:
        raise WeightsError(f"{folder} has no *.safetensors weights; copy or convert them")
    check_index(folder, {file.name: tensor_places(file) for file in files})


def require_present(file: Path) -> None:
    """Raises WeightsError for a link whose target is missing, and for a Git LFS pointer in a file's place."""
    if file.is_symlink() and not file.exists():
        raise WeightsError(
            f"{file} is a link to {file.readlink()}, which is not there; copy the files that the links point "
            "to (cp -rL), or download the checkpoint again"
        )
    # Not of 0 bytes, as the kernel's own files seem to have: reading one may wait for ever.
    try:
        is_short = file.is_file() and 0 < file.stat().st_size < 1024
        is_pointer = is_short and begins_with(file, _LFS_POINTER)
    except OSError as exc:
        raise WeightsError(_unreadable(file, exc)) from exc
    if is_pointer:
        raise WeightsError(
            f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` where it was cloned"
        )


def tensor_places(file: Path) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file by name. Raises WeightsError unless the file is whole."""
    require_present(file)
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise WeightsError(f"{file} is truncated inside its header ({size} bytes); copy it again")
            if length > MAX_HEADER_BYTES:
                raise WeightsError(
                    f"{file} has a header of {length:,} bytes, over {MAX_HEADER_BYTES:,}; split the file"
                )
            text = stream.read(length)
    except OSError as exc:
        raise WeightsError(_unreadable(file, exc)) from exc
    try:
        places = _parse(json.loads(text), start=8 + length)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as exc:
        raise WeightsError(f"{file} has no valid safetensors header ({exc}); copy it again") from exc
    needed = max((place.end for place in places.values()), default=8 + length)
    if size < needed:
        raise WeightsError(f"{file} is truncated: {size} bytes of {needed}; copy it again")
    if size > needed:
        raise WeightsError(f"{file} has {size - needed} bytes after its last tensor; copy it again")
    return places


def _parse(header: Mapping[str, Mapping[str, list[int]]], *, start: int) -> dict[str, TensorPlace]:
    """The places; ValueError for tensors that overlap, leave gaps, or have another size than their shape."""
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(side) for side in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
        places[name] = TensorPlace(str(entry["dtype"]), shape, start + begin, start + end)
    position = start
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != position or place.end < place.begin:
            raise ValueError(f"tensor {name} does not begin where the one before ends")
        bits = _BITS.get(place.dtype)
        if bits is not None and place.elements * bits != 8 * (place.end - place.begin):
            raise ValueError(f"tensor {name} has other bytes than its shape {list(place.shape)} needs")
        position = place.end
    return places


def _unreadable(file: Path, exc: OSError) -> str:
    if isinstance(exc, NotReadable):
        return str(exc)
    return f"{file} cannot be read ({exc.strerror}); check its permissions"


def _require_all(folder: Path, names: list[str]) -> None:
    for name in names:
        require_present(folder / name)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"checkpoint {folder} lacks {len(missing)} of {len(names)} weight files, {missing[0]} first; "
            "copy it again"
        )
