"""Compressed answers of many members: each is a step of its own, after which a turn may end."""

from __future__ import annotations

import gzip
import zlib
from types import SimpleNamespace
from typing import Any

import pytest

from serving.router.upstreams import decompressed
from serving.router.upstreams.decompressed import PIECE, Decompressor

EMPTY = gzip.compress(b"")


@pytest.mark.slow
@pytest.mark.parametrize("after", [b"", b"x", b"x" * PIECE, b"x" * (5 * PIECE + 1)])
def test_each_member_is_a_step_and_holds_a_piece_of_the_rest_at_most(
    after: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """13,000 empty members took 111 ms in one step, of which each copied all that follows."""
    fed: list[int] = []  # bytes given to a decoder since the last step

    class Counted:
        def __init__(self, bits: int) -> None:
            self._decoder = zlib.decompressobj(bits)

        def decompress(self, data: bytes, most: int) -> bytes:
            fed.append(len(data))
            return self._decoder.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._decoder, name)

    made = SimpleNamespace(decompressobj=Counted, MAX_WBITS=zlib.MAX_WBITS, error=zlib.error)
    monkeypatch.setattr(decompressed, "zlib", made)
    one, read, most = Decompressor(), b"", 0
    for piece in one.pieces(EMPTY * 13_000 + gzip.compress(after)):
        read, most = read + piece, max(most, len(fed))
        if not piece:
            assert sum(fed) <= PIECE
            fed.clear()

    assert (read, most, one.is_whole) == (after, 1, True)


@pytest.mark.parametrize("size", [1, 7, PIECE, 10**6])
def test_members_that_come_in_parts_are_joined(size: int) -> None:
    texts = [b"a" * n for n in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE)]
    body = b"".join(map(gzip.compress, texts))
    one = Decompressor()
    read = b"".join(piece for at in range(0, len(body), size) for piece in one.pieces(body[at : at + size]))

    assert (read, one.is_whole) == (b"".join(texts), True)


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("frame", [-zlib.MAX_WBITS, zlib.MAX_WBITS, zlib.MAX_WBITS | 16])
@pytest.mark.parametrize("text", [b"", b"a", b'{"id":"a"}' * 999, bytes(range(256)) * 300])
def test_deflate_is_read_with_and_without_a_frame(text: bytes, frame: int, size: int) -> None:
    made = zlib.compressobj(wbits=frame)
    body = made.compress(text) + made.flush()
    one = Decompressor("deflate")
    read = b"".join(piece for at in range(0, len(body), size) for piece in one.pieces(body[at : at + size]))

    assert (read, one.is_whole) == (text, True)
