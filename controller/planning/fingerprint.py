"""Fingerprint of a version, from its files: digests of tensors, tokenizer, template, configuration, the rest.

Two checkpoints with the same digests answer alike under the same engine. Tensors are hashed by name, dtype,
shape and bytes, so sharding has no effect; config.json in its normal form, so defaults that are written out
have none. The caller keeps `cache` (a file's path, times, size and inode -> its digests), so that a
checkpoint of 140 GB is read once.

Invariant: the only file reads of the controller's core are here and in the modules that this one calls;
nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from controller.errors import BadCheckpoint
from controller.planning.apart import Apart, here
from controller.planning.checkpoint_files import (
    PARSED,
    Private,
    cached,
    digest,
    file_digest,
    group_of,
    read_object,
    read_text,
    relevant_files,
)
from controller.planning.generation import effective_generation, shown_value
from controller.planning.model_config import NOISE, SPECIAL, ModelConfig, read_config
from controller.planning.named_files import content_digests, normal_arguments
from controller.planning.tensor_digest import tensor_digest
from controller.planning.tokenizer_digest import tokenizer_digest
from controller.planning.tokenizer_files import VOCABULARY_FILES
from serving.files.regular import NotReadable
from serving.files.weights import Weights, WeightsError, checked_weights

Json: TypeAlias = Any

# Of the rules below. A version keeps the id that it was stored with: what was stored under older rules is
# compared by computing it anew (`controller/wiring/launches.py`), never by its id.
SCHEME = 4
_OLDEST_SCHEME = 1
_PIECES = ("tokenizer", "template", "quantization", "processor", "code", "files")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A version's identity. `parts`: one digest for each thing that can change independently."""

    kind: str  # checkpoint | external
    architecture: str  # '' for an external endpoint
    family: str  # model_type, such as llama; the URL of an external endpoint
    parts: tuple[tuple[str, str], ...]
    sampling: tuple[tuple[str, str], ...]  # effective generation defaults, values as JSON
    engine: tuple[tuple[str, str], ...]  # engine arguments, values as JSON; `NAME content`: of a named file
    tensor_bytes: int  # 0 for an external endpoint
    parameters: int
    scheme: int = _OLDEST_SCHEME  # of the rules that computed it
    files: tuple[tuple[str, str], ...] = ()  # digests of side files by name, to name them; in `parts` too
    vocabulary: tuple[int, ...] = ()  # sketch, to compare; (): not known
    vocabulary_size: int = 0  # of config.json; 0: not known

    @property
    def digest(self) -> str:
        """64 hex digits over all fields but the sizes, which follow from them."""
        identity: list[object] = [
            self.kind,
            self.family,
            list(self.parts),
            list(self.sampling),
            list(self.engine),
        ]
        return digest([self.scheme, *identity] if self.scheme != _OLDEST_SCHEME else identity)

    @property
    def version_id(self) -> str:
        """`v-` and ten hex digits."""
        return f"v-{self.digest[:10]}"

    @property
    def is_current(self) -> bool:
        """Whether it was computed by today's rules, so that it compares with a fresh one."""
        return self.scheme == SCHEME or self.kind == "external"

    def part(self, name: str) -> str:
        """The digest of one part; empty: the version has no such part."""
        return dict(self.parts).get(name, "")

    def on_release(self, release: str) -> Fingerprint:
        """The same version run by another engine release."""
        parts = {**dict(self.parts), "engine_release": release}
        return replace(self, parts=tuple(sorted(parts.items())))


def known_architectures() -> frozenset[str]:
    """Class names of the generative models that the pinned engine release serves (architectures.json)."""
    return frozenset(json.loads((Path(__file__).parent / "architectures.json").read_text()))


def fingerprint_external(url: str, model: str | None = None, api_key: str | None = None) -> Fingerprint:
    """Fingerprint of an external endpoint: its URL, the model's name there, and where its key is found.

    api_key: the reference, never the key itself. A key may lead to another deployment behind the same URL.
    """
    base = url.rstrip("/")
    base += "" if urlsplit(base).path else "/v1"  # a bare host serves there (`serving.targets.Endpoint`)
    address = base if model is None else f"{base} {model}"
    key = (("api_key", digest(api_key)),) if api_key is not None else ()
    return Fingerprint("external", "", address, (*key, ("url", digest(address))), (), (), 0, 0)


def fingerprint_checkpoint(
    path: Path,
    *,
    engine_arguments: Mapping[str, Json] | None = None,
    engine_release: str = "",
    architectures: Collection[str] | None = None,
    cache: MutableMapping[str, str] | None = None,
    private: Path | None = None,
    apart: Apart = here,
) -> Fingerprint:
    """Fingerprint of the checkpoint directory `path`, run with these arguments on this engine release.

    architectures: those that the engine supports; None: any. cache: read and written; None: hash everything.
    private: a folder that no file may lie in, also not by a link, but for a checkpoint in it.
    apart: where large files are parsed.
    Raises BadCheckpoint with one line when the directory is missing, broken or cannot be served.
    """
    cache = {} if cache is None else cache
    files = _files(path)
    guard = Private(private, unless=path) if private is not None else None
    if guard is not None:
        guard.refuse(files.values())
    config = read_object(files["config.json"])
    architecture = _architecture(path, config, architectures)
    # Whatever can be wrong is looked at before the first of 140 GB is read.
    weights = _weights(path, apart)
    model = read_config(config)
    arguments = normal_arguments(engine_arguments or {})
    generation = effective_generation(read_object(files.get("generation_config.json")), arguments)
    sides, vocabulary = _side_files(path, files, cache, weights.names, apart)
    contents = content_digests(arguments, cache, private=guard)
    special = [_special_tokens(files), dict(model.special), _only(generation, SPECIAL)]
    tensors, size, parameters = tensor_digest(path, weights.files, cache, apart)
    parts = {
        "tensors": tensors,
        **_part_digests(model, config["architectures"], sides),
        "special_tokens": digest(special),
        "engine_release": engine_release,
    }
    sampling = {
        key: shown_value(key, value) for key, value in generation.items() if key not in SPECIAL | NOISE
    }
    return Fingerprint(
        kind="checkpoint",
        architecture=architecture,
        family=str(config.get("model_type", architecture)),
        parts=tuple(sorted(parts.items())),
        sampling=_pairs(sampling),
        engine=_pairs({**arguments, **contents}),
        tensor_bytes=size,
        parameters=parameters,
        scheme=SCHEME,
        files=tuple(sorted((name, value) for group in sides.values() for name, value in group.items())),
        vocabulary=vocabulary,
        vocabulary_size=_vocabulary_size(config),
    )


def _files(path: Path) -> dict[str, Path]:
    """The files that an engine may read, config.json among them. Raises BadCheckpoint."""
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as exc:
        raise BadCheckpoint(f"checkpoint {path} cannot be looked up ({exc}); give another folder") from exc
    if not is_folder:
        raise BadCheckpoint(f"checkpoint {path} is not a directory; give the folder that holds config.json")
    files = relevant_files(path)
    if "adapter_config.json" in files:
        raise BadCheckpoint(f"checkpoint {path} is a LoRA adapter; merge it into its base first")
    if "config.json" not in files:
        raise BadCheckpoint(f"checkpoint {path} has no config.json; give a complete checkpoint")
    return files


def _architecture(path: Path, config: Mapping[str, Json], supported: Collection[str] | None) -> str:
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], str):
        raise BadCheckpoint(f"{path / 'config.json'} lists no architectures; add the model's class name")
    if supported is not None and listed[0] not in supported:
        raise BadCheckpoint(
            f"{path / 'config.json'}: architecture {listed[0]!r} is unknown to the engine, which supports "
            f"{len(supported)}; convert the checkpoint, or upgrade the engine"
        )
    return listed[0]


def _part_digests(
    model: ModelConfig, architectures: list[Json], sides: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    quantization = [model.quantization, dict(sides["quantization"])]
    return {
        "sizes": digest(dict(model.sizes)),
        "config": digest([architectures, dict(model.rest)]),
        "rope": digest(dict(model.rope)),
        "quantization": digest(quantization) if quantization != [None, {}] else "",
        "dtype": digest(model.dtype),
        **{name: digest(sides[name]) for name in ("tokenizer", "template")},
        **{name: digest(sides[name]) if sides[name] else "" for name in ("processor", "code", "files")},
    }


# --- tensors


def _weights(path: Path, apart: Apart) -> Weights:
    """The weight files, all whole. Raises BadCheckpoint."""
    try:
        found = apart(partial(checked_weights, path), path)
    except (WeightsError, NotReadable) as exc:
        raise BadCheckpoint(str(exc)) from exc
    if not found.names:
        raise BadCheckpoint(f"checkpoint {path} holds {_other_weights(path)}; convert it to safetensors")
    return found


def _other_weights(path: Path) -> str:
    others = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for file in path.glob(kind))
    return f"only {others[0]}" if others else "no tensors"


# --- side files


def _side_files(
    path: Path,
    files: Mapping[str, Path],
    cache: MutableMapping[str, str],
    weights: Collection[str],
    apart: Apart,
) -> tuple[dict[str, dict[str, str]], tuple[int, ...]]:
    """(digest by file name, by group; sketch of the vocabulary). Raises BadCheckpoint without a tokenizer."""
    groups: dict[str, dict[str, str]] = {name: {} for name in _PIECES}
    sketches: dict[str, tuple[int, ...]] = {}
    for name, file in files.items():
        if name in weights or name in PARSED:
            continue
        group = group_of(name)
        if group == "tokenizer":
            groups[group][name], sketch = cached(
                file, "tokenizer|", cache, lambda one: apart(partial(tokenizer_digest, one), one)
            )
            sketches[name] = tuple(sketch)
        else:
            groups[group][name] = cached(file, "file|", cache, file_digest)
    if not groups["tokenizer"]:
        raise BadCheckpoint(
            f"checkpoint {path} has no tokenizer; add tokenizer.json, tokenizer.model, tekken.json, a "
            "*.tiktoken file, or vocab.json with merges.txt"
        )
    settings = read_object(files.get("tokenizer_config.json"))
    kept = {
        key: value
        for key, value in settings.items()
        if not key.endswith("_token") and key not in {"chat_template", "added_tokens_decoder", *NOISE}
    }
    groups["tokenizer"]["tokenizer_config.json"] = digest(kept)
    groups["template"] |= {name: digest(text) for name, text in _templates(files, settings).items()}
    usual = (*VOCABULARY_FILES, *sorted(sketches))
    return groups, next((sketches[name] for name in usual if sketches.get(name)), ())


def _templates(files: Mapping[str, Path], settings: Mapping[str, Json]) -> dict[str, Json]:
    """The chat templates by name, wherever they are written: chat_template.jinja wins, as in the engine."""
    listed = settings.get("chat_template")
    if isinstance(listed, list):
        named = {str(one.get("name")): one.get("template") for one in listed if isinstance(one, Mapping)}
    else:
        named = {"default": listed} if listed is not None else {}
    if "chat_template.jinja" in files:
        named["default"] = read_text(files["chat_template.jinja"])
    if "chat_template.json" in files:
        of_processor = read_object(files["chat_template.json"]).get("chat_template")
        if of_processor != named.setdefault("default", of_processor):
            named["processor"] = of_processor
    return named


def _special_tokens(files: Mapping[str, Path]) -> list[Json]:
    """The special tokens under either order of their two files; once, where both orders agree.

    special_tokens_map.json wins in transformers 5 unless `added_tokens_decoder` is there, and lost before.
    """
    settings = read_object(files.get("tokenizer_config.json"))
    by_map = read_object(files.get("special_tokens_map.json"))
    orders = [_named_tokens({**by_map, **settings}), _named_tokens({**settings, **by_map})]
    named = orders[0] if orders[0] == orders[1] else orders
    return [named, read_object(files.get("added_tokens.json")), settings.get("added_tokens_decoder")]


def _named_tokens(named: Mapping[str, Json]) -> list[Json]:
    tokens = {
        key: _content(value) for key, value in named.items() if key.endswith("_token") and value is not None
    }
    lists = [named[key] for key in ("additional_special_tokens", "extra_special_tokens") if named.get(key)]
    extra = [[_content(one) for one in each] if isinstance(each, list) else each for each in lists]
    return [tokens, extra[:1] if extra[1:] == extra[:1] else extra]


def _content(token: Json) -> Json:
    """The text of a special token, which is written alone or as an object; with what widens its matches."""
    if not isinstance(token, Mapping) or "content" not in token:
        return token
    widened = [key for key in ("lstrip", "rstrip", "single_word") if token.get(key)]
    return [token["content"], *widened] if widened else token["content"]


# --- values


def _vocabulary_size(config: Mapping[str, Json]) -> int:
    nested = config.get("text_config")
    size = config.get("vocab_size", nested.get("vocab_size") if isinstance(nested, Mapping) else None)
    return size if isinstance(size, int) else 0


def _only(values: Mapping[str, Json], keys: Collection[str]) -> dict[str, Json]:
    return {key: values[key] for key in sorted(values) if key in keys}


def _pairs(values: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    return tuple((key, json.dumps(values[key], sort_keys=True)) for key in sorted(values))
