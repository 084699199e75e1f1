"""Reference data of the pinned vLLM and transformers, written to JSON files that the checks read.

`python -m serving.checkpoints.reference_data` writes `serving/files/engine_arguments.json` (the arguments of
`vllm serve`) and `controller/planning/config_defaults.json` (the defaults of the configuration classes).
The checks read files because importing either library takes seconds and half a GB of memory, and because
version ids must not depend on which release is installed. Run it when a pin is raised.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINE_FILE = Path("serving/files/engine_arguments.json")
CONFIG_FILE = Path("controller/planning/config_defaults.json")
# Of the base class: how a configuration is used in Python, not what the model computes.
_PYTHON_ONLY = {
    *("transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "use_cache"),
    *("chunk_size_feed_forward", "id2label", "label2id", "problem_type", "output_attentions"),
}


# Columns that people fill in: who may set an argument. A new argument has none, and is an admin's.
_BY_HAND = ("operator", "refused")


def engine_arguments() -> dict[str, dict[str, Any]]:
    """The arguments of `vllm serve` by vLLM's own name: kind, choices, other names, and what the file says of
    who may set them."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments, before = {}, json.loads(ENGINE_FILE.read_text())
    for action in make_arg_parser(FlexibleArgumentParser())._actions:
        if action.dest in ("help", "model_tag", "config"):
            continue
        entry: dict[str, Any] = {"kind": _kind(action)}
        names = {option.lstrip("-").replace("-", "_") for option in action.option_strings}
        negated = {f"no_{name}" for name in names}
        if others := sorted(names - negated - {action.dest}):
            entry["aliases"] = others
        if action.choices is not None and entry["kind"] != "json":
            entry["choices"] = [str(choice) for choice in action.choices if choice is not None]
        known = before.get(action.dest, {})
        entry |= {column: known[column] for column in _BY_HAND if column in known}
        arguments[action.dest] = entry
    return dict(sorted(arguments.items()))


def _kind(action: Any) -> str:
    """bool, flag (present or not), int, size (4096, 4k or auto), float, json, list or text."""
    action_name = type(action).__name__
    if action_name == "BooleanOptionalAction":
        return "bool"
    if action_name == "_StoreTrueAction":
        return "flag"
    if action.nargs in ("+", "*") or action_name == "_AppendAction":
        return "list"
    if "human_readable_int" in getattr(action.type, "__name__", ""):
        return "size"
    parse = action.type or str
    if isinstance(_try(parse, '{"a": 1}'), dict) or _name(parse) in ("parse_dataclass", "loads"):
        return "json"
    if isinstance(_try(parse, "text"), str) or _name(parse) == "<lambda>" or action.choices is not None:
        return "text"
    found = _try(parse, "1")
    return {int: "int", float: "float"}.get(type(found), "json")


def _name(parse: Callable[[str], Any]) -> str:
    return getattr(parse, "__name__", "")


def _try(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except Exception:  # noqa: BLE001 - vLLM's parsers raise whatever their types do; all of it means "not of this kind"
        return None


def config_defaults() -> dict[str, dict[str, Any]]:
    """By model type: `defaults` by key, `nested` (key -> model type of a part), `theta` and `rope` as
    an empty configuration has it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found: dict[str, dict[str, Any]] = {}
    for model_type in sorted(CONFIG_MAPPING_NAMES):
        try:
            _collect(_config_class(model_type, CONFIG_MAPPING_NAMES[model_type]), found)
        except (ImportError, AttributeError):
            continue  # a class that this build of transformers cannot import
    return dict(sorted(found.items()))


def _config_class(model_type: str, name: str) -> type:
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    module = importlib.import_module(f"transformers.models.{model_type_to_module_name(model_type)}")
    return getattr(module, name)  # type: ignore[no-any-return]


def _collect(config: Any, found: dict[str, dict[str, Any]]) -> None:
    model_type = config.model_type
    if not model_type or model_type in found or not dataclasses.is_dataclass(config):
        return
    defaults = {}
    for field in dataclasses.fields(config):
        value = (
            field.default_factory()
            if field.default is dataclasses.MISSING and (field.default_factory is not dataclasses.MISSING)
            else field.default
        )
        if field.name not in _PYTHON_ONLY and value is not dataclasses.MISSING and _is_plain(value):
            defaults[field.name] = value
    parts = {
        key: part
        for key, part in (getattr(config, "sub_configs", None) or {}).items()
        if getattr(part, "model_type", "")
    }
    entry: dict[str, Any] = {"defaults": dict(sorted(defaults.items()))}
    if parts:
        entry["nested"] = {key: part.model_type for key, part in sorted(parts.items())}
    if (theta := getattr(config, "default_theta", None)) is not None:
        entry["theta"] = theta
    if isinstance(rope := _rope_of(config), dict):
        entry["rope"] = rope
    found[model_type] = entry
    for part in parts.values():
        _collect(part, found)


def _rope_of(config: Any) -> Any:
    try:
        return config().to_dict().get("rope_parameters")
    except Exception:  # noqa: BLE001 - a class that cannot be built without arguments has no default here
        return None


def _is_plain(value: object) -> bool:
    try:
        plain = list(value) if isinstance(value, tuple) else value
        return bool(json.loads(json.dumps(value, allow_nan=False)) == plain)
    except (TypeError, ValueError):
        return False


def main() -> None:
    """Write both files."""
    ENGINE_FILE.write_text(_text(engine_arguments()))
    CONFIG_FILE.write_text(_text(config_defaults()))


def _text(table: dict[str, Any]) -> str:
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
