"""How deflate is framed: `deflate` names zlib's frame (RFC 9110, 8.4.1.2), and some send it bare. Pure."""

from __future__ import annotations

import zlib
from typing import Final

_GZIP: Final = 0x1F  # its first byte


def window_bits(data: bytes) -> int:
    """What zlib is to be told of a body that is named deflate and begins so, with one byte at least.

    Check: b'x' begins zlib's frame, whose first byte says 8 in its lower half, and b'K' none.
    """
    is_bare = data[0] & 0x0F != 8 and data[0] != _GZIP
    return -zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32  # either frame, by its head
