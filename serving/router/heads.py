"""Heads of messages as bytes: where they end, and equal lengths as one. Pure.

A content-length that is written several times, always the same, may be taken for one (RFC 9110, 8.6). llhttp
refuses any second length, and lists. The router frames all that it passes on anew, with one length, so nobody
behind it reads another. A head is read again only where llhttp has refused it for its length.
"""

from __future__ import annotations

HEAD_END = b"\r\n\r\n"  # of every head; llhttp takes no other
_NAME = b"content-length"
_REASONS = frozenset({"Duplicate Content-Length", "Invalid character in Content-Length"})


def is_of_lengths(error: Exception) -> bool:
    """Whether llhttp refused a head for what it says of its length."""
    return str(error) in _REASONS


def with_one_length(head: bytes) -> bytes | None:
    """A whole head with one length in place of equal ones; None: they differ, or there are not several.

    Whatever else is wrong with it (folded lines, bare line feeds) is left for llhttp, which refuses it.
    Check: lines of 5 and of `5, 5` become one of 5; lines of 5 and of 05 give None.
    """
    start, *lines = head.split(b"\r\n")
    kept, values = list[bytes](), list[bytes]()
    for line in lines:
        name, _, value = line.partition(b":")
        if name.lower() != _NAME:
            kept.append(line)
            continue
        values += [one.strip(b" \t") for one in value.split(b",")]
    if len(values) < 2 or len(set(values)) > 1 or not values[0].isdigit():
        return None
    return b"\r\n".join([start, _NAME + b": " + values[0], *kept])


def answers_with_one_length(data: bytes) -> bytes | None:
    """What has come of an answer, from its beginning, with one length in its head, or as it is.

    None: the head, which interim ones may precede, has not come whole.
    """
    parts, at = list[bytes](), 0
    while (end := data.find(HEAD_END, at)) >= 0:
        end += len(HEAD_END)
        head = data[at:end]
        parts.append(with_one_length(head) or head)
        at = end
        if head[:10] not in (b"HTTP/1.1 1", b"HTTP/1.0 1"):
            return b"".join([*parts, data[at:]])
    return None


def after_heads(data: bytes, start: int, count: int) -> int:
    """Where the `count`-th end of a head after `start` is over; the end of the data when there are fewer."""
    end = start
    for _ in range(count):
        found = data.find(HEAD_END, end)
        if found < 0:
            return len(data)
        end = found + len(HEAD_END)
    return end
