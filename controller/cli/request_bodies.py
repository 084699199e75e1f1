"""API request bodies built from options and files, checked as far as possible without a controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from controller.errors import BadInput
from controller.planning.fingerprint import fingerprint_checkpoint, known_architectures
from controller.settings import Settings
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy, parse_service, parse_version, parse_yaml
from controller.spec.version import VersionSpec
from controller.store.digest_cache import cached_digests

PRESETS: tuple[str, ...] = get_args(PolicySpec.model_fields["preset"].annotation)


def service_body(settings: Settings, file: Path | None, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Body of `up`; None: no service is described, restart the existing ones. Raises BadSpec, BadInput.

    options: those given on the command line, by name: service, model, url, replicas, gpus, engine, policy.
    """
    if file is not None:
        if name := next((name for name in options if name != "policy"), None):
            raise BadInput(f"--file and --{name} cannot be given together; write {name} into {file}")
        raw = read_yaml(file)
        if not isinstance(raw, dict):
            raise BadInput(f"{file} holds {type(raw).__name__}; write a mapping, key: value")
        body, base = raw, file.parent
    elif "model" not in options and "url" not in options:
        if "service" in options:
            raise BadInput(f"nothing to serve for {options['service']}; give --model DIR or --url URL")
        if options:
            option = next(iter(options))
            raise BadInput(
                f"--{option} needs a service; give --service NAME and --model DIR or --url URL; "
                + _change(option)
            )
        return None
    elif "service" not in options:
        raise BadInput("the service has no name; give --service NAME")
    else:
        body = {name: options[name] for name in ("service", "replicas", "gpus") if name in options}
        body |= _source(options.get("model"), options.get("url")) | engine_arguments(options.get("engine"))
        base = Path.cwd()
    if "policy" in options:
        body["policy"] = read_policy(options["policy"])
    spec = parse_service(body).located(base)
    if "policy" in body:
        body["policy"] = _located(body["policy"], base)
    if spec.api_key_file is not None:
        body["api_key_file"] = spec.api_key_file
    if spec.judge is not None:
        paths = {"model": spec.judge.checkpoint, "api_key_file": spec.judge.api_key_file}
        body["judge"] = {**body["judge"], **{key: path for key, path in paths.items() if path is not None}}
    if spec.checkpoint is not None:
        with cached_digests(settings.digests_path) as digests:
            fingerprint_checkpoint(Path(spec.checkpoint), architectures=known_architectures(), cache=digests)
        body["model"] = spec.checkpoint
    return body


def change_body(
    *,
    model: Path | None,
    url: str | None,
    engine: Sequence[str] | None,
    policy: str | None,
    twin: bool = False,
    service: str | None = None,
) -> dict[str, Any]:
    """Body of a deploy or its plan. service: as given, for what is said of a body without a source. Raises
    BadSpec, BadInput."""
    version: dict[str, Any] = {**_source(model, url), **engine_arguments(engine)}
    if isinstance(file := version.get("api_key_file"), str):
        version["api_key_file"] = str(Path(file).expanduser().absolute())
    rules = read_policy(policy) if policy is not None else None
    body: dict[str, Any] = {"policy": rules} if policy is not None else {}
    if twin or (isinstance(rules, dict) and rules.get("twin") is True):
        if version:
            raise BadInput("a twin run compares stable with itself; omit --model, --url and --engine")
        return {"twin": True, **body}
    if not version:
        raise BadInput(
            f"nothing to deploy; give --model DIR, --url URL, --engine KEY=VALUE or --twin{_taken(service)}"
        )
    if model is not None or url is not None:
        parse_version(version)
    return {"version": version, **body}


def _taken(word: str | None) -> str:
    """What a word that was taken for the service may have meant; empty: the service."""
    if word is None:
        return ""
    if word == "twin":
        return " (twin was taken for the service; a twin run is given with --twin)"
    if "://" in word:
        return f" ({word} was taken for the service; an endpoint is given with --url {word})"
    if "/" in word or Path(word).is_dir():
        return f" ({word} was taken for the service; a checkpoint is given with --model {word})"
    return ""


def engine_arguments(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Version keys of `--engine key=value` pairs: a key of VersionSpec by its name, the rest under `engine`.

    Values are parsed as YAML (true, 0.5, 4096, text). Raises BadInput.
    """
    keys: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise BadInput(f"--engine {pair!r} is not KEY=VALUE; write --engine max_model_len=4096")
        name = key.strip().lstrip("-").replace("-", "_")
        is_version_key = name in VersionSpec.model_fields and name not in ("model", "url", "engine")
        (keys if is_version_key else engine)[name] = parse_yaml(value, f"--engine {name}")
    return {**keys, **({"engine": engine} if engine else {})}


def read_policy(name_or_path: str) -> Any:
    """Policy of a preset or a file, checked and as written. Raises BadSpec, BadInput."""
    if name_or_path in PRESETS:
        return {"preset": name_or_path}
    path = Path(name_or_path)
    if not path.exists() and path.name == name_or_path and not path.suffix:  # a name, not a path
        raise BadInput(
            f"no policy {name_or_path!r}; presets are {', '.join(PRESETS)}; or give a file (docs/policy.md)"
        )
    raw = read_yaml(path)
    parse_policy(raw)
    return _located(raw, path.parent)


def _located(policy: Any, base: Path) -> Any:
    """The policy with its golden set's path made absolute, relative to `base`: the controller reads it."""
    asked = policy.get("preflight") if isinstance(policy, dict) else None
    if not isinstance(asked, dict) or not isinstance(asked.get("golden"), str):
        return policy
    file = str((base / Path(asked["golden"]).expanduser()).absolute())
    return {**policy, "preflight": {**asked, "golden": file}}


def _change(option: str) -> str:
    """The command that changes this option of a running service."""
    match option:
        case "engine":
            return "to change a running service: canaryctl deploy --engine KEY=VALUE"
        case "policy":
            return "a rollout's policy is given with it: canaryctl deploy --model DIR --policy FILE"
        case _:
            return f"a running service's {option} changes with canaryctl down and then up again"


def read_yaml(path: Path) -> Any:
    """Parsed content of a YAML file. Raises BadSpec, BadInput."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror or exc}; give a readable file") from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path} is not text; give a YAML file") from exc
    return parse_yaml(text, str(path))


def _source(model: Path | None, url: str | None) -> dict[str, Any]:
    # Of an endpoint, `model` is a name.
    name = str(model if url is not None else model.expanduser().absolute()) if model is not None else None
    source = {"model": name, "url": url}
    return {name: value for name, value in source.items() if value is not None}
