"""Units: percent as basis points, durations as seconds, bytes as GiB; parsed and formatted."""

from __future__ import annotations

import math
import re
from decimal import Decimal

GIB = 1 << 30
FULL_BP = 10_000  # basis points: 100 %
# A number of settled canary requests that no stage reaches: the stage of an A/B test is never passed.
NEVER_CANARY = 1_000_000_000
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
# No text of a quantity is longer; it is refused before a pattern sees it.
MAX_LENGTH = 64
_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_PLAIN = re.compile(_NUMBER)
_DURATION = re.compile(rf"\s*({_NUMBER})\s*(ms|s|min|m|h|d)\s*")
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": GIB,
    "t": 1 << 40,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": GIB,
    "tib": 1 << 40,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": GIB,
    "ti": 1 << 40,
}
_BYTES = re.compile(rf"({_NUMBER})\s*([kmgt]?i?b?)", re.IGNORECASE)
_PERCENT = re.compile(rf"({_NUMBER})\s*%")


def _percent_meant(text: str) -> str:
    """How to write what a text without a percent sign may mean: of `0.5` 0.5% or 50%; else an example."""
    if re.fullmatch(_NUMBER, text.strip()) is None:
        return "2.5%"
    number = float(text)
    return f"{number:g}% or {number * 100:g}%" if 0 < number <= 1 else f"{number:g}%"


def weight_bp(value: object) -> int:
    """Basis points of a percentage: `2.5%`, `2.5 %` and 2.5 give 250.

    Raises ValueError above 100 %, below 0, for a fraction of a basis point, and for a bare number up to 1,
    which may be meant as a share of 1.
    """
    if isinstance(value, str):
        _refuse_long(value)
        match = _PERCENT.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{shown(value)} is not a percent; write {_percent_meant(value)}")
        percent = float(match[1])
    elif (number := finite(value)) is not None:
        percent = number
        if 0 < percent <= 1:
            raise ValueError(
                f"{percent:g} may mean {percent:g} % or {percent * 100:g} %; write {percent:g}% or "
                f"{percent * 100:g}%"
            )
    else:
        raise ValueError(f"{shown(value)} is not a percent; write 2.5%")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent:g} % is outside 0 to 100 %; write a share of the traffic, such as 25%")
    points = percent * 100
    if abs(points - round(points)) > 1e-6:
        raise ValueError(f"{percent:g} % is finer than 0.01 %; round it to a basis point")
    return round(points)


def duration_s(value: object) -> float:
    """Seconds of `500ms`, `30s`, `10m`, `1h30m`, `3d` or a plain number. Raises ValueError."""
    number = finite(value)
    if isinstance(value, str):
        _refuse_long(value)
        number = float(value) if _PLAIN.fullmatch(value.strip()) else None
    if number is not None:
        seconds = number
    elif isinstance(value, str):
        seconds = _seconds(value)
    else:
        raise ValueError(f"{shown(value)} is not a duration; write 30s, 10m, 1h30m or 3d")
    if not (math.isfinite(seconds) and 0 <= seconds <= 366 * 86_400):
        raise ValueError(f"{seconds:g} s is outside 0 s to 366 d; write a duration within that range")
    return seconds


def byte_count(value: object) -> int:
    """Bytes of `4GiB`, `512 MiB`, `4GB`, `1e9` or a plain number. Raises ValueError."""
    number = finite(value)
    if isinstance(value, str):
        _refuse_long(value)
    if isinstance(value, str) and (match := _BYTES.fullmatch(value.strip())):
        number = float(match[1]) * _BYTE_UNITS[match[2].lower()]
    if number is None or number != int(number) or not 0 <= number < 1 << 62:
        raise ValueError(f"{shown(value)} is not a number of bytes; write 4GiB, 512MiB or 4294967296")
    return int(number)


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


def figure(value: float, digits: int) -> str:
    """The value to `digits` significant digits, without an exponent: 308.2 to two gives `310`."""
    if not math.isfinite(value):
        return f"{value}"
    return format(Decimal(f"{value:.{digits}g}"), "f")


def _seconds(text: str) -> float:
    """Seconds of one or more numbers with a unit, and nothing else. Raises ValueError."""
    seconds, place = [], 0
    while match := _DURATION.match(text, place):
        seconds.append(float(match[1]) * _SECONDS[match[2]])
        place = match.end()
    if not seconds or place < len(text):
        raise ValueError(f"{shown(text)} is not a duration; write 30s, 10m, 1h30m or 3d")
    return math.fsum(seconds)


def _refuse_long(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"{shown(text)} has {len(text)} characters, limit {MAX_LENGTH}; shorten it")


def finite(value: object) -> float | None:
    """A number from outside as a float; None: it is no number, or none that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole(text: str) -> int | None:
    """The whole number in ASCII digits; None: it is none, or may exceed 64 bits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def shown(value: object) -> str:
    """The value as shown in an error, cut if it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of over 40 digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
