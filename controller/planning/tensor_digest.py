"""Digest of a checkpoint's tensors, by name, dtype, shape and bytes; how files share them has no effect.

The text of a file's digests is kept as it is: of the largest models it has 20 MB, which are parsed elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from controller.errors import BadCheckpoint
from controller.planning.apart import Apart
from controller.planning.checkpoint_files import CHUNK_BYTES, cached_text, digest
from serving.files.regular import TooLarge, open_regular
from serving.files.weights import MAX_HEADER_BYTES, WeightsError, tensor_places

Json: TypeAlias = Any


def tensor_digest(
    folder: Path, files: Sequence[Path], cache: MutableMapping[str, str], apart: Apart
) -> tuple[str, int, int]:
    """(digest, bytes, elements) over all tensors of the checkpoint. Raises BadCheckpoint."""

    def hashed(file: Path) -> str:
        return apart(partial(hashed_tensors, file), file, hashed_bytes=file.stat().st_size)

    try:
        texts = [cached_text(file, "", cache, hashed) for file in files]
    except WeightsError as exc:
        raise BadCheckpoint(str(exc)) from exc
    return apart(partial(merged, texts), folder)


def hashed_tensors(file: Path, *, limit: int = MAX_HEADER_BYTES) -> str:
    """JSON: tensor name -> [dtype, shape, digest of its bytes, number of bytes, number of elements].

    limit: bytes of the header. Raises WeightsError, BadCheckpoint, OSError; TooLarge over a lower limit.
    """
    tensors: dict[str, list[Json]] = {}
    places = tensor_places(file, limit=limit)
    with open_regular(file) as stream:
        for name, place in sorted(places.items(), key=lambda item: item[1].begin):
            stream.seek(place.begin)
            hashed, remaining = hashlib.sha256(), place.end - place.begin
            while remaining > 0:
                chunk = stream.read(min(CHUNK_BYTES, remaining))
                if not chunk:
                    raise BadCheckpoint(f"{file} was truncated while it was read; copy it again")
                hashed.update(chunk)
                remaining -= len(chunk)
            size = place.end - place.begin
            tensors[name] = [place.dtype, list(place.shape), hashed.hexdigest(), size, place.elements]
    return json.dumps(tensors)


def merged(texts: Sequence[str], *, limit: int | None = None) -> tuple[str, int, int]:
    """`tensor_digest` of the texts of `hashed_tensors`. limit: their length; None: any. Raises TooLarge."""
    if limit is not None and sum(map(len, texts)) > limit:
        raise TooLarge(f"the tensors have over {limit:,} bytes of digests")
    tensors: dict[str, list[Json]] = {}
    # Tensors of a name that another file has too: which one counts is the engine's choice.
    others: list[tuple[str, Json]] = []
    for text in texts:
        found: dict[str, list[Json]] = json.loads(text)
        others += [(name, tensors[name]) for name in found if tensors.get(name, found[name]) != found[name]]
        tensors.update(found)
    listed = sorted(tensors.items())
    size, elements = (sum(int(entry[index]) for _, entry in listed) for index in (3, 4))
    return digest([[name, *entry[:3]] for name, entry in (*listed, *sorted(others))]), size, elements
