"""Answers that come compressed though they were asked for as they are: decompressed as they arrive. Pure.

What is compressed could not be scanned for its finish and usage, on either arm.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

READ_LIMIT: Final = 8 << 20  # bytes that one read may become
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_OF_CODING = frozenset({b"content-encoding", b"content-length"})


class Decompressor:
    """Feed it every byte of one body in gzip or zlib format."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either format, by its head

    def feed(self, data: bytes) -> bytes:
        """What these bytes stand for. Raises ValueError when they stand for nothing, or for too much."""
        parts: list[bytes] = []
        left = READ_LIMIT
        while data:
            if self._decoder.eof:  # a file of several members
                self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                part = self._decoder.decompress(data, left)
            except zlib.error as exc:
                raise ValueError(f"an answer cannot be decompressed ({exc})") from exc
            left -= len(part)
            if self._decoder.unconsumed_tail or left <= 0:
                raise ValueError(f"{len(data)} bytes of an answer become more than {READ_LIMIT}")
            parts.append(part)
            data = self._decoder.unused_data
        return b"".join(parts)

    @property
    def is_whole(self) -> bool:
        """True when what was compressed has come to its end."""
        return self._decoder.eof


def decompressor_of(
    status: int, headers: Sequence[tuple[bytes, bytes]]
) -> tuple[Decompressor | None, list[tuple[bytes, bytes]]]:
    """What decompresses an answer with this head, and its headers then; None: it comes as it is.

    A part of a file (206) stays compressed: its bytes are counted.
    """
    for name, value in headers:
        if (
            name == b"content-encoding"
            and status != 206
            and value.decode("latin-1").strip().lower() in _CODINGS
        ):
            return Decompressor(), [one for one in headers if one[0] not in _OF_CODING]
    return None, list(headers)
