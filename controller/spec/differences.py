"""Differences between a service file and the service that `up` finds running, each with its remedy.

Rules:
1. Only keys that the user set count; the others are left as they are.
2. A value is equal if the service was created with it (so that the same command can be repeated) or if it
   runs now (so that `up` agrees with the last promotion).
3. Nothing is changed here. A difference is a conflict that names the command which makes the change.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from controller.errors import Conflict
from controller.spec.service import ServiceSpec
from controller.spec.version import ENGINE_KEYS, VersionSpec
from serving.files.strict_yaml import YamlError, load_yaml

# What `up` changes of a service that runs; a rollout keeps its judge and its prices.
IN_PLACE = ("clients", "judge", "prices")
HOST_KEYS = ("replicas", "gpus", "routers", "api_key_env", "api_key_file")
POLICY = "--policy FILE"


@dataclass(frozen=True, slots=True)
class Difference:
    """One key whose requested value is not the current one."""

    name: str
    current: object  # None: not set
    requested: object
    option: str = ""  # of `deploy`; '': only taking the service down and up again changes it


def refuse_change(
    requested: ServiceSpec, *, stable: str, given: ServiceSpec, running: VersionSpec | None
) -> None:
    """Raises Conflict with every difference between `requested` and the existing service.

    stable: id of the version in production.  given: the service as its first `up` created it.
    running: the version in production; None: it is not stored.
    """
    differences = tuple(_differences(requested, given, running))
    if not differences:
        return
    service = requested.service
    options = [one.option for one in differences if one.option]
    others = [one.name for one in differences if not one.option]
    if options == [POLICY]:
        options = [
            "--model DIR",
            POLICY,
        ]  # a rollout's, and that needs another version
    remedies = [f"canaryctl deploy {service} {' '.join(options)}"] if options else []
    if others:
        remedies.append(f"canaryctl down {service} and then up again changes {', '.join(others)}")
    raise Conflict(
        f"{service} serves {stable} with {_list((one.name, one.current) for one in differences)}; "
        f"requested: {_list((one.name, one.requested) for one in differences)}, "
        f"but up changes nothing that runs: {'; '.join(remedies)}"
    )


def changed_in_place(requested: ServiceSpec, given: ServiceSpec) -> dict[str, object]:
    """The keys of `IN_PLACE` that the user set to another value, with the new ones."""
    asked = {key: getattr(requested, key) for key in IN_PLACE if key in requested.model_fields_set}
    return {key: value for key, value in asked.items() if value != getattr(given, key)}


def _differences(
    requested: ServiceSpec, given: ServiceSpec, running: VersionSpec | None
) -> Iterator[Difference]:
    current: VersionSpec = running or given
    keys = requested.model_fields_set
    if all((requested.model, requested.url) != (one.model, one.url) for one in (given, current)):
        kind = "url" if requested.is_external else "model"
        name = kind if requested.is_external == current.is_external else "source"
        source = requested.url or requested.model
        option = f"--model {shlex.quote(str(source))}"
        if requested.is_external:
            option = _endpoint_options(requested.version())
        yield Difference(name, current.url or current.model, source, option)
    for name in (*ENGINE_KEYS, *HOST_KEYS):
        value, first = getattr(requested, name), getattr(given, name)
        present = getattr(current, name, first)  # routers is a key of the service alone
        if name in keys and value not in (first, present):
            option = _engine_option(name, value) if name in ENGINE_KEYS else ""
            if name.startswith("api_key") and value is not None and current.url is not None:
                option = f"{_endpoint_options(current)} {_engine_option(name, value)}"
            yield Difference(name, present, value, option)
    first_engine, current_engine = given.extra_arguments, current.extra_arguments
    for name, value in requested.extra_arguments.items():
        if value not in (first_engine.get(name), current_engine.get(name)):
            yield Difference(name, current_engine.get(name), value, _engine_option(name, value))
    if "policy" in keys and requested.policy != given.policy:
        yield Difference("policy", "of its first up", "another", POLICY)


def _endpoint_options(endpoint: VersionSpec) -> str:
    """`--url URL`, with `--model NAME` if the endpoint's model has a name there."""
    model = f" --model {shlex.quote(endpoint.model)}" if endpoint.model is not None else ""
    return f"--url {shlex.quote(str(endpoint.url))}{model}"


def _engine_option(name: str, value: object) -> str:
    """`--engine NAME=VALUE` for a shell; text that YAML would read as another type is quoted."""
    try:
        is_plain = isinstance(value, str) and load_yaml(value) == value
    except YamlError:  # as of `on` and `{{ x }}`: only quotes make it text
        is_plain = False
    return f"--engine {shlex.quote(f'{name}={value if is_plain else json.dumps(value)}')}"


def _list(pairs: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {'not set' if value is None else value}" for name, value in pairs)
