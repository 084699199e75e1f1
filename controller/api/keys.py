"""API keys that a service's endpoints need and that cannot be read: named before a request needs them.

A version that is not loaded shows nothing when its key is gone, but the way back to it is cut. So every
version that a command could bring back is looked at, not only those that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from controller.errors import Conflict
from controller.spec.label import title
from controller.spec.version import VersionSpec
from controller.store.row_specs import label_of, version_spec
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from serving.credentials import KeyReference

Role: TypeAlias = Literal["stable", "canary", "earlier version"]


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """Why a key cannot be read, with the remedy; never the key."""

    text: str
    variable: str | None = None  # `canaryctl up` mends it where this one is set; None: it does not


@dataclass(frozen=True, slots=True)
class MissingKey:
    """A version whose endpoint cannot be asked, because its key cannot be read."""

    version: str
    role: Role
    text: str
    variable: str | None  # as in `KeyProblem`


FindProblem: TypeAlias = Callable[[KeyReference], KeyProblem | None]


def key_problem(reference: KeyReference) -> KeyProblem | None:
    """Why this process cannot read the key; None: it can."""
    why = reference.problem()
    if why is None:
        return None
    if not reference.is_unset:
        return KeyProblem(why)
    name = reference.name
    text = f"{name} is not set where the controller was started; export {name}, then run: canaryctl up"
    return KeyProblem(text, name)


def missing_key(
    version: str, name: str, spec: VersionSpec, role: Role, find: FindProblem
) -> MissingKey | None:
    """The key that this version lacks; None: it needs none, or it can be read. name: what people call it."""
    reference = spec.api_key
    problem = find(reference) if reference is not None else None
    if problem is None:
        return None
    text = f"{role} {title(version, name)} has no API key: {problem.text}"
    return MissingKey(version, role, text, problem.variable)


def require_key(row: VersionRow, role: Role, find: FindProblem) -> None:
    """Raises Conflict when this version lacks its key, so that nothing is begun that has to fail."""
    if (missing := _missing_of(row, role, find)) is not None:
        raise Conflict(missing.text)


def _missing_of(row: VersionRow, role: Role, find: FindProblem) -> MissingKey | None:
    return missing_key(row.id, label_of(row).shown, version_spec(row), role, find)


def missing_keys(
    store: SqlStore, service: ServiceRow, find: FindProblem, *, canary: str | None = None
) -> tuple[MissingKey, ...]:
    """The keys that stable, the canary and the versions that `undo` could bring back lack, each once.

    canary: of the running rollout; None: none runs.
    """
    named: list[tuple[Role, VersionRow | None]] = [("stable", store.version(service.name, service.stable))]
    if canary is not None:
        named.append(("canary", store.version(service.name, canary)))
    named += [("earlier version", one.version) for one in store.served(service.name)]
    rows = _first_of_each((role, row) for role, row in named if row is not None)
    return tuple(found for role, row in rows if (found := _missing_of(row, role, find)) is not None)


def _first_of_each(rows: Iterable[tuple[Role, VersionRow]]) -> list[tuple[Role, VersionRow]]:
    seen: dict[str, tuple[Role, VersionRow]] = {}
    for role, row in rows:
        seen.setdefault(row.id, (role, row))
    return list(seen.values())
