"""Heads of messages as bytes: where they end, and equal lengths as one. Pure.

A content-length that is written several times, always the same, may be taken for one (RFC 9110, 8.6). llhttp
refuses any second length, and lists. The router frames all that it passes on anew, with one length, so nobody
behind it reads another. A head is read again only where llhttp has refused it for its length.
"""

from __future__ import annotations

from serving.router.headers import HEADERS_LIMIT

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


class AnswerHeads:
    """The heads of one answer as they come, interim ones first. Each is read once, however it comes."""

    __slots__ = ("_lines", "_parts", "_rest")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # the heads that are whole, each with one length
        self._rest = bytearray()  # after them
        self._lines = -1  # of headers, in all, without what the head that is not whole begins with

    @property
    def has_too_many_lines(self) -> bool:
        """Whether they have more lines of headers than the parser takes."""
        return self._lines > HEADERS_LIMIT

    def add(self, data: bytes) -> bytes | None:
        """All that has come of the answer, with one length in each head, or as it is.

        None: its head has not come whole.
        """
        at = max(len(self._rest) - len(HEAD_END) + 1, 0)
        self._rest += data
        self._lines += data.count(b"\n")
        while (end := self._rest.find(HEAD_END, at)) >= 0:
            head, at = bytes(self._rest[: end + len(HEAD_END)]), 0
            del self._rest[: len(head)]
            self._parts.append(with_one_length(head) or head)
            self._lines -= 2  # the empty one, and what the next begins with
            if head[:10] not in (b"HTTP/1.1 1", b"HTTP/1.0 1"):
                return b"".join([*self._parts, self._rest])
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
