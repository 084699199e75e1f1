"""Text that every database, JSON document and terminal can hold, from text that comes from anywhere."""

from __future__ import annotations

import json
import re

# Controls but tab and line feed: PostgreSQL refuses NUL, a terminal obeys the others. And halves of UTF-16
# pairs, which UTF-8 cannot write.
_UNSTORABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# The same in JSON that is ASCII alone, and characters beyond the basic plane, which it writes as such halves.
_UNSTORABLE_IN_JSON = re.compile(r"\\(?:[bfr]|u00[01789]|ud[89a-f])")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def storable(text: str) -> str:
    """The text with U+FFFD for each character that cannot be stored or shown; of the same length."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def unstorable(value: object, path: str = "") -> tuple[str, str] | None:
    """(path, text) of the first text in a JSON value, keys included, that is not `storable`; None: all are.

    A carriage return is let through: templates that were written on Windows have them.
    """
    if isinstance(value, str):
        return (path, value) if _UNSTORABLE.search(value.replace("\r", "")) else None
    inner: list[tuple[str, object]] = []
    if isinstance(value, dict):
        inner = [(path, key) for key in value] + [
            (f"{path}.{key}".lstrip("."), one) for key, one in value.items()
        ]
    elif isinstance(value, list):
        inner = [(f"{path}.{index}".lstrip("."), one) for index, one in enumerate(value)]
    return next((found for where, one in inner if (found := unstorable(one, where)) is not None), None)


def storable_values(value: object) -> object:
    """A JSON value with `storable` texts, keys included, however deep."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable_values(key): storable_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [storable_values(inner) for inner in value]
    return value


def storable_json(document: object) -> str:
    """A JSON value on one line of ASCII, with `storable` texts."""
    # Searching the finished line takes a tenth of the time of looking into each value.
    line = _json(document)
    return _json(storable_values(document)) if _UNSTORABLE_IN_JSON.search(line) else line


def _json(document: object) -> str:
    return json.dumps(document, separators=(",", ":"))


def plain_text(text: str, *, limit: int) -> str:
    """The text on one line of at most `limit` characters.

    Control and format characters, lone surrogates and line ends become U+FFFD; what is over ends in an
    ellipsis. Check: plain_text('a\\x00b', limit=9) is 'a\ufffdb'.
    """
    cut = text[: limit + 1]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else REPLACEMENT for one in cut)
    return cut if len(cut) <= limit else cut[: limit - 1] + "…"
