"""Values of a request's body as they are written, of which few are decoded. Pure."""

from __future__ import annotations

import msgspec

NOTHING = msgspec.Raw(b"null")  # of a field that the body does not have


def first_byte(raw: msgspec.Raw) -> bytes:
    """The first byte, which tells a value's type."""
    return bytes(memoryview(raw)[:1])


def is_filled(raw: msgspec.Raw, opening: bytes) -> bool:
    """Whether the value begins with this byte and holds more than blanks."""
    return first_byte(raw) == opening and bool(bytes(memoryview(raw)[1:-1]).strip())
