"""Checkpoint directories as trees of small files, in the layouts that real model repositories have."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Tree: TypeAlias = dict[str, Any]  # path -> text, bytes, or a value that is written as JSON
Tensors: TypeAlias = Mapping[str, tuple[str, Sequence[int], bytes]]  # name -> (dtype, shape, data)

_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4}
_LLAMA_SETTINGS = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": "{{ messages }}"}


def safetensors(tensors: Tensors) -> bytes:
    """The bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(seed: int, *shape: int, dtype: str = "F32") -> tuple[str, tuple[int, ...], bytes]:
    """A tensor whose bytes depend on `seed`."""
    count = _ITEM_BYTES[dtype]
    for side in shape:
        count *= side
    return dtype, shape, bytes((seed + index) % 251 for index in range(count))


def tensors(
    seed: int, *, hidden: int = 4, dtype: str = "F32"
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Three tensors of a small decoder."""
    return {
        "model.embed_tokens.weight": tensor(seed, 8, hidden, dtype=dtype),
        "model.layers.0.self_attn.q_proj.weight": tensor(seed + 1, hidden, hidden, dtype=dtype),
        "model.layers.0.input_layernorm.weight": tensor(seed + 2, hidden, dtype=dtype),
    }


def tokenizer_json(words: str, *, added: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer of these words."""
    vocabulary = {word: index for index, word in enumerate(words.split())}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 900 + index, "content": text} for index, text in enumerate(added)],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


LLAMA_2_WORDS = "the of and to in is for that it was on with as are by this be from or an at not have which"
LLAMA_3_WORDS = (
    "the of and to The Of And To In Is For That It Was On With As Are By This Be From Or An At Not Have Which"
)
YI_WORDS = "wo men de shi zai you ta zhe ge da lai shang guo dao shuo wei zi he di chu ye dui neng hao"
QWEN_WORDS = "def return import class self if else for while try print None True False pass raise yield with"
QWEN_3_WORDS = f"{QWEN_WORDS} <think> </think>"
GEMMA_2_WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"
GEMMA_3_WORDS = "uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince"
MISTRAL_WORDS = "le la les un une des et est dans que qui pour sur pas plus par je avec tout faire"


def llama(*, seed: int = 0, words: str = LLAMA_2_WORDS, hidden: int = 4, **config: Any) -> Tree:
    """Llama 2 as transformers 4 saved it."""
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 32000,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float32",
            "transformers_version": "4.31.0",
            **config,
        },
        "tokenizer.json": tokenizer_json(words),
        "tokenizer_config.json": dict(_LLAMA_SETTINGS),
        "generation_config.json": {"temperature": 0.6, "eos_token_id": 2},
        "model.safetensors": safetensors(tensors(seed, hidden=hidden)),
    }


def other_family(
    model_type: str, architecture: str, words: str, *, seed: int = 50, hidden: int = 4, **config: Any
) -> Tree:
    """A checkpoint of another model type, in the same layout."""
    tree = llama(seed=seed, words=words, hidden=hidden, **config)
    tree["config.json"] |= {"model_type": model_type, "architectures": [architecture]}
    return tree


def without(tree: Tree, *names: str) -> Tree:
    """The tree without these files."""
    return {name: content for name, content in tree.items() if name not in names}


def edited(tree: Tree, name: str, **values: Any) -> Tree:
    """The tree with these keys of a JSON file changed; a missing file is added; None removes a key."""
    changed = {**tree.get(name, {}), **values}
    return {**tree, name: {key: value for key, value in changed.items() if value is not None}}


def sharded(tree: Tree, by_name: Tensors, count: int) -> Tree:
    """The tree with its tensors in `count` files and an index."""
    shards: list[dict[str, Any]] = [{} for _ in range(count)]
    for index, (name, value) in enumerate(by_name.items()):
        shards[index % count][name] = value
    names = [f"model-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    files = {file: safetensors(shard) for file, shard in zip(names, shards, strict=True)}
    index_file = {"model.safetensors.index.json": {"metadata": {}, "weight_map": weight_map}}
    return {**without(tree, "model.safetensors"), **files, **index_file}


def write_tree(folder: Path, tree: Tree) -> Path:
    """Write the tree into `folder`."""
    for name, content in tree.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, str):
            file.write_text(content)
        else:
            file.write_text(json.dumps(content))
    return folder


def write_snapshot(folder: Path, tree: Tree) -> Path:
    """Write the tree as huggingface_hub's cache keeps it: files by digest, and a snapshot of links."""
    blobs, snapshot = folder / "models--acme--m/blobs", folder / "models--acme--m/snapshots/abc"
    write_tree(blobs, tree)
    for name in tree:
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * name.count("/")) / "../../blobs" / name)
    return snapshot
