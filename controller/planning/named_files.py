"""Engine arguments in normal form, with the digests of the files and folders that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from controller.planning.checkpoint_files import (
    MAX_FILE_BYTES,
    Private,
    cached,
    digest,
    file_digest,
    relevant_files,
    require_regular,
)
from controller.planning.engine_risk import THROUGHPUT
from controller.planning.generation import named_generation_file
from serving.files.engine_arguments import canonical_name, canonical_value

MAX_TEMPLATE_BYTES = 1 << 20
Json: TypeAlias = Any


def normal_arguments(arguments: Mapping[str, Json]) -> dict[str, Json]:
    """The arguments by vLLM's own names, with the values of JSON text."""
    named = {canonical_name(name): value for name, value in arguments.items()}
    return {name: canonical_value(name, value) for name, value in named.items()}


def content_digests(
    arguments: Mapping[str, Json], cache: MutableMapping[str, str], *, private: Private | None = None
) -> dict[str, str]:
    """Digest of what an argument's paths hold, by `NAME content`; without the arguments that name nothing.

    Not of caches and logs, which change no answer; nor of a folder of generation defaults, whose values count
    (`generation.py`). arguments: in normal form. private: what no argument may name.
    Raises BadCheckpoint when a named file cannot be read, is not a regular one, or is too large.
    """
    if private is not None:
        private.refuse(Path(path) for value in arguments.values() for path in _paths(value))
        generation = named_generation_file(arguments.get("generation_config"))
        private.refuse([] if generation is None else [generation])  # it may be a link
    return {
        f"{name} content": digest(found)
        for name, value in arguments.items()
        if name not in THROUGHPUT
        and not (name == "generation_config" and named_generation_file(value) is not None)
        and (found := [_content_digest(name, Path(text), cache, private) for text in _paths(value)])
    }


def _paths(value: Json) -> list[str]:
    """The existing absolute paths in a value, also behind the `=` of NAME=PATH and inside JSON text."""
    if isinstance(value, Mapping):
        return [path for inner in value.values() for path in _paths(inner)]
    if isinstance(value, list):
        return [path for inner in value for path in _paths(inner)]
    if not isinstance(value, str):
        return []
    if value.lstrip().startswith(("{", "[")):
        try:
            return _paths(json.loads(value))
        except (ValueError, RecursionError):
            return []
    text = value.strip()
    return [path for path in (text, text.partition("=")[2].strip()) if _exists(path)][:1]


def _exists(path: str) -> bool:
    try:
        return path.startswith("/") and Path(path).exists()
    except (OSError, ValueError):
        return False


def _content_digest(name: str, path: Path, cache: MutableMapping[str, str], private: Private | None) -> Json:
    if path.is_dir():
        files = relevant_files(path)
        if private is not None:
            private.refuse(files.values())
        return {name: cached(file, "file|", cache, file_digest) for name, file in files.items()}
    require_regular(path, limit=MAX_TEMPLATE_BYTES if name == "chat_template" else MAX_FILE_BYTES)
    return cached(path, "file|", cache, file_digest)
