"""Reads the table file of the standalone router (`table_file.py`). A mistake is one line.

Invariant: no key and no secret is shown in a message.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from serving.access import Affinity
from serving.credentials import KeyReference, NoKey, UnitKey
from serving.files.strict_yaml import YamlError, load_yaml
from serving.judge_messages import JudgeOrder
from serving.judging.questions import revision
from serving.messages import Arm, Replica, RouteTable
from serving.router.standalone.addresses import is_one_of
from serving.router.standalone.table_mistakes import listed, mistakes
from serving.router.standalone.table_schema import (
    SHARED,
    AffinitySpec,
    JudgeSpec,
    LimitsSpec,
    TableSpec,
    UpstreamSpec,
)

SHORTEST_TOKEN_KEY = 16  # bytes
ROLLOUT_LETTERS = 10
JUDGE_METRIC = "quality"  # the column of evidence files that a verdict becomes
SHOWN_MISTAKES = 3  # in one line of the log


class TableFileError(ValueError):
    """The file is invalid or unreadable; one line with the value, the limit and the remedy.

    lines: one for each mistake, of which the text has the first ones.
    """

    def __init__(self, text: str, lines: Sequence[str] = ()) -> None:
        self.lines = tuple(lines) or (text,)
        super().__init__(text)

    @classmethod
    def of(cls, path: Path, mistakes: Sequence[str]) -> TableFileError:
        """The error of a file with these mistakes."""
        more = len(mistakes) - SHOWN_MISTAKES
        rest = f"; and {more} more: canaryctl router --table {path} --check" if more > 0 else ""
        text = f"table {path}: {'; '.join(mistakes[:SHOWN_MISTAKES])}{rest}"
        return cls(text, [f"table {path}: {one}" for one in mistakes])


@dataclass(frozen=True, slots=True)
class TableFile:
    """A valid file: its tables by service, and what of it cannot be used now.

    Two are equal that say the same, whatever the revisions of their tables.
    """

    tables: dict[str, RouteTable] = field(compare=False)
    specs: dict[str, TableSpec]
    problems: tuple[str, ...] = ()  # a key that cannot be read now, each in one line

    @property
    def limits(self) -> LimitsSpec:
        """The limits of the port, which all its services have."""
        return next(iter(self.specs.values())).limits

    def is_off(self, service: str) -> bool:
        """True when the canary of this service is `enabled: false`."""
        canary = self.specs[service].canary
        return canary is not None and not canary.enabled

    def is_without_key(self, service: str) -> bool:
        """True when the canary of this service is out for its key alone."""
        return self.specs[service].is_canary_in and self.tables[service].canary is None


def read_tables(path: Path, *, change: int) -> dict[str, RouteTable]:
    """The tables in the file by service, as revision `change`. Raises TableFileError."""
    return read_file(path, change=change).tables


def read_file(
    path: Path, *, change: int, known: TableFile | None = None, own: frozenset[str] = frozenset()
) -> TableFile:
    """The file, its tables as revision `change`. Raises TableFileError. own: addresses (host:port) that this
    router listens at, which no upstream may have.

    known: what it says, where it is the same as when that was read: only keys are read again.

    A key (in another file, or a variable) that cannot be read is a problem of its arm alone: the canary is
    out, stable stays and does not answer, tokens are neither given nor read. The rest of the file holds.
    """
    specs = _specs(path) if known is None else [("", spec) for spec in known.specs.values()]
    tables: dict[str, RouteTable] = {}
    problems: list[str] = []
    wrong: list[str] = []
    for where, spec in specs:
        wrong += [f"{where}{line}" for line in circles(spec, own)]
        try:
            table = _table(spec, path.parent, change, problems)
        except ValueError as exc:
            wrong.append(f"{where}{exc}")
            continue
        if table.service in tables:
            wrong.append(f"service {table.service} is given twice; keep one")
        tables[table.service] = table
    if wrong:
        raise TableFileError.of(path, wrong)
    return TableFile(tables, {spec.service: spec for _, spec in specs}, tuple(problems))


def _specs(path: Path) -> list[tuple[str, TableSpec]]:
    """(place in the file, values) of each service. Raises TableFileError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise TableFileError.of(path, [f"{reason}; name a readable YAML file"]) from exc
    try:
        entries = _entries(load_yaml(text))
    except YamlError as exc:
        line = f"line {exc.line}: " if exc.line is not None else ""
        raise TableFileError.of(path, [f"{line}{exc}"]) from exc
    except ValueError as exc:
        raise TableFileError.of(path, [str(exc)]) from exc
    specs, wrong = [], []
    for where, entry in entries:
        try:
            specs.append((where, TableSpec.model_validate(entry)))
        except ValidationError as exc:
            wrong += [f"{where}{line}" for line in mistakes(exc)]
    if wrong:
        raise TableFileError.of(path, wrong)
    return specs


def circles(spec: TableSpec, own: frozenset[str]) -> list[str]:
    """A line for each upstream that is the router itself: its requests would go round until none is free."""
    listed_all = (("stable", spec.stable), ("canary", spec.canary), ("judge", spec.judge))
    named = [(name, one) for name, one in listed_all if one is not None]
    return [
        f"{spec.service}.{arm} {upstream.url} is the address of this router; name the server behind it"
        for arm, upstream in named
        if is_one_of(upstream.url, own)
    ]


def _entries(data: object) -> list[tuple[str, object]]:
    """(path, values) of each service. Raises ValueError."""
    if not isinstance(data, dict) or "services" not in data:
        return [("", data)]
    shared = {name: value for name, value in data.items() if name != "services"}
    if unknown := next((name for name in shared if name not in SHARED), None):
        raise ValueError(
            f"{unknown} stands beside services; give it to one of them, or one of {listed(SHARED)}"
        )
    services = data["services"]
    if not isinstance(services, list) or not services:
        raise ValueError("services is no list of services; write each with a dash")
    entries: list[tuple[str, object]] = []
    for number, one in enumerate(services):
        if isinstance(one, dict) and "limits" in one:
            raise ValueError(
                f"services.{number}.limits: limits hold for the port; write them beside services"
            )
        entry = {**shared, **one} if isinstance(one, dict) else one
        entries.append((f"services.{number}.", entry))
    return entries


def _table(spec: TableSpec, folder: Path, change: int, problems: list[str]) -> RouteTable:
    """problems: a line is added for each key that cannot be read. Raises ValueError."""
    weights = spec.weights
    if weights and spec.canary is None:
        raise ValueError(
            f"{listed(weights)} without a canary; remove {'it' if len(weights) == 1 else 'all of these'}, or "
            "put the canary back (with enabled: false it gets nothing, whatever the weights)"
        )
    stable, canary = _arm(spec.stable, "stable", folder), None
    if (why := _key_problem(stable)) is not None:
        problems.append(f"{spec.service}: stable {spec.stable.url} cannot be asked: {why}")
    if spec.canary is not None and spec.is_canary_in:
        canary = _arm(spec.canary, "canary", folder)
        if (why := _key_problem(canary)) is not None:
            problems.append(f"{spec.service}: canary {spec.canary.url} is out: {why}")
            canary = None
    try:
        affinity = _affinity(spec.affinity, folder)
    except ValueError as exc:
        problems.append(f"{spec.service}: no affinity tokens: {exc}")
        affinity = None
    return RouteTable(
        service=spec.service,
        epoch=1,
        revision=change,
        change=change,
        rollout=_rollout(spec, stable, canary) if canary else "",
        salt=spec.salt,
        weight_bp=spec.weight_bp,
        stable=stable,
        canary=canary,
        access=spec.access(),
        # Routers that share a key of tokens also name units alike: a token holds its unit.
        unit_key=UnitKey.of(affinity.key) if affinity is not None else None,
        affinity=affinity,
        generation=_generation(spec),
        burst_cap=spec.burst_cap,
        late_commit=spec.late_commit,
        judge=_judge(spec.judge, folder, problems, spec.service) if canary is not None else None,
    )


def _judge(spec: JudgeSpec | None, folder: Path, problems: list[str], service: str) -> JudgeOrder | None:
    """Who is asked of answers. One whose key cannot be read now is asked when it can be."""
    if spec is None:
        return None
    api_key = KeyReference.from_names(spec.api_key_env, _located(spec.api_key_file, folder))
    if api_key is not None and (why := api_key.problem()) is not None:
        problems.append(f"{service}: judge {spec.url} cannot be asked: {why}")
    of_judge = spec.url, spec.model, api_key, revision(spec.model)
    return JudgeOrder(*of_judge, spec.share_bp, JUDGE_METRIC, spec.per_minute)


def _rollout(spec: TableSpec, stable: Arm, canary: Arm) -> str:
    """Names what is compared: this canary beside this stable, for as long as affinity tokens hold.

    One name for two canaries would have the second one judged by what the first one did. No weight, key or
    audience is in it: a ramp is one rollout.
    """
    parts = [spec.service, spec.salt, _generation(spec), stable.version, canary.version]
    return f"file-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:ROLLOUT_LETTERS]}"


def _generation(spec: TableSpec) -> str:
    """What tokens hold for, as far as the file tells: both upstreams, and when the canary was put in.

    The same at every router; the versions and the salt are in the table itself.
    """
    canary = spec.canary
    parts = [spec.stable.url, spec.stable.model]
    if canary is not None:
        parts += [canary.url, canary.model, canary.since]
    return "\n".join(part or "" for part in parts)


def _affinity(spec: AffinitySpec | None, folder: Path) -> Affinity | None:
    """How tokens are signed. Without a key by a random one, so that they end with this process."""
    if spec is None:
        return None
    reference = KeyReference.from_names(spec.key_env, _located(spec.key_file, folder))
    if reference is None:
        return Affinity(_process_key(), spec.cookie)
    try:
        key = reference.read().encode()
    except NoKey as exc:
        raise ValueError(f"affinity: {str(exc).replace('api_key_', 'key_')}") from exc
    if len(key) < SHORTEST_TOKEN_KEY:
        raise ValueError(
            f"affinity: the key of {len(key)} bytes is shorter than {SHORTEST_TOKEN_KEY}; "
            "make one with: openssl rand -hex 32"
        )
    return Affinity(key, spec.cookie)


@functools.lru_cache(maxsize=1)
def _process_key() -> bytes:
    return secrets.token_bytes(32)


def _located(file: str | None, folder: Path) -> str | None:
    return None if file is None else str((folder / Path(file).expanduser()).absolute())


def _arm(upstream: UpstreamSpec, name: str, folder: Path) -> Arm:
    """The upstream as an arm. Its key is read when it is sent."""
    api_key = KeyReference.from_names(upstream.api_key_env, _located(upstream.api_key_file, folder))
    replicas = (Replica(upstream.url),)
    return Arm(upstream.version or name, replicas, True, upstream.model, api_key)


def _key_problem(arm: Arm) -> str | None:
    return arm.api_key.problem() if arm.api_key is not None else None
