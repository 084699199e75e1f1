"""Values of a request's body as they are written, of which few are decoded. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

NOTHING = msgspec.Raw(b"null")  # of a field that the body does not have
READ_LIMIT = 1024  # values of its turns that are decoded to find one thing; of more it is not known
_GROUP = 64  # values of a list that are looked through at once
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


def first_byte(raw: msgspec.Raw) -> bytes:
    """The first byte, which tells a value's type."""
    return bytes(memoryview(raw)[:1])


def is_filled(raw: msgspec.Raw, opening: bytes) -> bool:
    """Whether the value begins with this byte and holds more than blanks."""
    return first_byte(raw) == opening and bool(bytes(memoryview(raw)[1:-1]).strip())


def holds_one(words: tuple[bytes, ...], text: bytes) -> bool:
    """Whether one of these words is in the text.

    By `find`: of bytes `in` first takes the word for a number, which costs as much as the search of most
    bodies. No generator for the same reason.
    """
    for word in words:  # noqa: SIM110
        if text.find(word) >= 0:
            return True
    return False


def items_with(words: tuple[bytes, ...], raw: msgspec.Raw) -> Iterator[bytes]:
    """Those of a list's values that hold one of these words; none where it is no list.

    Decoding a value takes ten times as long as looking for the words in it, and that ten times as long as in
    a text of many values: a list of 64 KiB may have 20,000.
    """
    if first_byte(raw) != b"[":
        return
    try:
        listed = _LIST.decode(raw)
    except (ValueError, RecursionError):
        return
    for at in range(0, len(listed), _GROUP):
        yield from _holding(words, listed[at : at + _GROUP])


def _holding(words: tuple[bytes, ...], values: list[msgspec.Raw]) -> Iterator[bytes]:
    text = b",".join(values)
    if not holds_one(words, text):
        return
    if len(values) == 1:
        yield text
        return
    half = len(values) // 2
    yield from _holding(words, values[:half])
    yield from _holding(words, values[half:])
