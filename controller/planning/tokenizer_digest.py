"""Digest of a tokenizer file, with a sketch of its vocabulary.

Of JSON the values are hashed, not how they are written, so it is parsed: a file of 40 MB takes seconds, in
which no other thread of a process runs. The controller does it in a process of its own
(`controller/runtime/checkpoint_process.py`); this module imports little, so that such a process starts soon.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeAlias

from controller.planning.checkpoint_files import MAX_TOKENIZER_BYTES, digest, object_of
from controller.planning.families import vocabulary_sketch
from controller.planning.tokenizer_files import normal_tokenizer, tokens_in, tokens_of
from serving.files.regular import read_regular

Json: TypeAlias = Any


def tokenizer_digest(file: Path, *, limit: int = MAX_TOKENIZER_BYTES) -> list[Json]:
    """[digest, sketch of its vocabulary]. limit: bytes of the file. Raises BadCheckpoint, OSError."""
    data = read_regular(file, limit=limit)
    if file.suffix != ".json":
        return [digest(hashlib.sha256(data).hexdigest()), list(vocabulary_sketch(tokens_in(file.name, data)))]
    value = object_of(file, data)
    return [digest(normal_tokenizer(value)), list(vocabulary_sketch(tokens_of(value)))]
