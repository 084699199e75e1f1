"""The head of an answer as bytes of HTTP/1.1, and how the body after it is framed. Pure."""

from __future__ import annotations

import time

from serving.router.headers import REASONS, date_line
from serving.router.types import Head

VERSION = b"HTTP/1.1 "


def framed(
    head: Head, whole: bytes | None, *, is_http_11: bool, is_head_request: bool, keep_alive: bool
) -> tuple[bytes, bool, int | None, bool]:
    """The head of an answer: its bytes, is chunked, bytes of its body, and whether the connection stays.

    whole: the body, when that is known. Bytes of its body: None: no length is declared, or it has none.
    """
    status = head.status
    lines = [VERSION, b"%d " % status, REASONS.get(status, b""), b"\r\n", date_line(int(time.time()))]
    length: bytes | None = None
    left_bytes: int | None = None
    is_chunked = False
    for name, value in head.headers:
        if name == b"content-length":
            length = value
            continue
        lines += (name, b": ", value, b"\r\n")
    has_no_body = status in (204, 304)
    if length is not None and length.isdigit():
        lines += (b"content-length: ", length, b"\r\n")
        left_bytes = None if is_head_request or has_no_body else int(length)
    elif has_no_body or is_head_request:
        pass
    elif whole is not None:
        lines.append(b"content-length: %d\r\n" % len(whole))
    elif is_http_11:
        is_chunked = True
        lines.append(b"transfer-encoding: chunked\r\n")
    else:
        keep_alive = False
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines), is_chunked, left_bytes, keep_alive
