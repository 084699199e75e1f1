"""Answers that come compressed though they were asked for as they are: decompressed as they arrive. Pure.

What is compressed could not be scanned for its finish and usage, on either arm.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from serving.router.bodies.deflate import window_bits
from serving.router.headers import coding_of

READ_LIMIT: Final = 8 << 20  # bytes that one read may become
PIECE: Final = 16 << 10  # bytes that are read of an answer at once
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_OF_CODING = frozenset({b"content-encoding", b"content-length"})


class Decompressor:
    """Feed it every byte of one body in gzip or zlib format, or in deflate without a frame."""

    def __init__(self, coding: str = "") -> None:
        """coding: as the answer's head names it."""
        self._coding = coding
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either format, by its head
        self._has_begun = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What these bytes stand for, PIECE bytes at most at a time, after an empty one for each step that it
        takes. Raises ValueError, before any, when they stand for nothing, or for too much."""
        if data and not self._has_begun and self._coding == "deflate":
            self._decoder = zlib.decompressobj(window_bits(data))
        self._has_begun = self._has_begun or bool(data)
        left, parts = READ_LIMIT, list[bytes]()
        for at in range(0, len(data), PIECE):  # a member that ends copies what follows it
            rest, part = data[at : at + PIECE], b""
            # After a full piece there may be more of what has been taken in, unless that was the last.
            while rest or (len(part) == PIECE and not self._decoder.eof):
                if self._decoder.eof:  # a file of several members
                    self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
                try:
                    part = self._decoder.decompress(rest, PIECE)
                except zlib.error as exc:
                    raise ValueError(f"an answer cannot be decompressed ({exc})") from exc
                left -= len(part)
                if left <= 0:
                    raise ValueError(f"{len(data)} bytes of an answer become more than {READ_LIMIT}")
                rest = self._decoder.unconsumed_tail or self._decoder.unused_data
                if part:
                    parts.append(part)
                yield b""  # an empty member too takes its time
        yield from parts

    @property
    def is_whole(self) -> bool:
        """True when what was compressed has come to its end, or nothing has come at all."""
        return self._decoder.eof or not self._has_begun


def cut(data: bytes) -> Iterator[bytes]:
    """The bytes, PIECE at most at a time, which end with an event where there is one."""
    at = 0
    while at < len(data):
        end = at + PIECE
        if end < len(data) and (found := data.rfind(b"\n\n", at, end)) >= 0:
            end = found + 2
        yield data[at:end]
        at = end


def decompressor_of(
    status: int, headers: list[tuple[bytes, bytes]]
) -> tuple[Decompressor | None, list[tuple[bytes, bytes]]]:
    """What decompresses an answer with this head, and its headers then; None: it comes as it is.

    A part of a file (206) stays compressed: its bytes are counted.
    """
    for name, value in headers:
        is_named = name == b"content-encoding" and status != 206
        if is_named and (coding := coding_of(value.decode("latin-1"))) in _CODINGS:
            return Decompressor(coding), [one for one in headers if one[0] not in _OF_CODING]
    return None, headers
