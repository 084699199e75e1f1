"""What `up` says of a service that is there already: the same, or what differs and how to change it.

Rules:
1. Only what was named counts: what is left out is left as it is.
2. A value is the same when the service was begun with it (so that the same command can be repeated for ever)
   or when it runs now (so that `up` agrees with the last promotion).
3. Nothing is changed here. A difference is a conflict that names the command which would make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from controller.errors import Conflict
from controller.spec.service import ServiceSpec, VersionSpec

# Part of a version's fingerprint, so a deploy changes them; replicas, gpus and routers are not.
ENGINE_KEYS = (
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "dtype",
    "quantization",
    "max_model_len",
    "kv_cache_memory_bytes",
)
HOST_KEYS = ("replicas", "gpus", "routers")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that `up` was asked for and that is not so."""

    name: str
    now: object  # None: not set
    asked: object
    option: str = ""  # of `deploy`; '': only a new start changes it


def refuse_change(
    asked: ServiceSpec, *, stable: str, given: ServiceSpec, running: VersionSpec | None
) -> None:
    """Return when `asked` names nothing else than what there is. Raises Conflict with every difference.

    stable: id of the version in production.  given: the service as its first `up` had it.
    running: the version in production; None: the store does not know it.
    """
    found = tuple(_differences(asked, given, running))
    if not found:
        return
    options = [one.option for one in found if one.option]
    rest = [one.name for one in found if not one.option]
    remedies = [f"canaryctl deploy {asked.service} {' '.join(options)}"] if options else []
    if rest:
        remedies.append(f"canaryctl down {asked.service} and then up again moves {', '.join(rest)}")
    raise Conflict(
        f"{asked.service} serves {stable} with {_list((one.name, one.now) for one in found)}; "
        f"asked was {_list((one.name, one.asked) for one in found)}, but up changes nothing that runs: "
        + "; ".join(remedies)
    )


def _differences(asked: ServiceSpec, given: ServiceSpec, running: VersionSpec | None) -> Iterator[Difference]:
    now: VersionSpec = running or given
    named = asked.model_fields_set
    if all((asked.model, asked.url) != (one.model, one.url) for one in (given, now)):
        kind = "url" if asked.is_external else "model"
        name = kind if asked.is_external == now.is_external else "source"
        wanted = asked.url or asked.model
        yield Difference(name, now.url or now.model, wanted, f"--{kind} {wanted}")
    for name in (*ENGINE_KEYS, *HOST_KEYS):
        wanted, before = getattr(asked, name), getattr(given, name)
        present = getattr(now, name, before)
        if name in named and wanted not in (before, present):
            option = f"--engine {name}={wanted}" if name in ENGINE_KEYS else ""
            yield Difference(name, present, wanted, option)
    first, latest = _engine(given), _engine(now)
    for name, value in _engine(asked).items():
        if value not in (first.get(name), latest.get(name)):
            yield Difference(name, latest.get(name), value, f"--engine {name}={value}")
    if "policy" in named and asked.policy != given.policy:
        yield Difference("policy", "of its first up", "another", "--policy FILE")


def _engine(spec: VersionSpec) -> Mapping[str, object]:
    return {name.lstrip("-").replace("-", "_"): value for name, value in spec.engine.items()}


def _list(pairs: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name} {'not set' if value is None else value}" for name, value in pairs)
