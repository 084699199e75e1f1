"""Fingerprint of a version, read from its files: digests of tensors, tokenizer, template and configuration.

Two checkpoints with the same digests answer alike under the same engine. Tensors are hashed by name, dtype,
shape and bytes, so sharding has no effect; files are streamed. The caller keeps `cache` (a file's path, mtime
and size -> its tensors), so that a checkpoint of 140 GB is read once.

Invariant: the only file reads of the controller's core are here; nothing is written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from controller.errors import BadCheckpoint
from controller.quantities import gib

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
# Keys that transformers writes about how a file was saved; they change with every save and alter no answer.
_NOISE = {
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "use_cache",
    "_from_model_config",
    "_commit_hash",
    "is_local",
    "local_files_only",
    "tokenizer_file",
    "cache_dir",
}
_SPECIAL = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id"}
_SIZES = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tekken.json")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A version's identity. `parts`: one digest for each thing that can change independently."""

    kind: str  # checkpoint | external
    architecture: str  # '' for an external endpoint
    family: str  # model_type, such as llama; the URL of an external endpoint
    parts: tuple[tuple[str, str], ...]
    sampling: tuple[tuple[str, str], ...]  # generation_config's defaults, values as JSON
    engine: tuple[tuple[str, str], ...]  # engine arguments, values as JSON
    tensor_bytes: int  # 0 for an external endpoint
    parameters: int

    @property
    def digest(self) -> str:
        """64 hex digits over all fields but the sizes, which follow from them."""
        return _digest([self.kind, self.family, list(self.parts), list(self.sampling), list(self.engine)])

    @property
    def version_id(self) -> str:
        """`v-` and ten hex digits."""
        return f"v-{self.digest[:10]}"

    def part(self, name: str) -> str:
        """The digest of one part; empty: the version has no such part."""
        return dict(self.parts).get(name, "")


def known_architectures() -> frozenset[str]:
    """Class names of the generative models that the pinned engine release serves (architectures.json)."""
    return frozenset(json.loads((Path(__file__).parent / "architectures.json").read_text()))


def fingerprint_external(url: str, model: str | None = None) -> Fingerprint:
    """Fingerprint of an external endpoint: its URL and the model's name there are all that is known of it."""
    address = url.rstrip("/") if model is None else f"{url.rstrip('/')} {model}"
    return Fingerprint("external", "", address, (("url", _digest(address)),), (), (), 0, 0)


def fingerprint_checkpoint(
    path: Path,
    *,
    engine_arguments: Mapping[str, bool | int | float | str] | None = None,
    engine_release: str = "",
    architectures: Collection[str] | None = None,
    cache: MutableMapping[str, str] | None = None,
) -> Fingerprint:
    """Fingerprint of the checkpoint directory `path`, run with these arguments on this engine release.

    architectures: those that the engine supports; None: any. cache: read and written; None: hash everything.
    Raises BadCheckpoint with one line when the directory is missing, broken or cannot be served.
    """
    if not path.is_dir():
        raise BadCheckpoint(f"checkpoint {path} is not a directory; give the folder that holds config.json")
    if (path / "adapter_config.json").is_file():
        raise BadCheckpoint(f"checkpoint {path} is a LoRA adapter; merge it into its base first")
    config = _object(path / "config.json", needed=True)
    architecture = _architecture(path, config, architectures)
    tensors, size, parameters = _tensors(path, {} if cache is None else cache)
    tokenizer, template, special = _tokenizer(path)
    generation = _object(path / "generation_config.json")
    special += [_only(config, _SPECIAL), _only(generation, _SPECIAL)]
    rope = {key: value for key, value in config.items() if "rope" in key}
    sizes = _only(config, _SIZES)
    quantization = config.get("quantization_config")
    separate = {"quantization_config", "torch_dtype", "dtype", "architectures", *rope, *sizes}
    separate |= _SPECIAL | _NOISE
    parts = {
        "tensors": tensors,
        "tokenizer": _digest(tokenizer),
        "template": _digest(template),
        "special_tokens": _digest(special),
        "sizes": _digest(sizes),
        "config": _digest([architecture, {key: config[key] for key in config if key not in separate}]),
        "rope": _digest(rope),
        "quantization": _digest(quantization) if quantization is not None else "",
        "dtype": _digest(config.get("torch_dtype", config.get("dtype"))),
        "engine_release": engine_release,
    }
    sampling = {key: generation[key] for key in generation if key not in _SPECIAL | _NOISE}
    return Fingerprint(
        kind="checkpoint",
        architecture=architecture,
        family=str(config.get("model_type", architecture)),
        parts=tuple(sorted(parts.items())),
        sampling=_pairs(sampling),
        engine=_pairs(engine_arguments or {}),
        tensor_bytes=size,
        parameters=parameters,
    )


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


# --- tensors


def _tensors(path: Path, cache: MutableMapping[str, str]) -> tuple[str, int, int]:
    """(digest, bytes, elements) over all tensors of the checkpoint."""
    tensors: dict[str, list[Json]] = {}
    for file in _tensor_files(path):
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_mtime_ns}|{stat.st_size}"
        if key not in cache:
            try:
                cache[key] = json.dumps(_hash_file(file, stat.st_size))
            except OSError as exc:
                raise BadCheckpoint(f"{file} cannot be read ({exc.strerror}); check its permissions") from exc
        tensors.update(json.loads(cache[key]))
    listed = sorted(tensors.items())
    size = sum(_number(entry[3]) for _, entry in listed)
    elements = sum(_number(entry[4]) for _, entry in listed)
    return _digest([[name, *entry[:3]] for name, entry in listed]), size, elements


def _tensor_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadCheckpoint(f"{index} has no weight_map; copy the checkpoint again")
        files = sorted({path / str(name) for name in weight_map.values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise BadCheckpoint(
                f"checkpoint {path} lacks {len(missing)} of {len(files)} tensor files ({missing[0]}); "
                "copy it again"
            )
        return files
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in path.glob(pattern))
        content = f"only {others[0]}" if others else "no tensors"
        raise BadCheckpoint(f"checkpoint {path} holds {content}; convert it to safetensors")
    return files


def _hash_file(file: Path, size: int) -> dict[str, list[Json]]:
    """Tensor name -> [dtype, shape, digest of its bytes, number of bytes, number of elements]."""
    tensors: dict[str, list[Json]] = {}
    with file.open("rb") as stream:
        header, start = _header(file, stream, size)
        for name, (dtype, shape, begin, end) in sorted(header.items(), key=lambda item: item[1][2]):
            stream.seek(start + begin)
            digest, remaining = hashlib.sha256(), end - begin
            while remaining > 0:
                chunk = stream.read(min(CHUNK_BYTES, remaining))
                if not chunk:
                    raise BadCheckpoint(f"{file} was truncated while it was read; copy it again")
                digest.update(chunk)
                remaining -= len(chunk)
            tensors[name] = [dtype, list(shape), digest.hexdigest(), end - begin, math.prod(shape)]
    return tensors


def _header(
    file: Path, stream: BinaryIO, size: int
) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], int]:
    """(name -> (dtype, shape, begin, end), offset of the data). Raises BadCheckpoint when malformed."""
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or length > size - 8:
        raise BadCheckpoint(f"{file} is truncated inside its header ({gib(size)}); copy it again")
    try:
        raw = json.loads(stream.read(length))
        header = {
            str(name): (
                str(entry["dtype"]),
                tuple(int(side) for side in entry["shape"]),
                int(entry["data_offsets"][0]),
                int(entry["data_offsets"][1]),
            )
            for name, entry in raw.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise BadCheckpoint(f"{file} has no readable safetensors header; copy it again") from exc
    expected = 8 + length + max((end for *_, end in header.values()), default=0)
    if expected > size:
        raise BadCheckpoint(f"{file} is truncated: {size} bytes of {expected}; copy it again")
    if any(begin < 0 or end < begin for *_, begin, end in header.values()):
        raise BadCheckpoint(f"{file} has tensors that end before they begin; copy it again")
    return header, 8 + length


# --- tokenizer, template, special tokens


def _tokenizer(path: Path) -> tuple[list[Json], Json, list[Json]]:
    """(tokenizer, chat template, special tokens), each as values to digest."""
    present = [name for name in _TOKENIZER_FILES if (path / name).is_file()]
    if not present:
        raise BadCheckpoint(f"checkpoint {path} has no tokenizer; add tokenizer.json or tokenizer.model")
    settings = _object(path / "tokenizer_config.json")
    special: list[Json] = [_object(path / "special_tokens_map.json"), _object(path / "added_tokens.json")]
    special.append({key: settings[key] for key in sorted(settings) if key.endswith("_token")})
    special.append(settings.get("added_tokens_decoder"))
    rest = {
        key: value
        for key, value in settings.items()
        if not key.endswith("_token") and key not in {"chat_template", "added_tokens_decoder", *_NOISE}
    }
    jinja = path / "chat_template.jinja"
    template: Json = _text(jinja) if jinja.is_file() else settings.get("chat_template")
    files: list[Json] = []
    for name in present:
        text: Json = _object(path / name) if name.endswith(".json") else _file_digest(path / name)
        files.append([name, text])
    return [*files, rest], template, special


# --- reading


def _object(file: Path, *, needed: bool = False) -> dict[str, Json]:
    """The JSON object in `file`; empty when the file is missing and not needed. Raises BadCheckpoint."""
    if not file.is_file():
        if needed:
            raise BadCheckpoint(f"checkpoint {file.parent} has no {file.name}; give a complete checkpoint")
        return {}
    try:
        value = json.loads(_text(file))
    except ValueError as exc:
        raise BadCheckpoint(f"{file} is not JSON ({exc}); copy the checkpoint again") from exc
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{file} is not a JSON object; copy the checkpoint again")
    return value


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadCheckpoint(
            f"{file} cannot be read ({exc}); check its permissions, or copy it again"
        ) from exc


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _only(values: Mapping[str, Json], keys: Collection[str]) -> dict[str, Json]:
    return {key: values[key] for key in sorted(values) if key in keys}


def _pairs(
    values: Mapping[str, Json] | Mapping[str, bool | int | float | str],
) -> tuple[tuple[str, str], ...]:
    return tuple((key, json.dumps(values[key], sort_keys=True)) for key in sorted(values))


def _number(value: Json) -> int:
    return value if isinstance(value, int) else 0


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
