"""vLLM command line and environment of a launch, and checks of a checkpoint before its engine starts.

Defaults apply only where the launch sets nothing. Invariant: imports neither Ray, torch nor vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.files.engine_arguments import OWNED_ARGUMENTS, canonical_name, gpu_utilization, is_list
from serving.files.regular import MAX_SETTINGS_BYTES, NotReadable, read_regular
from serving.files.weights import WeightsError, check_weights
from serving.fleet.types import EngineArg, Launch

MIB = 1 << 20
CPU_KV_MIN_BYTES = 64 * MIB
CPU_KV_MAX_BYTES = 4096 * MIB  # vLLM's own default on a CPU


class CheckpointError(ValueError):
    """The checkpoint cannot be served; one line: what, where, remedy."""


class EngineArgsError(ValueError):
    """An engine argument is invalid; one line: which, why, remedy."""


def command_line(launch: Launch, *, on_cpu: bool) -> list[str]:
    """Arguments of `vllm serve` for this launch. Raises EngineArgsError, CheckpointError."""
    if launch.model_dir is None:
        raise EngineArgsError(f"version {launch.version} is an endpoint at {launch.url}; nothing to start")
    given = {canonical_name(name): value for name, value in launch.engine_args.items()}
    owned = sorted((OWNED_ARGUMENTS | {"tensor_parallel_size"}) & given.keys())
    if owned:
        raise EngineArgsError(f"engine argument {owned[0]!r} is set by canaryctl itself; remove it")
    name = launch.endpoint_model or launch.service
    arguments: dict[str, EngineArg] = {"model": launch.model_dir, "served_model_name": name}
    max_model_len = given.get("max_model_len")
    arguments |= _cpu_defaults(launch, max_model_len) if on_cpu else _gpu_defaults(launch)
    if launch.tensor_parallel > 1:
        arguments["tensor_parallel_size"] = launch.tensor_parallel
    arguments |= {"host": "127.0.0.1", "disable_uvicorn_access_log": True, **given}
    return [word for name, value in arguments.items() for word in _words(name, value)]


def environment(launch: Launch, *, on_cpu: bool, cores: int) -> dict[str, str]:
    """Environment of the engine's process."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Serve would drain its ingress to this replica for half a minute, but requests do not come that way.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    if not on_cpu:
        return common
    # Stable and canary share the cores; threads in excess of cores would stall each other in every layer.
    threads = max(1, cores // (2 * launch.tensor_parallel))
    return common | {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def check_checkpoint(model_dir: str) -> None:
    """Raises CheckpointError unless this is a complete safetensors checkpoint; reads headers only."""
    folder = Path(model_dir)
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: not a directory; give the folder of config.json")
    if not architectures(model_dir):
        raise CheckpointError(f"{folder / 'config.json'} names no architecture; export the checkpoint again")
    try:
        check_weights(folder)
    except WeightsError as exc:
        raise CheckpointError(str(exc)) from exc


def architectures(model_dir: str) -> tuple[str, ...]:
    """The model classes that config.json names. Raises CheckpointError."""
    return tuple(_config(Path(model_dir)).get("architectures") or ())


def kv_bytes_per_token(config: Mapping[str, Any], *, value_bytes: int) -> int:
    """Bytes of KV cache for one token. config: of config.json. Raises KeyError when a size is missing.

    Check: 4 layers, 2 key-value heads of 32, float32: 2 * 4 * 2 * 32 * 4 = 2048.
    """
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * config["num_hidden_layers"] * heads * head * value_bytes)


def cpu_kv_cache_bytes(model_dir: str, max_model_len: EngineArg | None) -> int:
    """Default size of an engine's KV cache on a CPU. max_model_len: tokens; None: the model's own.

    Raises CheckpointError when config.json is missing or malformed.
    """
    config = _config(Path(model_dir))
    try:
        given = (
            config.get("max_position_embeddings", 4096) if max_model_len in (None, "auto") else max_model_len
        )
        tokens = _token_count(given)
        # Two whole contexts, so that one long request does not block all others.
        kv_bytes = 2 * tokens * kv_bytes_per_token(config, value_bytes=4)
    except (KeyError, TypeError, ValueError):
        return CPU_KV_MAX_BYTES
    return min(max(kv_bytes, CPU_KV_MIN_BYTES), CPU_KV_MAX_BYTES)


def _token_count(value: Any) -> int:
    """Tokens of 4096, "4096", "4k" (4000) or "4K" (4096), as vLLM reads them. TypeError, ValueError."""
    scale = {"k": 1000, "K": 1024, "m": 1_000_000, "M": 1 << 20}
    if isinstance(value, str) and value and value[-1] in scale:
        return int(float(value[:-1]) * scale[value[-1]])
    return int(value)


def _cpu_defaults(launch: Launch, max_model_len: EngineArg | None) -> dict[str, EngineArg]:
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "distributed_executor_backend": "uni" if launch.tensor_parallel == 1 else "mp",
        "kv_cache_memory_bytes": cpu_kv_cache_bytes(str(launch.model_dir), max_model_len),
    }


def _gpu_defaults(launch: Launch) -> dict[str, EngineArg]:
    defaults: dict[str, EngineArg] = {}
    if 0 < launch.gpus_per_worker < 1:
        defaults["gpu_memory_utilization"] = gpu_utilization(launch.gpus_per_worker, default=1.0)
    if launch.tensor_parallel > 1:
        # Ray places the workers in the replica's own placement group, on one node or several.
        defaults["distributed_executor_backend"] = "ray"
    return defaults


def _words(name: str, value: EngineArg) -> list[str]:
    flag = name.replace("_", "-")
    if value is True:
        return [f"--{flag}"]
    if value is False:
        return [f"--no-{flag}"]
    if isinstance(value, list | tuple) and is_list(name):
        return [f"--{flag}", *(_word(item) for item in value)]
    return [f"--{flag}", _word(value)]


def _word(value: EngineArg) -> str:
    """A value as one word: mappings and lists as JSON."""
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(read_regular(path, limit=MAX_SETTINGS_BYTES))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{folder} has no config.json; give the folder of a checkpoint") from exc
    except NotReadable as exc:
        raise CheckpointError(str(exc)) from exc
    except (ValueError, OSError, RecursionError) as exc:
        raise CheckpointError(f"{path} cannot be read ({exc}); copy the checkpoint again") from exc
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy the checkpoint again")
    return config
