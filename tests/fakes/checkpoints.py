"""Checkpoint directories of a few bytes that are accepted as real ones."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path


def write_checkpoint(folder: Path, *, seed: int = 0, architecture: str = "LlamaForCausalLM") -> Path:
    """Write a checkpoint whose tensors depend on `seed`."""
    folder.mkdir(parents=True)
    config = {
        "architectures": [architecture],
        "model_type": "llama",
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "vocab_size": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7}))
    data = struct.pack("<8f", *(float(seed + index) for index in range(8)))
    entry = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, len(data)]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


def replace_keeping_time(file: Path, data: bytes, *, is_replaced: bool) -> None:
    """Other bytes, with the old modification time. is_replaced: in a new file, else written in place."""
    stat = file.stat()
    target = file.with_name(f"{file.name}.new") if is_replaced else file
    target.write_bytes(data)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    while target.stat().st_ctime_ns == stat.st_ctime_ns:  # until the file system's clock has moved on
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    target.replace(file)
