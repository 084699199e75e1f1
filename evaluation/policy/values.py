"""Readers of single policy values: the typed value, or a PolicyError that names the key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d)")


class PolicyError(ValueError):
    """An invalid policy or stage plan; the message holds the key, the value, the limit and the remedy."""


def mapping(key: str, value: object) -> Mapping[str, object]:
    """The value as a mapping. Errors: PolicyError."""
    if not isinstance(value, Mapping):
        raise PolicyError(f"{key} {value!r} is not a mapping; write its settings as name: value")
    return value


def number(key: str, value: object) -> float:
    """The value as a finite number. Errors: PolicyError."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass  # an integer too large for a float is refused like infinity
    raise PolicyError(f"{key} {value!r} is not a finite number; write it as 0.01")


def seconds(key: str, value: object) -> float:
    """Seconds of `500ms`, `30s`, `10m`, `1h30m`, `3d` or a number. Errors: PolicyError."""
    if not isinstance(value, str):
        return number(key, value)
    parts = _DURATION.findall(value)
    if not parts or _DURATION.sub("", value).strip():
        raise PolicyError(f"{key} {value!r} is not a duration; write 30s, 10m or 1h30m")
    return math.fsum(float(count) * _SECONDS[unit] for count, unit in parts)


def whole(key: str, value: object, *, minimum: int) -> int:
    """The value as a whole number of at least `minimum`. Errors: PolicyError."""
    got = number(key, value)
    if got != int(got) or got < minimum:
        raise PolicyError(f"{key} {value!r} is not a whole number of at least {minimum}; write one")
    return int(got)


def flag(key: str, value: object) -> bool:
    """The value as a boolean, not merely truthy. Errors: PolicyError."""
    if not isinstance(value, bool):
        raise PolicyError(f"{key} {value!r} is neither true nor false; write one, without quotes")
    return value


def check_probability(key: str, value: object, *, below: float) -> None:
    """Raise PolicyError unless the value is in (0, `below`)."""
    if not 0.0 < number(key, value) < below:
        raise PolicyError(f"{key} {value} is outside (0, {below:g}); it is a probability")


def check_keys(path: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise PolicyError for a key of the mapping at `path` that is not known."""
    for key in given:
        if key not in known:
            raise PolicyError(f"{path}.{key} is unknown; use one of {', '.join(known)}")
