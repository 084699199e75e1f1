"""State as bytes and back, to the last bit: JSON with a version, arrays as base64.

Every stateful object names what it must remember in `__state__`; all else is made again from the policy.
Invariant: a snapshot holds no code and no class names, and loading one can only fill in objects that
already exist.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evaluation.estimates import MedianRatio

FORMAT = 4


class SnapshotMismatch(ValueError):
    """A snapshot of another policy, other stages or an unknown version; the message holds both."""


@runtime_checkable
class Stateful(Protocol):
    """An object that names its own state."""

    @property
    def __state__(self) -> tuple[str, ...]: ...


def _to_2(document: dict[str, Any]) -> dict[str, Any]:
    """Format 2 keeps the book of units as two arrays, not as a list of pairs."""
    units = document["state"]["pipeline"]["units"]
    pairs = units.pop("seen")["items"]
    units["book"] = [_encode(np.array([pair[at] for pair in pairs], dtype=np.int64)) for at in (0, 1)]
    return {**document, "format": 2}


def _to_3(document: dict[str, Any]) -> dict[str, Any]:
    """Format 3 knows when the canary's replicas carried more than stable's; before it, nobody looked."""
    return {**document, "format": 3, "state": {**document["state"], "load_now": 1.0, "overloads": []}}


def _to_4(document: dict[str, Any]) -> dict[str, Any]:
    """Format 4 estimates the ratio of medians where the shape of values is gated."""
    for lane in document["state"]["pipeline"]["lanes"]:
        for metric in lane["metrics"]:
            first = metric["columns"][0]["first"]
            if first["stable"]["histogram"] is not None:
                first["estimate"] = _encode(MedianRatio())
    return {**document, "format": 4}


#: From a format to the next one: takes the document, returns it changed.
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3, 3: _to_4}


def write(root: Stateful, *, digest: str) -> bytes:
    """The state under `root`, with the digest of what it may be restored with."""
    document = {"format": FORMAT, "digest": digest, "state": _encode(root)}
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def read(root: Stateful, data: bytes, *, digest: str) -> None:
    """Fill `root` with the state in `data`. Errors: SnapshotMismatch, and `root` is of no use."""
    try:
        document = json.loads(data)
        version = document["format"]
    except (ValueError, TypeError, KeyError) as exc:
        raise SnapshotMismatch("this is no snapshot of an evaluator; give what snapshot() returned") from exc
    while version != FORMAT:
        if version not in MIGRATIONS:
            raise SnapshotMismatch(f"snapshot format {version} is unknown, the limit is {FORMAT}; upgrade")
        document = MIGRATIONS[version](document)
        version = document["format"]
    if document["digest"] != digest:
        raise SnapshotMismatch(
            f"snapshot belongs to policy and stages {document['digest']}, not {digest}; restore with its own"
        )
    _fill(root, document["state"])


def digest_of(data: bytes) -> str | None:
    """With what a snapshot may be restored; None when it is none."""
    try:
        found = json.loads(data)["digest"]
    except (ValueError, TypeError, KeyError):
        return None
    return str(found)


def _encode(value: object) -> object:
    if isinstance(value, Stateful):
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


def _fill(target: Stateful, state: dict[str, object]) -> None:
    for name in target.__state__:
        if name not in state:
            raise SnapshotMismatch(f"snapshot lacks {name!r} of {type(target).__name__}; it was cut short")
        present = getattr(target, name)
        raw = state[name]
        if isinstance(present, Stateful) and isinstance(raw, dict):
            _fill(present, raw)
        elif (
            isinstance(present, list)
            and present
            and isinstance(present[0], Stateful)
            and isinstance(raw, list)
        ):
            for member, part in zip(present, raw, strict=True):
                _fill(member, part)
        else:
            setattr(target, name, _decode(raw))
