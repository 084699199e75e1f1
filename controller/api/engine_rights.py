"""Engine arguments that belong to an admin: an operator deploys with those that the service has.

An engine runs as the controller's user, on its host. An argument that names a class runs it there, one that
names a file shows it to whoever asks the model, one that opens a port or a log hands out what users say.
Which arguments an operator may set is a column of serving/files/engine_arguments.json.

Invariant: an argument that has an engine run the checkpoint's own code is a right to that code, not to any:
an operator deploys with it what has the same code, and names it in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from controller.auth import Identity, Role
from controller.errors import BadInput
from controller.planning.fingerprint import Fingerprint
from controller.quantities import shown
from controller.spec.version import VersionSpec
from serving.files.engine_arguments import is_admins, is_shown

_TEMPLATE = "chat_template"
_RUNS_CODE = frozenset({"trust_remote_code"})  # of the checkpoint
# What that code is, and what may name other code: config.json's `auto_map` names any folder's.
_CODE_PARTS = ("code", "config", "processor", "files")
_CODE_FILES = ("tokenizer_config.json",)
_MARKS = "{}\n"  # vLLM takes a text with one of them for a template, unless a file has that name


def refuse_new_arguments(version: VersionSpec, known: Iterable[VersionSpec], identity: Identity) -> None:
    """Raises BadInput for an admin's engine argument that no version of the service has with this value.

    known: the service's versions; they are asked for only if they matter.
    """
    if identity.role.covers(Role.ADMIN):
        return
    given = version.extra_arguments
    asked = {name: why for name, value in given.items() if (why := _why(version, name, value))}
    if not asked:
        return
    for one in known:
        has = one.extra_arguments
        asked = {name: why for name, why in asked.items() if name not in has or has[name] != given[name]}
    for name, why in asked.items():
        value = f" {shown(given[name])}" if is_shown(name) else ""
        raise BadInput(
            f"engine argument {name}{value} {why}: an admin must deploy it first; leave it out, or ask one"
        )


def refuse_new_code(
    version: VersionSpec,
    fingerprint: Fingerprint,
    known: Iterable[tuple[VersionSpec, Fingerprint]],
    identity: Identity,
) -> None:
    """Raises BadInput for a checkpoint whose own code would run, where no version of the service runs it.

    known: the service's versions; they are asked for only if they matter.
    """
    if identity.role.covers(Role.ADMIN):
        return
    asked = {name for name in _RUNS_CODE if version.extra_arguments.get(name)}
    if not asked:
        return
    code = _code_of(fingerprint)
    for one, has in known:
        if _code_of(has) == code:
            asked -= {name for name in asked if one.extra_arguments.get(name)}
    for name in sorted(asked):
        raise BadInput(
            f"engine argument {name} runs the code of {version.model}, which no version of the service has "
            "(the same .py files, and the same configuration that names them): an admin must deploy it "
            "first; leave it out, or ask one"
        )


def _code_of(fingerprint: Fingerprint) -> tuple[str, ...]:
    files = dict(fingerprint.files)
    parts = (fingerprint.part(name) for name in _CODE_PARTS)
    return (*parts, *(files.get(name, "") for name in _CODE_FILES))


def _why(version: VersionSpec, name: str, value: Any) -> str:
    """Why only an admin may set this; empty: an operator may."""
    if name == _TEMPLATE and isinstance(value, str) and _is_path(value):
        return "" if _is_within(value, version.model) else "is a file outside the checkpoint"
    if is_admins(name, value):
        return "may load code, read files, open a port, write logs or publish requests"
    return ""


def _is_path(template: str) -> bool:
    """Whether vLLM may read the template from a file."""
    return template.lstrip().startswith("/") or not any(mark in template for mark in _MARKS)


def _is_within(path: str, folder: str | None) -> bool:
    """Whether the path is in the folder, as both are written: a checkpoint's own files may be links."""
    if folder is None or path != path.strip():
        return False
    return os.path.normpath(path).startswith(f"{os.path.normpath(folder)}/")
