"""Units: percent as basis points, durations as seconds, bytes as GiB; parsed and formatted."""

from __future__ import annotations

import math
import re

GIB = 1 << 30
FULL_BP = 10_000  # basis points: 100 %
# A number of settled canary requests that no stage reaches: the stage of an A/B test is never passed.
NEVER_CANARY = 1_000_000_000
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)\s*(ms|s|min|m|h|d)")
_PERCENT = re.compile(r"([0-9]*\.?[0-9]+)\s*%")


def weight_bp(value: object) -> int:
    """Basis points of a percentage: `2.5%`, `2.5 %` and 2.5 give 250.

    Raises ValueError above 100 %, below 0, or for a fraction of a basis point.
    """
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a percent; write 2.5%")
        percent = float(match[1])
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        percent = float(value)
    else:
        raise ValueError(f"{value!r} is not a percent; write 2.5%")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent:g} % is outside 0 to 100 %; write a share of the traffic, such as 25%")
    points = percent * 100
    if abs(points - round(points)) > 1e-6:
        raise ValueError(f"{percent:g} % is finer than 0.01 %; round it to a basis point")
    return round(points)


def duration_s(value: object) -> float:
    """Seconds of `500ms`, `30s`, `10m`, `1h30m`, `3d` or a plain number. Raises ValueError."""
    if (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and re.fullmatch(r"[0-9]*\.?[0-9]+", value.strip())
    ):
        seconds = float(value)
    elif isinstance(value, str):
        parts = _DURATION.findall(value)
        if not parts or _DURATION.sub("", value).strip():
            raise ValueError(f"{value!r} is not a duration; write 30s, 10m, 1h30m or 3d")
        seconds = math.fsum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        raise ValueError(f"{value!r} is not a duration; write 30s, 10m, 1h30m or 3d")
    if not (math.isfinite(seconds) and 0 <= seconds <= 366 * 86_400):
        raise ValueError(f"{seconds:g} s is outside 0 s to 366 d; write a duration within that range")
    return seconds


def percent(points: int) -> str:
    """Basis points formatted as a percentage: 250 gives `2.5 %`."""
    return f"{points / 100:g} %"


def duration(seconds: float) -> str:
    """Seconds formatted as a duration: 5400 gives `1 h 30 min`."""
    if seconds < 60:
        return f"{seconds:g} s"
    parts = []
    rest = round(seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def gib(count: int) -> str:
    """Bytes formatted as `12.3 GiB`; below 0.1 GiB as MiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.0f} MiB"
