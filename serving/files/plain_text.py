"""Text that every database, JSON document and terminal can hold, from text that comes from anywhere."""

from __future__ import annotations

import re

# Controls but tab and line feed: PostgreSQL refuses NUL, a terminal obeys the others. And halves of UTF-16
# pairs, which UTF-8 cannot write.
_UNSTORABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str) -> str:
    """The text with U+FFFD for each character that cannot be stored or shown; of the same length."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def storable_values(value: object) -> object:
    """A JSON value with `storable` texts, keys included, however deep."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable_values(key): storable_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable_values(inner) for inner in value]
    return value
