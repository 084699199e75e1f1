"""Generation defaults that an engine applies: the checkpoint's, or what its arguments put in their place.

As vLLM reads them: `generation_config` names the folder of the file; `vllm` leaves out the checkpoint's
defaults but keeps its special tokens; `override_generation_config` wins over both. A request may ask for more
tokens than the checkpoint's own file says, but not for more than a named folder or an override does: there
the length is a limit, and counts as a value of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from controller.planning.checkpoint_files import digest, read_object
from controller.planning.model_config import SPECIAL

Json: TypeAlias = Any

GENERATION_FILE = "generation_config.json"
_OF_THE_CHECKPOINT = ("auto", "vllm")
_LENGTH = "max_new_tokens"
_SHOWN = frozenset(  # of transformers' GenerationConfig, beside numbers
    [
        "generation_config",
        "override_generation_config",
        "stop",
        "stop_strings",
        "bad_words_ids",
        "sequence_bias",
        "suppress_tokens",
        "begin_suppress_tokens",
        "forced_decoder_ids",
        "cache_implementation",
        "cache_config",
    ]
)


def effective_generation(own: Mapping[str, Json], arguments: Mapping[str, Json]) -> dict[str, Json]:
    """The generation defaults by key, special tokens among them; nulls are left out, as in the engine.

    own: the checkpoint's generation_config.json. arguments: the engine's, in normal form; one that cannot be
    resolved stays in the result under its own name. Raises BadCheckpoint when a named file is broken.
    """
    source = arguments.get("generation_config", "auto")
    override = arguments.get("override_generation_config", {})
    if source == "auto":
        values = dict(own)
    elif source == "vllm":
        values = {key: value for key, value in own.items() if key in SPECIAL}
    elif (file := named_generation_file(source)) is not None:
        values = read_object(file)
    else:
        values = {"generation_config": source}
    values |= override if isinstance(override, Mapping) else {"override_generation_config": override}
    limits = override if source in _OF_THE_CHECKPOINT else values
    if isinstance(limits, Mapping) and limits.get(_LENGTH) is not None:
        values[f"{_LENGTH}, as a limit"] = limits[_LENGTH]
    return {key: value for key, value in values.items() if value is not None}


def shown_value(key: str, value: Json) -> Json:
    """A default as plans show it: numbers, and the text of known keys; of others a digest.

    Whoever may ask for a plan names the file, and it may be a link to anything that the controller may read.
    """
    if isinstance(value, bool | int | float) or key in _SHOWN:
        return value
    return f"digest {digest(value)[:12]}"


def named_generation_file(source: Json) -> Path | None:
    """The generation_config.json of the folder that the argument names; None: there is none to read."""
    if not isinstance(source, str) or not source.startswith("/"):
        return None
    file = Path(source) / GENERATION_FILE
    try:
        return file if file.is_file() else None
    except (OSError, ValueError):
        return None
