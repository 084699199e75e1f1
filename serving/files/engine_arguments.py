"""Arguments of the pinned vLLM's `vllm serve`, from engine_arguments.json: what it takes from whom.

Checked when a spec is read, long before an engine starts. vLLM itself takes an abbreviation for the argument
that it begins, so a typo would start an engine with another setting; here only whole names count.

Columns: `operator`: what an operator may set, true or a list of values. Without it the argument may load
code, read a file by its path, open a socket, write a log or publish what users say, and belongs to an admin;
so does one that a newer vLLM brings, until someone has looked at it. `refused`: why nobody may set it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Set by canaryctl itself. A second value would start an engine that no router can reach, that answers without
# the front, or that logs prompts.
OWNED_ARGUMENTS = frozenset(
    {
        *("model", "model_tag", "served_model_name", "host", "port", "uds", "root_path", "api_key"),
        *("api_server_count", "ssl_keyfile", "ssl_certfile", "enable_log_requests"),
    }
)
# Of a request, or of the checkpoint's generation_config.json: no arguments of an engine.
SAMPLING_KEYS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
        *(
            "frequency_penalty",
            "max_tokens",
            "max_new_tokens",
            "stop",
            "stop_token_ids",
            "do_sample",
            "n",
            "best_of",
        ),
    }
)


# More processes than a replica's place in the cluster has GPUs for: it spans tensor_parallel_size of them.
_SINGLE = frozenset(
    {
        *("pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local"),
        *("prefill_context_parallel_size", "nnodes"),
    }
)
_FILES = frozenset({"chat_template", "tool_parser_plugin", "reasoning_parser_plugin"})
_FILE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".py")
_FOLDERS = frozenset({"generation_config", "tokenizer", "hf_config_path", "lora_modules", "spec_model"})
GPU_SHARE_USED = 0.9  # of a part of a GPU: the rest is left to its neighbours' peaks


def gpu_utilization(share: float, *, default: float) -> float:
    """`gpu_memory_utilization` of an engine on this share of a GPU, 0-1. default: on a whole one."""
    return round(GPU_SHARE_USED * share, 4) if 0 < share < 1 else default


def argument_error(name: str, value: object) -> str | None:
    """What is wrong with an engine argument, as `is unknown; did you mean max_num_seqs?`; None: nothing.

    name: vLLM's own, with underscores.
    """
    entry = _arguments().get(name)
    if entry is None:
        return _unknown(name)
    if refused := entry.get("refused"):
        return str(refused)
    kind, choices = entry["kind"], entry.get("choices")
    if choices and str(value) not in choices and not isinstance(value, list):
        return f"{value!r} is unknown to the engine; use one of {', '.join(choices)}"
    if _is_relative(name, value):
        return (
            f"{value!r} is a relative path, and engines run in folders of their own; give the absolute path"
        )
    if wanted := _mismatch(kind, value):
        return f"{value!r} is not {wanted}"
    if name in _SINGLE and int(str(value)) != 1:
        return f"{value!r} is not supported; raise tensor_parallel_size, or replicas"
    return None


def _is_relative(name: str, value: object) -> bool:
    """Whether the value is a path that each process would look up elsewhere; a repository's name is none."""
    items = value if isinstance(value, list) else [value]
    paths = [item.rpartition("=")[2].strip() if name == "lora_modules" else item for item in map(str, items)]
    if name in _FILES:
        return any(path.endswith(_FILE_SUFFIXES) and path[0] not in "/{" for path in paths)
    return name in _FOLDERS and any(path.startswith(("./", "../", "~")) for path in paths)


def canonical_value(name: str, value: object) -> Any:
    """The value as it is compared: JSON text of an argument that takes JSON is the same as its values."""
    kind = _arguments().get(name, {}).get("kind")
    if kind == "json" and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def canonical_name(name: str) -> str:
    """vLLM's own name of an argument: `max_num_seqs` of `--max-num-seqs`, `tensor_parallel_size` of `tp`."""
    plain = name.strip().lstrip("-").replace("-", "_")
    return _aliases().get(plain, plain)


def is_admins(name: str, value: object) -> bool:
    """Whether only an admin may set the argument to this value. name: vLLM's own."""
    allowed = _arguments().get(name, {}).get("operator", False)
    return value not in allowed if isinstance(allowed, list) else not allowed


def is_shown(name: str) -> bool:
    """Whether the argument's value may be shown to whoever may read: text of an admin's may hold a secret."""
    entry = _arguments().get(name, {})
    return "operator" in entry or entry.get("kind") in ("bool", "flag", "int", "float", "size")


def is_known(name: str) -> bool:
    """Whether the engine takes an argument of this name."""
    return name in _arguments()


def is_list(name: str) -> bool:
    """Whether the argument takes several words."""
    return bool(_arguments().get(name, {}).get("kind") == "list")


def _unknown(name: str) -> str:
    if name in SAMPLING_KEYS:
        return (
            "is a sampling parameter, no engine argument; set its default with override_generation_config: "
            f"{{{name}: ...}}, in the checkpoint's generation_config.json, or let requests give it"
        )
    if name.startswith("no_") and name[3:] in _arguments():
        return f"is unknown to the engine; write {name[3:]}: false"
    near = difflib.get_close_matches(name, [*_arguments(), *_aliases()], n=1, cutoff=0.75)
    begun = [known for known in _arguments() if known.startswith(name)] if len(name) >= 4 else []
    if near or begun:
        return f"is unknown to the engine; did you mean {(near or begun)[0]}?"
    return "is unknown to the engine; `vllm serve --help` lists what it takes"


def _mismatch(kind: str, value: object) -> str:
    """What the value should have been; empty: it is of this kind."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("bool", "flag"):
        return "" if isinstance(value, bool) else "true or false; write one of them"
    if kind == "int":
        is_whole = is_number and value == int(value)  # type: ignore[call-overload]
        return "" if is_whole or _reads(int, value) else "a whole number; write one"
    if kind == "float":
        return "" if is_number or _reads(float, value) else "a number; write one"
    if kind == "size":
        is_size = isinstance(value, str) and (value == "auto" or value[:-1].replace(".", "", 1).isdigit())
        return "" if is_number or is_size or _reads(int, value) else "a number; write one, such as 4096 or 4k"
    if kind == "json":
        is_json = isinstance(value, Mapping | list | str) or is_number
        return "" if is_json else "a mapping; write its settings as key: value"
    if kind == "text":
        return "" if isinstance(value, str) or is_number else "text; put it in quotes"
    return "" if isinstance(value, list | str) or is_number else "a list; write its items with dashes"


def _reads(parse: Any, value: object) -> bool:
    try:
        parse(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return isinstance(value, str)


@cache
def _arguments() -> Mapping[str, Mapping[str, Any]]:
    file = Path(__file__).with_name("engine_arguments.json")
    return json.loads(file.read_text())  # type: ignore[no-any-return]


@cache
def _aliases() -> Mapping[str, str]:
    return {
        alias: name
        for name, entry in _arguments().items()
        for alias in entry.get("aliases", ())
        if len(alias) > 1
    }
