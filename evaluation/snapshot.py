"""Snapshots: state as versioned JSON with arrays as base64, restored with the same bits.

Every stateful object lists its stored attributes in `__state__`; all else is derived from the policy. One
that says it `is_untouched` is as a new one, and stored empty.
Invariant: a snapshot holds no code and no class names; loading one only sets attributes of existing objects.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from typing import Any, Protocol, TypeGuard

import numpy as np

#: The formats before 20 hold other evidence (19: rollbacks without answers that a judge drew and did not
#: score, one cap of means; 18: proofs without answers that a judge drew and did not score;
#: 17: failures as the largest tokens and costs; 16: proofs without what is missing of outcomes and latencies;
#: 15: a percentile's proof at one estimate of it; 14: requests that clients left counted with those that
#: failed, one alone holding a promotion, limits of all clients, sessions without the limit of their draw; 13:
#: no lengths of later sessions, one limit of a percentile; 12: no third channel of a percentile's proof; 11:
#: percentiles without the requests that clients left, no limit held for proofs, no bin of zeros; 10: no noise
#: of stable's speed, no votes for recorded steps; 9: harm of later sessions by round alone; 8: without parts,
#: no recorded steps; 7: no later ones; the earlier ones: requests where units are bet on now) and cannot be
#: carried over.
FORMAT = 20


class SnapshotMismatch(ValueError):
    """The snapshot is damaged, of an unknown version, or of another policy or other stages."""


#: Exceptions that reading a damaged document can raise.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,  # of a damaged dtype
    TypeError,
    zlib.error,
)
_REMEDY = "restore an earlier one, or start again"
_SUM_BYTES = 74


class Stateful(Protocol):
    """An object that lists its stored attributes."""

    @property
    def __state__(self) -> tuple[str, ...]: ...


def _is_stateful(value: object) -> TypeGuard[Stateful]:
    """Like isinstance of a runtime-checkable protocol, which takes a hundred times as long on Python 3.11."""
    return hasattr(type(value), "__state__")


def write(root: Stateful, *, digest: str) -> bytes:
    """The state under `root` as bytes. digest: of the policy and stages it can be restored with."""
    document = {"format": FORMAT, "digest": digest, "state": _encode(root)}
    body = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()[:-1]
    return body + _sum(body)


def read(root: Stateful, data: bytes, *, digest: str) -> None:
    """Set the state under `root` from `data`. Errors: SnapshotMismatch, and `root` is unusable."""
    document = _parse(data)
    try:
        if document["digest"] != digest:
            stored = document["digest"]
            raise SnapshotMismatch(
                f"snapshot belongs to policy and stages {stored!r:.40}, not {digest}; restore with its own"
            )
        _fill(root, document["state"])
    except SnapshotMismatch:
        raise
    except (*_DAMAGE, ValueError) as exc:
        raise SnapshotMismatch(f"snapshot is damaged ({type(exc).__name__}); {_REMEDY}") from exc


def _parse(data: bytes) -> dict[str, Any]:
    """The document, of a known format and unchanged since it was written. Errors: SnapshotMismatch."""
    try:
        document: dict[str, Any] = json.loads(data)
        version = document["format"]
    except (*_DAMAGE, ValueError) as exc:
        raise SnapshotMismatch("this is not a snapshot of an evaluator; use the bytes of snapshot()") from exc
    if type(version) is int and 0 < version < FORMAT:
        raise SnapshotMismatch(
            f"snapshot format {version} is of an earlier release, which bet on other evidence; "
            "read the rollout's records again from the log: its weight and stage stay, its proofs start anew"
        )
    if type(version) is not int or version != FORMAT:
        raise SnapshotMismatch(f"snapshot format {version!r:.40} is unknown, the limit is {FORMAT}; upgrade")
    body, end = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if end != _sum(body):
        raise SnapshotMismatch(f"snapshot is damaged (checksum mismatch); {_REMEDY}")
    return document


def _sum(body: bytes) -> bytes:
    """The end of a document that begins with `body`: its checksum."""
    return b',"sum":"%s"}' % hashlib.sha256(body).hexdigest().encode()


def stored_names(data: bytes, attribute: str) -> list[str]:
    """A list of names that the stored root holds, without further checks: `read` makes them."""
    try:
        return [str(name) for name in json.loads(data)["state"][attribute]]
    except (*_DAMAGE, ValueError):
        return []


def _encode(value: object) -> object:
    if _is_stateful(value):
        if getattr(value, "is_untouched", False):
            return {}
        return {name: _encode(getattr(value, name)) for name in value.__state__}
    if isinstance(value, np.ndarray):
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(value).tobytes(), 6)).decode()
        return {"@": value.dtype.str, "shape": list(value.shape), "data": packed}
    if isinstance(value, dict):
        return {"@": "map", "items": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"@": "tuple", "items": [_encode(v) for v in value]}
    if isinstance(value, list):
        return [_encode(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"@": "float", "text": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a snapshot")


def _decode(value: object) -> object:
    if isinstance(value, list):
        return [_decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    match value["@"]:
        case "map":
            return {_decode(k): _decode(v) for k, v in value["items"]}
        case "tuple":
            return tuple(_decode(v) for v in value["items"])
        case "float":
            return float(value["text"])
        case dtype:
            raw = zlib.decompress(base64.b64decode(value["data"]))
            return np.frombuffer(raw, dtype=np.dtype(str(dtype))).reshape(value["shape"]).copy()


def _fill(target: Stateful, state: object) -> None:
    if not isinstance(state, dict):
        raise SnapshotMismatch(f"snapshot is damaged ({type(target).__name__} is malformed); {_REMEDY}")
    if not state and hasattr(target, "is_untouched"):
        return
    for name in target.__state__:
        if name not in state:
            raise SnapshotMismatch(f"snapshot lacks {name!r} of {type(target).__name__}; {_REMEDY}")
        present = getattr(target, name)
        raw = state[name]
        if _is_stateful(present):
            _fill(present, raw)
        elif isinstance(present, list) and present and _is_stateful(present[0]):
            if not isinstance(raw, list) or len(raw) != len(present):
                raise SnapshotMismatch(f"snapshot is damaged ({name!r} does not fit); {_REMEDY}")
            for member, part in zip(present, raw, strict=True):
                _fill(member, part)
        else:
            value = _decode(raw)
            if present is not None and _shape(value) != _shape(present):
                raise SnapshotMismatch(f"snapshot is damaged ({name!r} does not fit); {_REMEDY}")
            setattr(target, name, value)


def _shape(value: object) -> object:
    """Equal for interchangeable values: numbers, and arrays of the same kind and number of dimensions."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.ndim
    return float if isinstance(value, bool | int | float) else type(value)
