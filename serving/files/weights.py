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

from serving.files.regular import NotReadable, TooLarge, begins_with, open_regular, read_regular

INDEX = "model.safetensors.index.json"
MISTRAL_INDEX = "consolidated.safetensors.index.json"
_MISTRAL_FILES = "consolidated*.safetensors"
# Parsed in one piece, in which no other thread of the process runs. The largest models have some 200,000
# tensors, of 100 bytes each; the format itself would allow a header of 100 MB.
MAX_HEADER_BYTES = MAX_INDEX_BYTES = 24 << 20
MAX_HEADERS_BYTES = 64 << 20  # of all files of a checkpoint
MAX_TENSORS = 500_000  # of all files of a checkpoint
MAX_SIDES, MAX_SIDE = 64, 2**63 - 1  # of a tensor's shape
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


@dataclass(frozen=True, slots=True)
class Weights:
    """The safetensors files that an engine loads from a folder."""

    names: tuple[str, ...]
    files: tuple[Path, ...]  # the same, but of several links to one file the first


def _weight_files(folder: Path, weight_map: Mapping[str, str] | None) -> tuple[Path, ...]:
    """The files that an engine loads, all present. weight_map: of the index. Raises WeightsError.

    As vLLM's load_format auto: Mistral's `consolidated*` before any others, and of either kind those that
    its index names; without an index, all of that kind.
    """
    if weight_map is not None:
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


def _index_of(folder: Path, limit: int) -> Mapping[str, str] | None:
    """Tensor name -> file name, of the index that counts; None: there is none. limit: bytes of it. Raises
    WeightsError; TooLarge over a limit below `MAX_INDEX_BYTES`."""
    index = folder / _index_name(folder)
    require_present(index)
    if not index.exists():
        return None
    try:
        weight_map = json.loads(read_regular(index, limit=limit))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except TooLarge as exc:
        if limit < MAX_INDEX_BYTES:
            raise
        raise WeightsError(str(exc)) from exc
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


def checked_weights(folder: Path, *, limit: int = MAX_HEADERS_BYTES) -> Weights:
    """The weights, all there and whole; none: the folder has no safetensors. Reads headers only.

    limit: bytes of the index, and of all headers. Raises WeightsError; TooLarge over a limit below
    `MAX_HEADERS_BYTES`. One header at a time is kept, and a file with several links is read once.
    """
    index = _index_of(folder, min(limit, MAX_INDEX_BYTES))
    promised: dict[str, list[str]] = {}
    for name, holder in (index or {}).items():
        promised.setdefault(holder, []).append(name)
    files = _weight_files(folder, index)
    links: dict[tuple[int, ...], list[Path]] = {}
    for file in files:
        links.setdefault(_identity(file), []).append(file)
    left, tensors = limit, 0
    for same in links.values():
        header, size = _header(same[0])
        left -= len(header)
        if left < 0 and limit < MAX_HEADERS_BYTES:
            raise TooLarge(f"{folder} has headers of over {limit:,} bytes")
        places = _places(same[0], header, size) if left >= 0 else {}
        tensors += len(places)
        if left < 0 or tensors > MAX_TENSORS:
            raise WeightsError(
                f"the weights of {folder} have over {limit:,} bytes of headers or {MAX_TENSORS:,} tensors; "
                "give the folder of one model"
            )
        for file in same:
            if lacking := next((name for name in promised.get(file.name, ()) if name not in places), None):
                raise WeightsError(
                    f"{file} lacks the tensor {lacking}, which {_index_name(folder)} promises; "
                    "copy both again"
                )
    return Weights(tuple(file.name for file in files), tuple(same[0] for same in links.values()))


def check_weights(folder: Path) -> None:
    """Raises WeightsError unless there are weights, all of them, and whole; reads headers only."""
    if not checked_weights(folder).names:
        raise WeightsError(f"{folder} has no *.safetensors weights; copy or convert them")


def _identity(file: Path) -> tuple[int, ...]:
    """Equal for links to one file. More than its inode, which some file systems make up."""
    try:
        found = file.stat()
    except OSError as exc:
        raise WeightsError(_unreadable(file, exc)) from exc
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


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


def tensor_places(file: Path, *, limit: int = MAX_HEADER_BYTES) -> dict[str, TensorPlace]:
    """The tensors of a safetensors file by name. limit: bytes of its header. Raises WeightsError unless the
    file is whole; TooLarge over a limit below `MAX_HEADER_BYTES`."""
    header, size = _header(file)
    if len(header) > limit:
        raise TooLarge(f"{file} has a header of over {limit:,} bytes")
    return _places(file, header, size)


def _header(file: Path) -> tuple[bytes, int]:
    """(header of a safetensors file, size of the file). Raises WeightsError."""
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
            return stream.read(length), size
    except OSError as exc:
        raise WeightsError(_unreadable(file, exc)) from exc


def _places(file: Path, header: bytes, size: int) -> dict[str, TensorPlace]:
    """The tensors of a header. Raises WeightsError unless the file, of `size` bytes, is whole."""
    start = 8 + len(header)
    try:
        places = _parse(json.loads(header), start=start)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as exc:
        raise WeightsError(f"{file} has no valid safetensors header ({exc}); copy it again") from exc
    needed = max((place.end for place in places.values()), default=start)
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
        if len(shape) > MAX_SIDES or not all(0 <= side <= MAX_SIDE for side in shape):
            raise ValueError(f"tensor {name} has a shape that no tensor has")
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
